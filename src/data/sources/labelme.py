"""labelme reader: JSON beside each photograph, drawn as label masks like COCO polygons.

Polygons, rectangles, circles and masks count; lines and points have no area.
https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.files import below
from src.data.sources.annotations import CocoFile, Picture, find_json, find_shape_fault, read_json
from src.data.sources.coco import index_files, to_runs
from src.data.sources.folders import holds_masks
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MaskIndex,
    Source,
    image_header,
    note_missing,
    refuse_size,
)
from src.data.sources.names import Locator
from src.data.sources.places import read_place
from src.files import Json
from src.script import UserError

_CORNERS = 64  # of the polygon that stands for a circle
# Writes the photographs that labelme keeps in its JSON files beside them.
WRITE_OUT = (
    "python -c \"import base64, json, pathlib; [p.with_suffix('.jpg').write_bytes(base64.b64decode("
    "json.loads(p.read_bytes())['imageData'])) for p in pathlib.Path(r'{}').rglob('*.json')]\""
)
Outline = list[float] | Json


class Drawing(NamedTuple):
    """What one photograph has drawn on it: (label, outline).

    An outline is a polygon [x, y, ...], or COCO's run lengths; [] is one without an area.
    ``number`` tells the photographs of one file apart; ``image`` is None where it is missing;
    ``split`` is "" where the folder says it; ``size`` (height, width) is what was drawn on, None
    where the file does not say.
    """

    file: Path
    number: str
    image: Path | None
    outlines: Sequence[tuple[str, Outline]]
    split: str = ""
    size: tuple[int, int] | None = None


Draw = Callable[[Locator, list[str]], Iterable[Drawing]]


def drawing_source(
    name: str, draw: Draw, is_here: Callable[[Path], object], nothing: str
) -> Source:
    """Return the source of an annotation tool: a class for every label, the rest is background.

    Args:
        name: of the source.
        draw: lists what is drawn below the locator's root, and adds to the notes.
        is_here: the sign of the tool's files; where masks are drawn already, those are read.
        nothing: what is said after the folder's name where it holds none of them.
    """
    read = partial(_read_drawings, draw, nothing)
    return Source(name, read, lambda root: bool(is_here(root)) and not holds_masks(root))


def _read_drawings(draw: Draw, nothing: str, root: Path, *, merged: str = "") -> MaskIndex:
    """List the photographs; ``merged`` is that of ``read_coco``."""
    notes: list[str] = []
    drawings = list(draw(Locator(root), notes))
    if not drawings:
        raise UserError(f"{root}{nothing}")
    if not any(polygon for drawn in drawings for _, polygon in drawn.outlines):
        raise UserError(
            f"{root}: no polygon is drawn in {drawings[0].file.name} (lines and points have no "
            "area): draw some, or write lanes as 7.lines.txt (docs/layouts.md)"
        )
    lines = [d.file.name for d in drawings if not all(polygon for _, polygon in d.outlines)]
    note_missing(notes, "files with lines or points, which have no area: left out", lines)
    missing = [drawn.file.name for drawn in drawings if drawn.image is None]
    note_missing(notes, "annotated photographs that are missing, by file", missing)
    if len(missing) == len(drawings):
        raise UserError(
            f"{drawings[0].file}: no photograph of it lies below {root}: put the photographs there"
        )
    files = [_as_coco(root, drawn, drawn.image) for drawn in drawings if drawn.image]
    return index_files(root, files, notes, merged)


def draw_labelme(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the photographs beside labelme's JSON files."""
    for path in find_json(locator.root, "labelme"):
        content = read_json(path)
        image = _find_image(path, content, locator)
        if image is None and content.get("imageData"):
            raise UserError(
                f"{path} holds its photograph within (imageData) and none lies beside it: write "
                f"them out with\n{WRITE_OUT.format(locator.root)}"
            )
        shapes = content.get("shapes") or []
        sides = (content.get("imageHeight"), content.get("imageWidth"))
        if not all(isinstance(side, int | float) and 1 < side < 1e9 for side in sides):
            sides = image_header(image)[1::-1] if image else (0, 0)
        size = (int(sides[0]), int(sides[1]))
        outlines = [_read_shape(path, size, *shape) for shape in enumerate(shapes, start=1)]
        yield Drawing(path, "0", image, outlines, size=size)


def _read_shape(path: Path, size: tuple[int, int], place: int, shape: Any) -> tuple[str, Outline]:
    try:
        if shape.get("shape_type") == "mask":
            return str(shape["label"]), _read_mask(shape, *size)
        polygon = check_polygon(_outline(shape.get("shape_type") or "polygon", shape["points"]))
        return str(shape["label"]), polygon
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: shape {place} is damaged ({error}): mend it") from error


def _read_mask(shape: Any, height: int, width: int) -> Json:
    """Return the runs of a mask, a PNG whose upper left corner is the first point."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as image:
        part = np.asarray(image.convert("L")) > 0
    x, y = (int(value) for value in shape["points"][0])
    mask = np.zeros((height, width), bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return to_runs(mask)


def _outline(kind: str, points: list[list[float]]) -> list[float]:
    """Return the polygon [x, y, x, y, ...] of a shape, [] of one without an area."""
    if kind == "polygon" and len(points) > 2:
        return [value for x, y in points for value in (x, y)]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return outline_box(x0, y0, x1, y1)
    if kind == "circle":
        (x, y), (a, b) = points
        radius = math.hypot(a - x, b - y)
        return outline_ellipse(x, y, radius, radius)
    return []


def check_polygon(polygon: list[float]) -> list[float]:
    """Return the polygon.

    Raises:
        ValueError: it is none.
    """
    if fault := find_shape_fault([polygon]):
        raise ValueError(fault)
    return polygon


def outline_box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """Return the polygon of a rectangle."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def outline_ellipse(
    x: float, y: float, across: float, down: float, turn: float = 0.0
) -> list[float]:
    """Return the polygon that stands for an ellipse of two radii, turned by ``turn`` (radians)."""
    steps = [2 * math.pi * n / _CORNERS for n in range(_CORNERS)]
    points = [(across * math.cos(t), down * math.sin(t)) for t in steps]
    cos, sin = math.cos(turn), math.sin(turn)
    return [v for a, b in points for v in (x + a * cos - b * sin, y + a * sin + b * cos)]


def _find_image(path: Path, content: Json, locator: Locator) -> Path | None:
    beside: Iterator[Path] = (path.with_suffix(ending) for ending in sorted(IMAGE_SUFFIXES))
    found = next((image for image in beside if image.is_file()), None)
    if found is None:
        name = str(content.get("imagePath") or f"{path.stem}.jpg")
        found = locator.find_file(name, [path.parent])
    return found


def _as_coco(root: Path, drawn: Drawing, image: Path) -> CocoFile:
    width, height, _ = image_header(image)
    if width and drawn.size not in (None, (height, width)):
        refuse_size(drawn.size, (height, width), drawn.file, image)
    outlines = [(label, shape) for label, shape in drawn.outlines if shape]
    shapes = [(label, shape if isinstance(shape, dict) else [shape]) for label, shape in outlines]
    picture = Picture(drawn.number, below(root, image), (height, width), shapes)
    split = drawn.split or read_place(drawn.file.parent.relative_to(root).parts).split
    return CocoFile(drawn.file, root, split, [picture], sorted({label for label, _ in shapes}))


SOURCE = drawing_source(
    "labelme", draw_labelme, lambda root: find_json(root, "labelme"),
    " holds no JSON file of labelme: put it beside its photograph",
)  # fmt: skip
