"""Supervisely reader: ``ann/7.jpg.json`` beside ``img/7.jpg``, drawn as label masks.

Bitmaps, polygons (with their holes) and rectangles count; lines and points have no area. The split
is the data set's folder, or a tag. https://docs.supervisely.com/data-organization/00_ann_format_navi
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from src.data.files import split_of_word
from src.data.sources.annotations import find_json, naming_damage, read_json
from src.data.sources.coco import fill_polygon, to_runs
from src.data.sources.labelme import Drawing, Outline, check_polygon, drawing_source, outline_box
from src.data.sources.masks import IMAGE_SUFFIXES, image_header, note_missing, refuse_size
from src.data.sources.names import Locator
from src.files import Json


def draw_files(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the photographs with a file below ``ann/``."""
    missing = []
    for path in find_json(locator.root, "supervisely"):
        image = _find_image(path, locator)
        if image is None:
            missing.append(path.name)
            continue
        with naming_damage(path):
            yield _read_file(path, read_json(path), image)
    note_missing(notes, "annotated photographs that are missing, by file", missing)


def _find_image(path: Path, locator: Locator) -> Path | None:
    names = [path.stem]
    if Path(path.stem).suffix.lower() not in IMAGE_SUFFIXES:
        names = [path.stem + ending for ending in sorted(IMAGE_SUFFIXES)]
    near = [path.parent.parent / "img", path.parent]
    return next(filter(None, (locator.find_file(name, near) for name in names)), None)


def _read_file(path: Path, content: Json, image: Path) -> Drawing:
    width, height, _ = image_header(image)
    stated = (int(content["size"]["height"]), int(content["size"]["width"]))
    if stated != (height, width):
        refuse_size(stated, (height, width), path, image)
    outlines = [
        (str(item["classTitle"]), _read_object(item, height, width)) for item in content["objects"]
    ]
    tags = [split_of_word(str(tag.get("name", ""))) for tag in content.get("tags") or []]
    return Drawing(path, "0", image, outlines, next(filter(None, tags), ""))


def _read_object(item: Json, height: int, width: int) -> Outline:
    kind = item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")
    if kind == "bitmap":
        return to_runs(_read_bitmap(item["bitmap"], height, width))
    if kind not in ("polygon", "rectangle"):
        return []
    points = _check(item["points"]["exterior"])
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return outline_box(x0, y0, x1 + 1, y1 + 1)  # the last pixel belongs to it
    holes = [_check(hole) for hole in item["points"].get("interior") or []]
    if len(points) < 3:
        return []
    if not holes:
        return [value for point in points for value in point]
    mask = fill_polygon(np.array(points, float), height, width)
    for hole in holes:
        mask &= ~fill_polygon(np.array(hole, float), height, width)
    return to_runs(mask)


def _check(points: Any) -> list[tuple[float, float]]:
    check_polygon([value for x, y in points for value in (x, y)])
    return [(x, y) for x, y in points]


def _read_bitmap(bitmap: Json, height: int, width: int) -> np.ndarray:
    """Return the mask bool (H, W) of a packed PNG whose upper left corner lies at ``origin``."""
    from PIL import Image

    data = zlib.decompress(base64.b64decode(bitmap["data"]))
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        clear = "A" in image.mode or "transparency" in image.info
        part = np.asarray(image.convert("RGBA"))[..., 3 if clear else 0] > 0
    x, y = bitmap["origin"]
    mask = np.zeros((height, width), bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask


SOURCE = drawing_source(
    "supervisely", draw_files, lambda root: find_json(root, "supervisely"),
    " holds Supervisely's ann/, but no img/ with its photographs: add it",
)  # fmt: skip
