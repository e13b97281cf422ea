"""Label Studio reader: JSON list of tasks, polygons drawn as label masks like those of COCO.

Polygons and rectangles count; brushes are exported as PNG and named as their images. https://labelstud.io/guide/export
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from src.data.sources.annotations import find_json, find_shape_fault, read_json
from src.data.sources.folders import holds_masks
from src.data.sources.labelme import Drawing, index_drawings
from src.data.sources.masks import MaskIndex, Source, image_header, note_missing
from src.data.sources.names import Locator
from src.script import UserError


def is_label_studio(root: Path) -> bool:
    """Tell whether Label Studio's JSON lies below ``root``."""
    return bool(find_json(root, "labelstudio"))


def read_label_studio(root: Path | str, *, merged: str = "", block: int = 50) -> MaskIndex:
    """List the annotated photographs with a class for every label; the rest is background.

    Args:
        root: a folder with the JSON file and the photographs somewhere below.
        merged: name of the one class that all labels are taken as; empty = a class for each.
        block: at most so many frames numbered on form one group.

    Raises:
        UserError: no such file, a damaged task, or nothing drawn.
    """
    root = Path(root)
    locator = Locator(root)
    drawings, idle = [], []
    for path in find_json(root, "labelstudio"):
        for place, task in enumerate(read_json(path), start=1):
            try:
                if not task["annotations"]:
                    idle.append(f"{path.name}, task {place}")
                    continue
                drawings.append(_read_task(path, place, task, locator))
            except (AttributeError, KeyError, IndexError, TypeError) as error:
                raise UserError(
                    f"{path}: task {place} is damaged ({error!r:.80}): export again"
                ) from error
    if not drawings:
        raise UserError(f"{root} holds no annotated task of Label Studio: export the project again")
    notes: list[str] = []
    note_missing(notes, "tasks without annotations, left out", idle)
    return index_drawings(root, drawings, notes, merged=merged, block=block)


def _read_task(path: Path, place: int, task: Any, locator: Locator) -> Drawing:
    addresses = [value for value in task["data"].values() if isinstance(value, str)]
    name = unquote(addresses[0].rpartition("?d=")[2])
    image = locator.find(name, [path.parent])
    if image is None:  # uploads are stored with a hash before the name
        image = locator.find(PurePosixPath(name).name.partition("-")[2], [path.parent])
    found = locator.root / image if image else None
    width, height = image_header(found)[:2] if found else (1, 1)
    outlines = list(_outlines(task["annotations"][0]["result"], width, height))
    for _, polygon in outlines:
        if find_shape_fault([polygon]):
            raise TypeError(find_shape_fault([polygon]))
    return Drawing(path, str(place), found, outlines)


def _outlines(result: Any, width: int, height: int) -> Iterator[tuple[str, list[float]]]:
    """Yield (label, polygon in pixels); places are stored in percent of the sides."""
    for item in result:
        kind, value = item["type"], item.get("value", {})
        if kind not in ("polygonlabels", "rectanglelabels", "brushlabels"):
            continue
        points = value.get("points", [])
        if kind == "rectanglelabels":
            x0, y0 = value["x"], value["y"]
            x1, y1 = x0 + value["width"], y0 + value["height"]
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        polygon = [side for x, y in points for side in (x * width / 100, y * height / 100)]
        yield str(value[kind][0]), polygon


SOURCE = Source(
    "labelstudio", read_label_studio, lambda r: is_label_studio(r) and not holds_masks(r)
)
