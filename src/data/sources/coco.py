"""COCO JSON reader: polygons or run lengths, one instance each, drawn as label masks.

Layouts: docs/layouts.md. Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.files import below
from src.data.sources.annotations import USUAL, CocoFile, Segmentation, find_json, load_annotations
from src.data.sources.folders import holds_masks
from src.data.sources.frames import group_rows
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    note_missing,
)
from src.data.sources.names import Locator, split_by_lists
from src.data.sources.places import describe, list_below, read_place
from src.files import Json
from src.script import UserError


def rasterise(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """Turn a COCO segmentation (polygons, or plain or compressed run lengths) into bool (H, W)."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return _fill_runs(_unpack(counts) if isinstance(counts, str) else counts, height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= fill_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    return mask


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill a polygon by the even-odd rule, bool (H, W): a pixel belongs if its centre lies inside.

    ``points`` (P, 2) are x, y; pixel (0, 0) covers 0..1 in both.
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


def to_runs(mask: np.ndarray) -> Json:
    """Write a mask bool (H, W) as COCO's run lengths, down the columns and background first."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *edges.tolist(), mask.size]).tolist()}


def _fill_runs(counts: Iterable[int], height: int, width: int) -> np.ndarray:
    counts = list(counts)  # summed as Python's numbers, which do not wrap
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise UserError(f"COCO run lengths do not add up to {width}x{height} pixels: re-export")
    runs = np.asarray(counts, np.int64)
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


MAX_CATEGORIES = 254  # of a uint8 mask with background and void
Shapes = dict[str, tuple[int, int, tuple[tuple[int, Segmentation], ...]]]


@dataclass(frozen=True)
class CocoDecoder:
    """Rasterise the instances of one image: "file.json#image id" below ``root`` -> (H, W) uint8."""

    root: Path  # the folder that targets are relative to
    # target -> (height, width, ((label, segmentation), ...)), large instances first, so that
    # a scratch on a dent stays visible
    shapes: Shapes

    def __call__(self, path: Path) -> np.ndarray:
        """Draw the instances; where they overlap the smaller one wins."""
        height, width, instances = self.shapes[below(self.root, path)]
        mask = np.zeros((height, width), np.uint8)
        for label, segmentation in instances:
            try:
                mask[rasterise(segmentation, height, width)] = label
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        return mask


def read_coco(root: Path, *, merged: str = "") -> MaskIndex:
    """List the images with a class for every category that has masks; the rest is background.

    ``merged`` names the one class that all categories are taken as; empty = a class for each.

    Raises:
        UserError: no annotations with their images, or damaged ones.
    """
    notes: list[str] = []
    return index_files(root, load_annotations(root, notes), notes, merged)


def index_files(root: Path, files: Sequence[CocoFile], notes: list[str], merged: str) -> MaskIndex:
    """Index the images of ``files``, as :func:`read_coco` says."""
    names = list_categories(files)
    labels = {name: 1 if merged else label for label, name in enumerate(names, start=1)}
    if merged and len(names) > 1:
        notes.append(f"{len(names)} categories taken as one class, {merged}: {', '.join(names)}")
    if not merged and len(names) > MAX_CATEGORIES:
        raise UserError(f"{root}: {len(names)} categories, over {MAX_CATEGORIES}: leave some out")
    rows, decode = list_images(root, files, labels, notes)
    if not any(row.split for row in rows):
        rows = split_by_lists(root, rows, notes)
    classes = ("background", *([merged] if merged else names))
    return build_index(root, group_rows(rows), classes, decode, notes=notes, blocks=True)


def is_coco(root: Path) -> bool:
    """Tell whether COCO JSON lies below ``root``; a file of no usual name yields to masks."""
    files = find_json(root, "coco")
    return bool(files) and (any(map(files[0].match, USUAL)) or not holds_masks(root))


def list_categories(files: Sequence[CocoFile]) -> tuple[str, ...]:
    """Name the categories that have masks."""
    return tuple(dict.fromkeys(name for file in files for name in file.categories))


def list_images(
    root: Path, files: Sequence[CocoFile], labels: Mapping[str, int], notes: list[str]
) -> tuple[list[Row], CocoDecoder]:
    """List the images and say how their masks are drawn.

    Images of a test folder that no file lists are to be predicted. Targets are relative to
    ``root``; ``labels`` are by category; ``notes`` receive what is missing.

    Raises:
        UserError: none of the images is there, none of those has an annotation, or one is in two
            files.
    """
    rows: list[Row] = []
    shapes: Shapes = {}
    locator = Locator(root)
    listed_in: dict[str, Path] = {}
    for file in files:
        missing = []
        for image in file.pictures:
            place = locator.find(image.name, _folders(root, file), file.split)
            if place is None:
                missing.append(image.name)
                continue
            other = listed_in.setdefault(place, file.path)
            if len(listed_in) == len(rows):
                raise UserError(
                    f"{other} lists {place} under two names or ids: leave one, with all annotations"
                    if other == file.path
                    else f"{place} is listed in {other} and in {file.path}: remove one of the "
                    "files, or the entry"
                )
            target = f"{below(root, file.path)}#{image.id}"
            split = file.split or read_place(place.split("/")[:-1]).split
            rows.append(Row(Path(place).stem, place, target, "", split))
            shapes[target] = *image.size, tuple((labels[name], s) for name, s in image.drawn)
        note_missing(notes, f"{file.path.name}: annotated images that are missing", missing)
    if not rows:
        raise UserError(
            f"{files[0].path} lists images such as {missing[0] if missing else 'none'}, but none "
            f"lies below {root}: found {describe(root)}; put them beside the file or in images/"
        )
    if not any(drawn for _, _, drawn in shapes.values()):
        raise UserError(
            f"{files[0].path}: no annotation belongs to an image that is there, as "
            f"{rows[0].image}: restore the missing images, or export again"
        )
    rows += _list_unlabelled(root, rows)
    return _name_apart(rows), CocoDecoder(root, shapes)


def _folders(root: Path, file: CocoFile) -> list[Path]:
    """Return where a file's images lie by custom, likeliest first."""
    name = re.sub("^instances_", "", file.path.stem)
    base = file.folder.parent if file.folder != root else root
    return [
        *(file.folder, file.folder / "images", base / name, base / "images" / name),
        *(base / "images", root),
    ]


def _list_unlabelled(root: Path, rows: Sequence[Row]) -> list[Row]:
    """List the images of a test folder where no annotation file is of the test split."""
    if any(row.split == "test" for row in rows):
        return []
    known = {row.image for row in rows}
    found = (
        Row(path.stem, below(root, path), "", "", "test")
        for place, path in list_below(root, IMAGE_SUFFIXES)
        if place.split == "test" and place.kind != "mask"
    )
    return [row for row in found if row.image not in known]


def _name_apart(rows: list[Row]) -> list[Row]:
    """Put folders in front of the ids where two images of one split have one name."""
    count = Counter((row.split, row.id) for row in rows)
    if max(count.values()) == 1:
        return rows
    rests = (read_place(row.image.split("/")[:-1]).rest for row in rows)
    return [
        row._replace(id="/".join((*rest, row.id))) for row, rest in zip(rows, rests, strict=True)
    ]


SOURCE = Source("coco", read_coco, is_coco)
