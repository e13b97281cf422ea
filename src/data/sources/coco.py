"""COCO JSON in (polygons or run lengths, one instance each), label masks out.

Layouts: ``annotations/instances_{split}2017.json`` + ``{split}2017/``, or
``{split}/_annotations.coco.json`` beside its images. Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.sources.masks import Row, note_missing
from src.script import UserError

_SPLITS = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}


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
            mask[rasterise(segmentation, height, width)] = label
        return mask


def read_annotations(
    root: Path, label_of: Callable[[str], int], notes: list[str]
) -> tuple[list[Row], CocoDecoder]:
    """Read every annotation file below ``root``.

    Args:
        root: see the layouts above.
        label_of: category name -> label; 0 leaves the category out.
        notes: receives what is missing.

    Raises:
        UserError: no annotation file, or one that is not COCO JSON.
    """
    rows: list[Row] = []
    shapes: dict[str, tuple[int, int, tuple[tuple[int, Any], ...]]] = {}
    for file, folder, split in _find_files(root):
        content = _load(file)
        labels = {c["id"]: label_of(c["name"]) for c in content["categories"]}
        instances = _collect(content["annotations"], labels)
        missing = []
        for image in content["images"]:
            path = folder / image["file_name"]
            if not path.is_file():
                missing.append(image["file_name"])
                continue
            target = f"{file.relative_to(root).as_posix()}#{image['id']}"
            rows.append(Row(path.stem, path.relative_to(root).as_posix(), target, "", split))
            shapes[target] = (image["height"], image["width"], instances.get(image["id"], ()))
        note_missing(notes, f"{file.name}: annotated images that are missing", missing)
    if not rows:
        raise UserError(f"{root} holds no COCO annotations with their images: see the layouts")
    return rows, CocoDecoder(root, shapes)


def rasterise(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Turn a COCO segmentation (polygons, or plain or compressed run lengths) into bool (H, W)."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return _fill_runs(_unpack(counts) if isinstance(counts, str) else counts, height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= fill_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    return mask


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill a polygon by the even-odd rule: a pixel belongs if its centre lies inside.

    Args:
        points: (P, 2) of x, y; pixel (0, 0) covers 0..1 in both.
        height: rows of the result.
        width: columns of the result.

    Returns:
        bool (H, W).
    """
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    # Rows whose centre line an edge crosses: first <= row < last (an edge along a row has none).
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    num_rows = last - first
    edge = np.repeat(np.arange(len(points)), num_rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows) + first[edge]
    slope = (x1 - x0)[edge] / np.where(y1 == y0, 1, y1 - y0)[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * slope
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), np.int64)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def _fill_runs(counts: Iterable[int], height: int, width: int) -> np.ndarray:
    runs = np.asarray(list(counts), np.int64)
    if runs.sum() != height * width or (runs < 0).any():
        raise UserError(f"COCO run lengths do not add up to {width}x{height} pixels: re-export")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack(text: str) -> list[int]:
    """Unpack COCO's compressed counts: 5 bits a character.

    From the fourth on a count is stored as its difference from the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:  # negative
            value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _find_files(root: Path) -> Iterator[tuple[Path, Path, str]]:
    for name, split in _SPLITS.items():
        file = root / "annotations" / f"instances_{name}2017.json"
        if file.is_file():
            yield file, root / f"{name}2017", split
        file = root / name / "_annotations.coco.json"
        if file.is_file():
            yield file, root / name, split


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON ({error}): restore the file") from error
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise UserError(f"{file} lacks {', '.join(sorted(missing))}: it is no COCO file")
    return content


def _collect(
    annotations: Iterable[Mapping[str, Any]], labels: Mapping[int, int]
) -> dict[int, tuple[tuple[int, Any], ...]]:
    found: dict[int, list[tuple[float, int, Any]]] = {}
    for item in annotations:
        label = labels.get(item["category_id"], 0)
        if label:
            entry = (float(item.get("area", 0)), label, item["segmentation"])
            found.setdefault(item["image_id"], []).append(entry)
    return {
        image: tuple((label, shape) for _, label, shape in sorted(items, key=lambda i: -i[0]))
        for image, items in found.items()
    }
