"""KITTI road reader: magenta is road, red is not, black is void.

``training/image_2/um_000000.png`` with ``training/gt_image_2/um_road_000000.png``; the images of
``testing/image_2`` are to be predicted. Masks of the own lane (``um_lane_…``) are left out.
https://www.cvlibs.net/datasets/kitti/eval_road.php
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.data.decode import decode_image
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    list_files,
    note_count,
    note_missing,
    pair,
)
from src.script import UserError

CLASSES = ("background", "road")
VOID = 255
KNOWN = {"train": 289, "test": 290}


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
        note_count(notes, f"KITTI road {folder}", len(images), KNOWN[split])
    if not any(row.target for row in rows):
        raise UserError(f"{root} holds no training/gt_image_2/um_road_000000.png: unpack it there")
    return build_index(root, rows, CLASSES, decode_road, ignore_index=VOID, notes=notes)


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


SOURCE = Source(
    "kitti_road", read_kitti_road, lambda root: any(root.glob("training/gt_image_2/*_road_*.png"))
)
