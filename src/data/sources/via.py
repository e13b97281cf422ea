"""VGG Image Annotator (VIA 1 and 2) reader: one JSON or CSV file beside the photographs.

Polygons, rectangles, circles and ellipses count; lines and points have no area. A region's class is
its first attribute. https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.csv_io import first_lines, read_csv
from src.data.sources.annotations import find_json, naming_damage, read_json
from src.data.sources.labelme import (
    Drawing,
    check_polygon,
    drawing_source,
    outline_box,
    outline_ellipse,
)
from src.data.sources.masks import note_missing
from src.data.sources.names import Locator
from src.data.sources.places import walk
from src.files import Json

_CSV = "region_shape_attributes"  # a column that no other table has


def draw_regions(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the photographs with regions."""
    idle = []
    for path in _find_files(locator.root):
        with naming_damage(path):
            for number, (name, regions) in enumerate(_read_file(path), start=1):
                if not regions:
                    idle.append(name)
                    continue
                image = locator.find_file(name, [path.parent])
                yield Drawing(path, str(number), image, [_read_region(r) for r in regions])
    note_missing(notes, "photographs without a region, left out", idle)


def _find_files(root: Path) -> list[Path]:
    found = find_json(root, "via")
    if found:
        return found
    tables = (root.joinpath(*p, f) for p, files in walk(root, 3) for f in files if f[-4:] == ".csv")
    return [path for path in tables if _CSV in first_lines(path)[0]]


def _read_file(path: Path) -> Iterator[tuple[str, list[Json]]]:
    """Yield (name of the photograph, its regions)."""
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
        for name, lines in table.groupby("filename", sort=False):
            cells = lines[[_CSV, "region_attributes"]].replace("", "{}").map(json.loads)
            cells.columns = ["shape_attributes", "region_attributes"]
            yield str(name), [r for r in cells.to_dict("records") if r["shape_attributes"]]
        return
    content = read_json(path)
    for item in content.get("_via_img_metadata", content).values():
        regions = item["regions"]
        yield item["filename"], list(regions.values() if isinstance(regions, dict) else regions)


def _read_region(region: Json) -> tuple[str, list[float]]:
    polygon = [float(value) for value in _outline(region["shape_attributes"])]
    return _label(region["region_attributes"]), check_polygon(polygon)


def _label(attributes: dict[str, Any]) -> str:
    """Return the first attribute's value; of ticked boxes the first; "object" where there is none.

    Several attributes are kept in the order in which they were defined.
    """
    for value in attributes.values():
        ticked = (key for key, on in value.items() if on) if isinstance(value, dict) else [value]
        if text := str(next(iter(ticked), "")).strip():
            return text
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


SOURCE = drawing_source(
    "via", draw_regions, _find_files, ": VIA's file has no region: draw some, and save again"
)
