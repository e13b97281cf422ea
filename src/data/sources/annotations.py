"""Checked content of COCO JSON files, with ids as text.

A file lies anywhere down to three folders below the root: ``annotations/instances_train2017.json``,
``train/_annotations.coco.json``, ``annotations.json`` beside images.
Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from src.data.decode import MAX_PIXELS, read_bytes
from src.data.sources.frames import natural_key
from src.data.sources.masks import note_missing
from src.data.sources.places import describe, list_below, read_place, split_of_name
from src.files import Json, read_head
from src.script import UserError

_NEEDED = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id"),
}
# By the first key of a file it is told what it is without reading the whole.
_FIRST_KEYS = (*_NEEDED, "info", "licenses", "type", "version", "flags", "shapes")

# Words in the first 4 kB of a file that no other tool writes together.
_SIGNS = {"supervisely": ("tags", "size", "objects"), "via": ("filename", "regions")}
USUAL = ("instances_*.json", "*_annotations.coco.json")  # others beside them repeat the images


Segmentation = list[list[float]] | Json  # polygons, or run lengths


class Picture(NamedTuple):
    """An annotated image, and the (category, segmentation) of what is drawn on it, large first."""

    id: str
    name: str  # as the file writes it
    size: tuple[int, int]  # (height, width)
    drawn: Sequence[tuple[str, Segmentation]]


class CocoFile(NamedTuple):
    """One annotation file: its images, and the categories that have masks, in their order."""

    path: Path
    folder: Path
    split: str
    pictures: Sequence[Picture]
    categories: Sequence[str]


def find_json(root: Path, form: str) -> list[Path]:
    """List the JSON files below ``root`` of a form that :func:`_form` tells."""
    depth = 99 if form in ("labelme", "supervisely") else 3
    paths = [path for _, path in list_below(root, {".json"}, depth)]
    usual = [path for path in paths if any(map(path.match, USUAL))] if form == "coco" else []
    found = usual or [path for path in paths if _form(path) == form]
    order = ("train", "valid", "test", "")
    return sorted(found, key=lambda path: (order.index(_split_of(root, path)), path.parts))


def load_annotations(root: Path, notes: list[str]) -> list[CocoFile]:
    """Load every annotation file below ``root``; boxes without a mask are left out and counted.

    Raises:
        UserError: no file, one that is not COCO JSON, a damaged annotation, or no mask anywhere.
    """
    files: list[CocoFile] = []
    num_boxes = 0
    for path in find_json(root, "coco"):
        content = _load(path, notes)
        masks = [item for item in content["annotations"] if item.get("segmentation")]
        boxes = [
            _name(item, place)
            for place, item in enumerate(content["annotations"], start=1)
            if not item.get("segmentation")
        ]
        note_missing(notes, f"{path}: annotations without a mask, left out", boxes)
        files.append(_to_file(path, _split_of(root, path), content, masks))
        num_boxes += len(boxes)
    if not files:
        raise UserError(
            f"{root} holds no COCO annotations: found {describe(root)}; the layouts are in "
            "docs/layouts.md"
        )
    if not any(file.categories for file in files):
        what = f"{num_boxes} boxes but no masks" if num_boxes else "no annotations"
        raise UserError(f"{files[0].path} holds {what}: export the set for segmentation")
    return files


def _to_file(path: Path, split: str, content: Json, masks: Sequence[Json]) -> CocoFile:
    names = {item["id"]: item["name"] for item in content["categories"]}
    drawn: dict[str, list[tuple[str, Segmentation]]] = {}
    for item in sorted(masks, key=lambda item: -float(item.get("area") or 0)):
        shape = (names[item["category_id"]], item["segmentation"])
        drawn.setdefault(item["image_id"], []).append(shape)
    pictures = [
        Picture(i["id"], i["file_name"], (i["height"], i["width"]), drawn.get(i["id"], ()))
        for i in content["images"]
    ]
    used = sorted({item["category_id"] for item in masks}, key=natural_key)
    return CocoFile(path, path.parent, split, pictures, [names[number] for number in used])


def text_id(value: object) -> str:
    """Write an id as text, so that 1, 1.0 and "1" are one; "" for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, (int, str)) and not isinstance(value, bool)
    return str(value).strip() if fits else ""


def read_json(path: Path) -> Any:
    """Read JSON in any encoding of Unicode.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore the file") from error


@contextmanager
def naming_damage(what: object, remedy: str = "export again") -> Iterator[None]:
    """Turn what a damaged file raises where it is taken apart into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError,
            zlib.error) as error:  # fmt: skip
        raise UserError(f"{what} is damaged ({error!r:.80}): {remedy}") from error


def _form(path: Path) -> str:
    """Tell by its beginning which tool wrote a file: coco, labelme, labelstudio … or ""."""
    head = read_head(path, 4096)
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = head.decode("utf-16" if wide else "utf-8-sig", "ignore")
    if re.match(r"\s*\[\s*\{", text) and '"annotations"' in text and '"result"' in text:
        return "labelstudio"
    for form, keys in _SIGNS.items():
        if text.lstrip().startswith("{") and all(f'"{key}"' in text for key in keys):
            return form
    match = re.match(r'\s*\{\s*"(\w+)"', text)
    if not match or match[1] not in _FIRST_KEYS:
        return ""
    if '"shapes"' in text:
        return "labelme"
    whole = path.read_bytes()
    codec = "utf-16-le" if wide else "utf-8"
    known = (*_NEEDED, "category_id", "bbox", "segmentation")
    here = {key for key in known if f'"{key}"'.encode(codec) in whole}
    of_whole_images = "category_id" in here and here.isdisjoint({"bbox", "segmentation"})
    return "coco" if here.issuperset(_NEEDED) and not of_whole_images else ""


def _split_of(root: Path, path: Path) -> str:
    return split_of_name(path.stem) or read_place(path.parent.relative_to(root).parts).split


def _load(file: Path, notes: list[str]) -> Json:
    content = read_json(file)
    content = content if isinstance(content, dict) else {}
    missing = [kind for kind in _NEEDED if not isinstance(content.get(kind), list)]
    if missing:
        raise UserError(f"{file} lacks {', '.join(sorted(missing))}: it is no COCO file")
    for kind, keys in _NEEDED.items():
        for place, item in enumerate(content[kind], start=1):
            fault = _find_fault(item, keys)
            if fault:
                which = f"{kind.removesuffix('s').replace('ie', 'y')} {_name(item, place)}"
                raise UserError(f"{file}: {which} has {fault}: mend or remove it")
    content = {kind: [_clean(item) for item in content[kind]] for kind in _NEEDED}
    _check_ids(file, content)
    return {**content, "annotations": _join(file, content, notes)}


def _clean(item: Json) -> Json:
    """Write ids and names as text, sides as whole numbers."""
    return {key: _FORMS[key](value) if key in _FORMS else value for key, value in item.items()}


_FORMS: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), text_id),
    **dict.fromkeys(("height", "width"), lambda value: int(_number(value))),
    "name": str,
}


def _check_ids(file: Path, content: Json) -> None:
    """Refuse two images or two categories with one id, and two entries of one image."""
    for kind, what in (("images", "file_name"), ("categories", "name")):
        first: dict[str, str] = {}
        for item in content[kind]:
            other = first.setdefault(item["id"], item[what])
            if other != item[what]:
                raise UserError(
                    f"{file}: two {kind} have the id {item['id']}, {other} and {item[what]}: give "
                    "each an id of its own, in its annotations too (merged files often share ids)"
                )
    names = Counter(item["file_name"] for item in content["images"])
    name, count = max(names.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        ids = [item["id"] for item in content["images"] if item["file_name"] == name]
        raise UserError(
            f"{file} lists the image {name} {count} times (ids {', '.join(ids[:3])}): leave one "
            "entry, with the annotations of all"
        )


def _join(file: Path, content: Json, notes: list[str]) -> list[Json]:
    """Return the annotations whose image is listed; the others are counted, all are refused."""
    names = {item["id"] for item in content["categories"]}
    sizes = {item["id"]: (item["height"], item["width"]) for item in content["images"]}
    found, lone = [], []
    for place, item in enumerate(content["annotations"], start=1):
        if item["category_id"] not in names:
            raise UserError(
                f"{file}: annotation {_name(item, place)} has the category {item['category_id']}, "
                "which the file does not list: mend or remove it"
            )
        if item["image_id"] not in sizes:
            lone.append(item["image_id"])
            continue
        shape, size = item.get("segmentation"), sizes[item["image_id"]]
        stored = shape.get("size") if isinstance(shape, dict) else None
        if stored is not None and tuple(stored) != size:
            raise UserError(
                f"{file}: annotation {_name(item, place)} has run lengths of "
                f"{stored[1]}x{stored[0]} pixels but its image {item['image_id']} is listed as "
                f"{size[1]}x{size[0]} (swapped sides, or an EXIF orientation): mend either"
            )
        found.append(item)
    if lone and not found:
        raise UserError(
            f"{file}: none of the {len(lone)} annotations belongs to an image of the file (they "
            f"name the image_id {lone[0]}; images have ids like {next(iter(sizes), 'none')}): "
            "export it again"
        )
    note_missing(
        notes, f"{file}: annotations of images that the file does not list, left out", lone
    )
    return found


def _name(item: object, place: int) -> str:
    return str(item.get("id", f"number {place}") if isinstance(item, dict) else f"number {place}")


def _find_fault(item: Any, keys: Sequence[str]) -> str:
    """Say what is wrong with an image, annotation or category, "" if nothing is."""
    lacking = [key for key in keys if not isinstance(item, dict) or item.get(key) is None]
    if lacking:
        return f"no {lacking[0]}"
    for key in keys:
        if key.endswith("id") and not text_id(item[key]):
            return f"the {key} {item[key]!r}, which is no number and no text"
        if key == "file_name" and not isinstance(item[key], str):
            return f"the {key} {item[key]!r}, which is no text"
        if key in ("height", "width") and not 1 <= _number(item[key]) <= MAX_PIXELS:
            return f"the {key} {item[key]!r}, which is no number of pixels"
    area = item.get("area")
    if area is not None and not math.isfinite(_number(area)):
        return f"the area {area!r}, which is no number"
    return find_shape_fault(item.get("segmentation") or [])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def find_shape_fault(shape: object) -> str:
    """Say what is wrong with polygons or run lengths, "" if nothing is."""
    if isinstance(shape, dict):
        counts, size = shape.get("counts"), shape.get("size", [1, 1])
        if not isinstance(counts, list | str):
            return "run lengths without counts"
        if isinstance(counts, list) and not {*map(type, counts)} <= {int}:
            return "run lengths that are no whole numbers"
        if not isinstance(size, list) or len(size) != 2 or not {*map(type, size)} <= {int}:
            return "run lengths without a size [height, width]"
        return ""
    for polygon in shape if isinstance(shape, list) else [shape]:
        if not isinstance(polygon, list) or not {*map(type, polygon)} <= {int, float}:
            return "a segmentation that is no list of polygons"
        if len(polygon) % 2:
            return f"a polygon of {len(polygon)} coordinates, an odd number"
        if not all(abs(_number(value)) < 1e9 for value in polygon):
            return "a polygon with coordinates that are no pixels"
    return ""
