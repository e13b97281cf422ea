"""Label Studio reader: JSON list of tasks, polygons drawn as label masks like those of COCO.

Polygons, rectangles and brushes count. https://labelstud.io/guide/export
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from src.data.sources.annotations import find_json, find_shape_fault, naming_damage, read_json
from src.data.sources.coco import to_runs
from src.data.sources.labelme import Drawing, Outline, drawing_source
from src.data.sources.masks import image_header, note_missing
from src.data.sources.names import Locator


def draw_tasks(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the annotated photographs of the exported tasks."""
    idle = []
    for path in find_json(locator.root, "labelstudio"):
        for place, task in enumerate(read_json(path), start=1):
            with naming_damage(f"{path}: task {place}"):
                if not task["annotations"]:
                    idle.append(f"{path.name}, task {place}")
                    continue
                yield _read_task(path, place, task, locator)
    note_missing(notes, "tasks without annotations, left out", idle)


def _read_task(path: Path, place: int, task: Any, locator: Locator) -> Drawing:
    addresses = [value for value in task["data"].values() if isinstance(value, str)]
    name = unquote(addresses[0].rpartition("?d=")[2])
    image = locator.find_file(name, [path.parent])
    if image is None:  # uploads are stored with a hash before the name
        image = locator.find_file(PurePosixPath(name).name.partition("-")[2], [path.parent])
    width, height = image_header(image)[:2] if image else (1, 1)
    outlines = list(_outlines(task["annotations"][0]["result"], width, height))
    for _, shape in outlines:
        if fault := find_shape_fault(shape if isinstance(shape, dict) else [shape]):
            raise TypeError(fault)
    return Drawing(path, str(place), image, outlines)


def _outlines(result: Any, width: int, height: int) -> Iterator[tuple[str, Outline]]:
    """Yield (label, polygon in pixels or runs); places are stored in percent of the sides."""
    for item in result:
        kind, value = item["type"], item.get("value", {})
        if kind not in ("polygonlabels", "rectanglelabels", "brushlabels"):
            continue
        if kind == "brushlabels":
            packed = value.get("rle")
            stored = (item["original_height"], item["original_width"]) if packed else (0, 0)
            yield str(value[kind][0]), to_runs(unpack_brush(packed, *stored)) if packed else []
            continue
        points = value.get("points", [])
        if kind == "rectanglelabels":
            x0, y0 = value["x"], value["y"]
            x1, y1 = x0 + value["width"], y0 + value["height"]
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        polygon = [side for x, y in points for side in (x * width / 100, y * height / 100)]
        yield str(value[kind][0]), polygon


def unpack_brush(data: Sequence[int], height: int, width: int) -> np.ndarray:
    """Unpack a brush, the alpha of an RGBA image, into bool (H, W).

    After the count of numbers (32 bits), their width less 1 (5 bits) and four widths of run lengths
    less 1 (4 bits each) come runs: a bit that says whether one number is repeated, the choice of a
    width (2 bits), the length less 1, and the number or numbers.
    https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack

    Raises:
        ValueError: another count than the image has.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        return int(bits[place - width : place], 2)

    count, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if count != height * width * 4:
        raise ValueError(f"a brush of {count // 4} pixels on an image of {width}x{height}")
    pixels: list[int] = []
    while len(pixels) < count:
        repeated = take(1)
        length = take(widths[take(2)]) + 1
        pixels += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return np.reshape(pixels[3:count:4], (height, width)) > 0


SOURCE = drawing_source(
    "labelstudio", draw_tasks, lambda root: find_json(root, "labelstudio"),
    " holds no annotated task of Label Studio: export the project again",
)  # fmt: skip
