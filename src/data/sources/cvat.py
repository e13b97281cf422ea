"""CVAT for images 1.1 reader: ``annotations.xml`` with the photographs below the same folder.

Polygons, boxes, ellipses and masks count; lines and points have no area.
https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from src.data.files import split_of_word
from src.data.sources.annotations import naming_damage
from src.data.sources.coco import to_runs
from src.data.sources.labelme import (
    Drawing,
    Outline,
    check_polygon,
    drawing_source,
    outline_box,
    outline_ellipse,
)
from src.data.sources.names import Locator
from src.data.sources.places import walk


def draw_images(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the images of the files."""
    for path in _find_files(locator.root):
        with naming_damage(path):
            for image in ElementTree.parse(path).getroot().findall("image"):
                yield _read_image(path, image, locator)


def _read_image(path: Path, item: ElementTree.Element, locator: Locator) -> Drawing:
    image = locator.find_file(item.attrib["name"], [path.parent, path.parent / "images"])
    size = int(item.attrib["height"]), int(item.attrib["width"])
    shapes = sorted(item, key=lambda shape: int(shape.get("z_order", 0)))
    outlines = [
        (shape.attrib["label"], _outline(shape.tag, shape.attrib, *size))
        for shape in shapes
        if "label" in shape.attrib and shape.tag != "tag"
    ]
    split = split_of_word(item.get("subset", ""))
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
    return check_polygon(polygon)


def _find_files(root: Path) -> list[Path]:
    found = []
    for parts, files in walk(root, 3):
        for path in (root.joinpath(*parts, file) for file in files if file.endswith(".xml")):
            with path.open("rb") as file:
                head = file.read(4096)
            found += [path] if b"<annotations>" in head and b"<version>1.1" in head else []
    return found


SOURCE = drawing_source(
    "cvat", draw_images, _find_files,
    " holds no annotations.xml of images: export as CVAT for images",
)  # fmt: skip
