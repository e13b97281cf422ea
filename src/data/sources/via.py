"""VGG Image Annotator (VIA 1 and 2) reader: one JSON or CSV file beside the photographs.

Polygons, rectangles, circles and ellipses count; lines and points have no area. A region's class is
its first attribute. https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.csv_io import read_csv
from src.data.sources.annotations import find_json, find_shape_fault, naming_damage, read_json
from src.data.sources.folders import holds_masks
from src.data.sources.labelme import (
    Drawing,
    index_drawings,
    outline_box,
    outline_ellipse,
)
from src.data.sources.masks import MaskIndex, Source, note_missing
from src.data.sources.names import Locator
from src.data.sources.places import walk
from src.files import Json
from src.script import UserError

_CSV = "region_shape_attributes"  # a column that no other table has


def read_via(root: Path | str, *, merged: str = "", block: int = 50) -> MaskIndex:
    """List the photographs with regions, a class for every label; the rest is background.

    Args:
        root: a folder with the file and the photographs somewhere below.
        merged: name of the one class that all labels are taken as; empty = a class for each.
        block: at most so many frames numbered on form one group.

    Raises:
        UserError: no such file, a damaged one, or nothing drawn.
    """
    root = Path(root)
    locator = Locator(root)
    drawings, idle = [], []
    for path in _find_files(root):
        with naming_damage(path):
            for number, (name, regions) in enumerate(_read_file(path), start=1):
                if not regions:
                    idle.append(name)
                    continue
                place = locator.find(name, [path.parent])
                image = root / place if place else None
                outlines = [_read_region(region) for region in regions]
                drawings.append(Drawing(path, str(number), image, outlines))
    if not drawings:
        raise UserError(f"{root}: VIA's file has no region: draw some, and save again")
    notes: list[str] = []
    note_missing(notes, "photographs without a region, left out", idle)
    return index_drawings(root, drawings, notes, merged=merged, block=block)


def _find_files(root: Path) -> list[Path]:
    found = find_json(root, "via")
    if found:
        return found
    tables = (root.joinpath(*p, f) for p, files in walk(root, 3) for f in files if f[-4:] == ".csv")
    return [path for path in tables if _CSV in _first_line(path)]


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(4096).decode("utf-8", "replace")


def _read_file(path: Path) -> Iterator[tuple[str, list[Json]]]:
    """Yield (name of the photograph, its regions)."""
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
        for name, lines in table.groupby("filename", sort=False):
            cells = zip(lines[_CSV], lines["region_attributes"], strict=True)
            read = [
                (json.loads(shape or "{}"), json.loads(label or "{}")) for shape, label in cells
            ]
            yield (
                str(name),
                [
                    {"shape_attributes": shape, "region_attributes": label}
                    for shape, label in read
                    if shape
                ],
            )
        return
    content = read_json(path)
    for item in content.get("_via_img_metadata", content).values():
        regions = item["regions"]
        yield item["filename"], list(regions.values() if isinstance(regions, dict) else regions)


def _read_region(region: Json) -> tuple[str, list[float]]:
    polygon = [float(value) for value in _outline(region["shape_attributes"])]
    fault = find_shape_fault([polygon])
    if fault:
        raise ValueError(fault)
    return _label(region["region_attributes"]), polygon


def _label(attributes: dict[str, Any]) -> str:
    """Return the first attribute's value; of ticked boxes the first; "object" where there is none.

    Several attributes are kept in the order in which they were defined.
    """
    for value in attributes.values():
        text = (
            next((key for key, on in value.items() if on), "") if isinstance(value, dict) else value
        )
        if str(text).strip():
            return str(text).strip()
    return "object"


def _outline(shape: Json) -> list[float]:
    """Return the polygon [x, y, x, y, ...] of a shape, [] of one without an area."""
    kind = shape["name"]
    if kind == "polygon":
        points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return [value for point in points for value in point]
    if kind == "rect":
        x, y = shape["x"], shape["y"]
        return outline_box(x, y, x + shape["width"], y + shape["height"])
    if kind == "circle":
        return outline_ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
    if kind == "ellipse":
        radii = shape["rx"], shape["ry"]
        return outline_ellipse(shape["cx"], shape["cy"], *radii, shape.get("theta", 0.0))
    return []


SOURCE = Source("via", read_via, lambda root: bool(_find_files(root)) and not holds_masks(root))
