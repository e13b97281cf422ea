"""PASCAL VOC 2012 devkit reader: palette masks, 255 is void.

Layout: ``VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`` (or another
year); ``root`` may be any of the three upper folders. http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from src.data.decode import decode_mask
from src.data.sources.folders import read_classes
from src.data.sources.masks import (
    MaskIndex,
    Row,
    Source,
    build_index,
    note_count,
    note_missing,
)
from src.data.sources.names import read_lines
from src.script import UserError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
VOID = 255
_LISTS = "ImageSets/Segmentation"
KNOWN = {"train": 1464, "valid": 1449}  # the 1,456 test images come in an archive of their own


def read_voc(root: Path) -> MaskIndex:
    """List the images of ImageSets/Segmentation, in the order of its lists.

    Raises:
        UserError: no devkit below ``root``.
    """
    base = find_devkit(root)
    if base is None:
        raise UserError(f"{root} holds no VOC2012/ImageSets/Segmentation: unpack the devkit there")
    notes: list[str] = []
    others = [path for path in _find_bases(root, "test.txt") if path != base]
    note_missing(notes, "test images of another archive, which --data_dir may name later",
                 [path.relative_to(root).as_posix() for path in others])  # fmt: skip
    rows: list[Row] = []
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines = read_lines(base / "ImageSets" / "Segmentation" / f"{name}.txt")
        ids = [line.split()[0] for line in lines]
        part = list(_list_split(base, ids, split, notes))
        if split in KNOWN:
            note_count(notes, f"VOC 2012 {name}", len(part), KNOWN[split])
        rows += part
    decode = partial(decode_mask, num_classes=len(CLASSES), ignore_index=VOID)
    return build_index(base, rows, CLASSES, decode, ignore_index=VOID, notes=notes)


def find_devkit(root: Path) -> Path | None:
    """Find the folder that holds ImageSets/Segmentation/train.txt, None where there is none.

    Of several years it is 2012, else the last; a set that names classes of its own is none.
    """
    years = sorted(_find_bases(root, "train.txt"), reverse=True)
    years.sort(key=lambda path: (path != root, path.name != "VOC2012"))
    return years[0] if years and not read_classes(years[0]) else None


def _find_bases(root: Path, name: str) -> list[Path]:
    """List the folders down to three below ``root`` that have such a list."""
    paths = (p for depth in range(4) for p in root.glob("*/" * depth + f"{_LISTS}/{name}"))
    return [path.parents[2] for path in paths]


def _list_split(base: Path, ids: list[str], split: str, notes: list[str]) -> Iterator[Row]:
    missing = []
    for name in ids:
        image, mask = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
        has_mask = (base / mask).is_file()
        if not (base / image).is_file() or not (has_mask or split == "test"):
            missing.append(name)
            continue
        yield Row(name, image, mask if has_mask else "", "", split)
    note_missing(notes, f"VOC 2012 {split}: listed, but image or mask is missing", missing)


SOURCE = Source("voc", read_voc, lambda root: find_devkit(root) is not None, whole=True)
