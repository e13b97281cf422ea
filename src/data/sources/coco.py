"""COCO JSON in (polygons or run lengths, one instance each), label masks out.

Layouts: ``annotations/instances_{split}2017.json`` + ``{split}2017/``, or
``{split}/_annotations.coco.json`` beside its images. Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.sources.frames import group_neighbours
from src.data.sources.masks import MaskIndex, Row, build_index, note_missing
from src.data.sources.polygons import rasterise
from src.script import UserError

MAX_CATEGORIES = 254  # of a uint8 mask with background and void
_SPLITS = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}


class CocoFile(NamedTuple):
    """One annotation file, its images' folder and split; every annotation has a mask."""

    path: Path
    folder: Path
    split: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class CocoDecoder:
    """Rasterise the instances of one image: "file.json#image id" below ``root`` -> (H, W) uint8.

    Attributes:
        root: the folder that targets are relative to.
        shapes: target -> (height, width, ((label, segmentation), ...)), large instances first,
            so that a scratch on a dent stays visible.
    """

    root: Path
    shapes: Mapping[str, tuple[int, int, tuple[tuple[int, Any], ...]]]

    def __call__(self, path: Path) -> np.ndarray:
        """Draw the instances; where they overlap the smaller one wins."""
        height, width, instances = self.shapes[path.relative_to(self.root).as_posix()]
        mask = np.zeros((height, width), np.uint8)
        for label, segmentation in instances:
            try:
                mask[rasterise(segmentation, height, width)] = label
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        return mask


def read_coco(root: Path | str, *, merged: str = "", block: int = 50) -> MaskIndex:
    """List the images with a class for every category that has masks; the rest is background.

    Args:
        root: see the layouts above.
        merged: name of the one class that all categories are taken as; empty = a class for each.
        block: at most so many frames numbered on form one group.

    Raises:
        UserError: no annotations with their images, or damaged ones.
    """
    root = Path(root)
    notes: list[str] = []
    files = load_annotations(root, notes)
    names = list_categories(files)
    labels = {name: 1 if merged else label for label, name in enumerate(names, start=1)}
    if merged and len(names) > 1:
        notes.append(f"{len(names)} categories taken as one class, {merged}: {', '.join(names)}")
    if not merged and len(names) > MAX_CATEGORIES:
        raise UserError(f"{root}: {len(names)} categories, over {MAX_CATEGORIES}: leave some out")
    rows, decode = list_images(root, files, labels, notes)
    groups = group_neighbours((row.id for row in rows), block=block)
    rows = [row._replace(group=groups[row.id]) for row in rows]
    classes = ("background", *([merged] if merged else names))
    return build_index(root, rows, classes, decode, notes=notes, blocks=True)


def has_annotations(root: Path) -> bool:
    """Tell whether ``root`` looks like one of the layouts."""
    return any(root.glob("*/_annotations.coco.json")) or any(
        root.glob("annotations/instances_*2017.json")
    )


def load_annotations(root: Path, notes: list[str]) -> list[CocoFile]:
    """Load every annotation file below ``root``; boxes without a mask are left out and counted.

    Raises:
        UserError: no file, one that is not COCO JSON, a damaged annotation, or no mask anywhere.
    """
    files: list[CocoFile] = []
    num_boxes = 0
    for path, folder, split in _find_files(root):
        content = _load(path)
        masks = [item for item in content["annotations"] if item.get("segmentation")]
        boxes = [
            _name(item, place)
            for place, item in enumerate(content["annotations"], start=1)
            if not item.get("segmentation")
        ]
        note_missing(notes, f"{path}: annotations without a mask, left out", boxes)
        files.append(CocoFile(path, folder, split, {**content, "annotations": masks}))
        num_boxes += len(boxes)
    if not files:
        raise UserError(f"{root} holds no COCO annotations with their images: see the layouts")
    if not any(file.content["annotations"] for file in files):
        what = f"{num_boxes} boxes but no masks" if num_boxes else "no annotations"
        raise UserError(f"{files[0].path} holds {what}: export the set for segmentation")
    return files


def list_categories(files: Sequence[CocoFile]) -> tuple[str, ...]:
    """Name the categories that have masks, in the order of their ids."""
    names: dict[str, None] = {}
    for file in files:
        used = {item["category_id"] for item in file.content["annotations"]}
        found = {item["id"]: item["name"] for item in file.content["categories"]}
        names |= dict.fromkeys(found[number] for number in sorted(used))
    return tuple(names)


def list_images(
    root: Path, files: Sequence[CocoFile], labels: Mapping[str, int], notes: list[str]
) -> tuple[list[Row], CocoDecoder]:
    """List the images and say how their masks are drawn.

    Args:
        root: that targets are relative to.
        files: from :func:`load_annotations`.
        labels: category name -> label.
        notes: receives what is missing.

    Raises:
        UserError: none of the images is there.
    """
    rows: list[Row] = []
    shapes: dict[str, tuple[int, int, tuple[tuple[int, Any], ...]]] = {}
    for file in files:
        instances = _collect(file.content, labels)
        missing = []
        for image in file.content["images"]:
            path = file.folder / image["file_name"]
            if not path.is_file() or not path.is_relative_to(root):
                missing.append(image["file_name"])
                continue
            target = f"{file.path.relative_to(root).as_posix()}#{image['id']}"
            rows.append(Row(path.stem, path.relative_to(root).as_posix(), target, "", file.split))
            size = int(image["height"]), int(image["width"])
            shapes[target] = (*size, instances.get(image["id"], ()))
        note_missing(notes, f"{file.path.name}: annotated images that are missing", missing)
    if not rows:
        raise UserError(f"{root} holds no COCO annotations with their images: see the layouts")
    return rows, CocoDecoder(root, shapes)


def _find_files(root: Path) -> Iterator[tuple[Path, Path, str]]:
    for name, split in _SPLITS.items():
        file = root / "annotations" / f"instances_{name}2017.json"
        if file.is_file():
            yield file, root / f"{name}2017", split
        file = root / name / "_annotations.coco.json"
        if file.is_file():
            yield file, root / name, split


_NEEDED = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id"),
}


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON ({error}): restore the file") from error
    content = content if isinstance(content, dict) else {}
    missing = [kind for kind in _NEEDED if not isinstance(content.get(kind), list)]
    if missing:
        raise UserError(f"{file} lacks {', '.join(sorted(missing))}: it is no COCO file")
    known = {c["id"] for c in content["categories"] if isinstance(c, dict) and "id" in c}
    for kind, keys in _NEEDED.items():
        for place, item in enumerate(content[kind], start=1):
            fault = _find_fault(item, keys, known)
            if fault:
                which = f"{kind.removesuffix('s').replace('ie', 'y')} {_name(item, place)}"
                raise UserError(f"{file}: {which} has {fault}: mend or remove it")
    return content


def _name(item: Any, place: int) -> str:
    return str(item.get("id", f"number {place}") if isinstance(item, dict) else f"number {place}")


def _find_fault(item: Any, keys: Sequence[str], categories: Collection[int]) -> str:
    """Say what is wrong with an image, annotation or category, "" if nothing is."""
    lacking = [key for key in keys if not isinstance(item, dict) or item.get(key) is None]
    if lacking:
        return f"no {lacking[0]}"
    if item.get("category_id", None) not in {None, *categories}:
        return f"the category {item['category_id']}, which the file does not list"
    shape = item.get("segmentation") or []
    if isinstance(shape, dict):
        return "" if isinstance(shape.get("counts"), list | str) else "run lengths without counts"
    for polygon in shape if isinstance(shape, list) else [shape]:
        if not isinstance(polygon, list) or not {*map(type, polygon)} <= {int, float}:
            return "a segmentation that is no list of polygons"
        if len(polygon) % 2:
            return f"a polygon of {len(polygon)} coordinates, an odd number"
    return ""


def _collect(
    content: Mapping[str, Any], labels: Mapping[str, int]
) -> dict[int, tuple[tuple[int, Any], ...]]:
    names = {item["id"]: item["name"] for item in content["categories"]}
    found: dict[int, list[tuple[float, int, Any]]] = {}
    for item in content["annotations"]:
        label = labels[names[item["category_id"]]]
        entry = (float(item.get("area") or 0), label, item["segmentation"])
        found.setdefault(item["image_id"], []).append(entry)
    return {
        image: tuple((label, shape) for _, label, shape in sorted(items, key=lambda i: -i[0]))
        for image, items in found.items()
    }
