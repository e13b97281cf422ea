"""labelme reader: JSON beside each photograph, drawn as label masks like COCO polygons.

Polygons, rectangles and circles count; lines and points have no area.
https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.sources.annotations import CocoFile, find_json, find_shape_fault, read_json
from src.data.sources.coco import index_files
from src.data.sources.locate import Locator
from src.data.sources.masks import IMAGE_SUFFIXES, MaskIndex, image_header, note_missing
from src.data.sources.places import read_place
from src.script import UserError

_CORNERS = 64  # of the polygon that stands for a circle


def is_labelme(root: Path) -> bool:
    """Tell whether labelme's JSON lies below ``root``."""
    return bool(find_json(root, "labelme"))


def read_labelme(root: Path | str, *, merged: str = "", block: int = 50) -> MaskIndex:
    """List the annotated photographs with a class for every label; the rest is background.

    Args:
        root: a folder with JSON files somewhere below.
        merged: name of the one class that all labels are taken as; empty = a class for each.
        block: at most so many frames numbered on form one group.

    Raises:
        UserError: no such file, a damaged one, or no shape with an area.
    """
    root = Path(root)
    notes: list[str] = []
    contents = {path: read_json(path) for path in find_json(root, "labelme")}
    shapes = {path: _list_shapes(path, content) for path, content in contents.items()}
    names = sorted({label for found in shapes.values() for label, _ in found})
    if not names:
        raise UserError(f"{root} holds no labelme JSON with a polygon: draw some")
    left = [path.name for path, found in shapes.items() if len(found) < _count(contents[path])]
    note_missing(notes, "labelme files with lines or points, which have no area: left out", left)
    files, missing = [], []
    locator = Locator(root)
    for path, found in shapes.items():
        image = _find_image(path, contents[path], locator)
        if image is None:
            missing.append(path.name)
            continue
        files.append(_as_coco(root, path, image, found, names))
    note_missing(notes, "labelme files whose photograph is missing", missing)
    if not files:
        raise UserError(f"{next(iter(shapes))} has no photograph beside it: put it there")
    return index_files(root, files, notes, merged=merged, block=block)


def _count(content: Any) -> int:
    return len(content.get("shapes") or ())


def _list_shapes(path: Path, content: Any) -> list[tuple[str, list[float]]]:
    found = []
    for place, shape in enumerate(content.get("shapes") or (), start=1):
        try:
            polygon = _outline(shape.get("shape_type") or "polygon", shape["points"])
            if polygon and find_shape_fault([polygon]):
                raise ValueError(find_shape_fault([polygon]))
            found += [(str(shape["label"]), polygon)] if polygon else []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: shape {place} is damaged ({error}): mend it") from error
    return found


def _outline(kind: str, points: list[list[float]]) -> list[float]:
    """Return the polygon [x, y, x, y, ...] of a shape, [] of one without an area."""
    if kind == "polygon" and len(points) > 2:
        return [value for x, y in points for value in (x, y)]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle":
        (x, y), (a, b) = points
        radius = math.hypot(a - x, b - y)
        turns = [2 * math.pi * n / _CORNERS for n in range(_CORNERS)]
        return [v for t in turns for v in (x + radius * math.cos(t), y + radius * math.sin(t))]
    return []


def _find_image(path: Path, content: Any, locator: Locator) -> Path | None:
    beside: Iterator[Path] = (path.with_suffix(ending) for ending in sorted(IMAGE_SUFFIXES))
    found = next((image for image in beside if image.is_file()), None)
    if found is None:
        name = str(content.get("imagePath") or f"{path.stem}.jpg")
        place = locator.find(name, [path.parent])
        found = locator.root / place if place else None
    return found


def _as_coco(
    root: Path, path: Path, image: Path, shapes: list[tuple[str, list[float]]], names: list[str]
) -> CocoFile:
    width, height = image_header(image)[:2]
    name = image.relative_to(root).as_posix()
    numbers = {label: str(number) for number, label in enumerate(names, start=1)}
    content = {
        "images": [{"id": "0", "file_name": name, "height": height, "width": width}],
        "categories": [{"id": number, "name": label} for label, number in numbers.items()],
        "annotations": [
            {"image_id": "0", "category_id": numbers[label], "segmentation": [polygon]}
            for label, polygon in shapes
        ],
    }
    return CocoFile(path, root, read_place(path.parent.relative_to(root).parts).split, content)
