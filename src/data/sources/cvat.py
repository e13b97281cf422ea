"""CVAT for images 1.1 reader: ``annotations.xml`` with the photographs below the same folder.

Polygons, boxes, ellipses and masks count; lines and points have no area.
https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from src.data.sources.annotations import find_shape_fault, naming_damage
from src.data.sources.coco import to_runs
from src.data.sources.folders import holds_masks
from src.data.sources.labelme import (
    Drawing,
    Outline,
    index_drawings,
    outline_box,
    outline_ellipse,
)
from src.data.sources.masks import MaskIndex, Source
from src.data.sources.names import Locator
from src.data.sources.places import walk
from src.data.splits import split_of_word
from src.script import UserError


def read_cvat(root: Path | str, *, merged: str = "", block: int = 50) -> MaskIndex:
    """List the images of the file with a class for every label; the rest is background.

    Args:
        root: a folder with the file and the photographs somewhere below.
        merged: name of the one class that all labels are taken as; empty = a class for each.
        block: at most so many frames numbered on form one group.

    Raises:
        UserError: no such file, a damaged one, or nothing drawn.
    """
    root = Path(root)
    locator = Locator(root)
    drawings = []
    for path in _find_files(root):
        with naming_damage(path):
            images = ElementTree.parse(path).getroot().findall("image")
            drawings += [_read_image(path, image, locator) for image in images]
    if not drawings:
        raise UserError(f"{root} holds no annotations.xml of images: export as CVAT for images")
    return index_drawings(root, drawings, [], merged=merged, block=block)


def _read_image(path: Path, item: ElementTree.Element, locator: Locator) -> Drawing:
    place = locator.find(item.attrib["name"], [path.parent, path.parent / "images"])
    size = int(item.attrib["height"]), int(item.attrib["width"])
    shapes = sorted(item, key=lambda shape: int(shape.get("z_order", 0)))
    outlines = [
        (shape.attrib["label"], _outline(shape.tag, shape.attrib, *size))
        for shape in shapes
        if "label" in shape.attrib and shape.tag != "tag"
    ]
    split = split_of_word(item.get("subset", ""))
    image = locator.root / place if place else None
    return Drawing(path, item.attrib["id"], image, outlines, split)


def _outline(kind: str, item: Mapping[str, str], height: int, width: int) -> Outline:
    """Return polygon or run lengths of a shape, [] of one without an area."""
    if kind == "mask":
        runs = [int(word) for word in item["rle"].split(",")]
        left, top, across, down = (int(item[key]) for key in ("left", "top", "width", "height"))
        part = np.zeros(across * down, bool)
        ends = np.cumsum([0, *runs])
        if ends[-1] > part.size:
            raise ValueError("run lengths beyond their box")
        for first, last in list(pairwise(ends))[1::2]:
            part[first:last] = True
        mask = np.zeros((height, width), bool)
        mask[top : top + down, left : left + across] = part.reshape(down, across)
        return to_runs(mask)
    polygon: list[float] = []
    if kind == "polygon":
        polygon = [
            float(value) for point in item["points"].split(";") for value in point.split(",")
        ]
    elif kind == "box":
        polygon = outline_box(*(float(item[key]) for key in ("xtl", "ytl", "xbr", "ybr")))
    elif kind == "ellipse":
        polygon = outline_ellipse(*(float(item[key]) for key in ("cx", "cy", "rx", "ry")))
    if fault := find_shape_fault([polygon]):
        raise ValueError(fault)
    return polygon


def _find_files(root: Path) -> list[Path]:
    found = []
    for parts, files in walk(root, 3):
        for path in (root.joinpath(*parts, file) for file in files if file.endswith(".xml")):
            with path.open("rb") as file:
                head = file.read(4096)
            found += [path] if b"<annotations>" in head and b"<version>1.1" in head else []
    return found


SOURCE = Source("cvat", read_cvat, lambda root: bool(_find_files(root)) and not holds_masks(root))
