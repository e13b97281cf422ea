"""Kaggle's table of run lengths in, label masks out: a line for each image, or image and class.

``ImageId, EncodedPixels`` (``1 3 10 5``: pixels 1 to 3 and 10 to 14, counted from 1), and what else
contests write: docs/layouts.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from src.classes import is_number
from src.data.columns import ID_NAMES, IMAGE_NAMES, LABEL_NAMES, RUN_NAMES, image_column, pick_name
from src.data.csv_io import first_lines, read_csv
from src.data.decode import decode_image
from src.data.files import Scanner, below, split_of_word
from src.data.finder import ImageFinder
from src.data.root import find_sample, find_split, tables
from src.data.sources.folders import SPLIT_COLUMNS, holds_masks
from src.data.sources.frames import natural_key
from src.data.sources.masks import (
    MaskIndex,
    Row,
    Source,
    build_index,
    image_header,
    note_missing,
    refuse_size,
)
from src.data.sources.places import describe, split_of_name
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd

_RUNS = re.compile("([0-9]{1,12} [0-9]{1,12}( |$))*")  # sums fit 64 bits
_NONE = frozenset({"-1", "nan", "none", "null"})  # cells that mean no mask
_ANY = re.compile(r'(^|[,;\t])"?\d+ \d+ \d+ \d+')  # a line with runs in it
_LOOK_AT = 64  # images, to tell columns from rows
_SEEN = 16  # of these, whose colours are compared
_FAR, _MOSTLY, _LEAST = 2.0, 0.75, 8  # times better, in so many of so many, that colours tell
_NOISE = 0.1  # share that means nothing
_NEAR = 9  # pixels: of a square whose middle is at a mask's edge
_SIDES = ("height", "width")
_FROM_0 = "run lengths start at pixel 0: pixels are counted from 0 on"
Shapes = Mapping[str, tuple[str, tuple[tuple[int, str], ...]]]


@dataclass(frozen=True)
class RunsDecoder:
    """Draw the runs of one image: "train.csv#id" below ``root`` -> (H, W) uint8."""

    root: Path  # the folder that targets are relative to
    shapes: Shapes  # target -> (path of the image, ((label, runs), ...))
    rows: bool  # whether pixels are counted along the rows
    first: int = 1  # number of the first pixel

    def image_of(self, path: Path) -> Path:
        """Return the path of a target's image."""
        return self.root / self.shapes[below(self.root, path)][0]

    def __call__(self, path: Path) -> np.ndarray:
        """Draw the runs; where they overlap the later class wins."""
        image, runs = self.shapes[below(self.root, path)]
        width, height, _ = image_header(self.root / image)
        flat = np.zeros(height * width, np.uint8)
        for label, text in runs:
            pairs = np.array(text.split(), np.int64).reshape(-1, 2)
            pairs[:, 0] -= self.first
            if len(pairs) and (pairs[:, 0].min() < 0 or pairs.sum(axis=1).max() > flat.size):
                raise UserError(
                    f"{path}: runs lie beyond the {width}x{height} pixels of {image}: the image "
                    "must have the size that was drawn on"
                )
            for start, length in pairs:
                flat[start : start + length] = label
        drawn = flat.reshape(height, width) if self.rows else flat.reshape(width, height).T
        return np.ascontiguousarray(drawn)


def read_rle_table(root: Path, *, rows: bool | None = None, merged: str = "") -> MaskIndex:
    """List the images of the table; those of a test folder are to be predicted.

    With ``rows`` pixels are counted along the rows; None = as masks hang together better.
    ``merged`` names the one class that all are taken as; empty = a class for each.

    Raises:
        UserError: no such table, missing images, or cells that are no run lengths.
    """
    path, runs = find_runs(root)
    if path is None:
        raise UserError(f"{root} holds no table with a column EncodedPixels or rle: add it")
    finder = ImageFinder(root, split="train")
    table = read_csv(path)
    texts = _read_runs(table, path, runs)
    ids, classes = _split_ids(table, path, runs, finder)
    notes: list[str] = []
    texts = _settle_starts(texts, notes)
    names = sorted(set(classes), key=natural_key)
    labels = {name: 1 if merged else label for label, name in enumerate(names, start=1)}
    shapes: dict[str, list[tuple[int, str]]] = {}
    for key, cls, text in zip(ids, classes, texts, strict=True):
        shapes.setdefault(key, []).append((labels[cls], text))
    found = {key: finder.find_quietly(key) or finder.find_core(key, whole=True) for key in shapes}
    lost = [key for key, image in found.items() if image is None]
    note_missing(notes, f"{path.name}: images that are missing", lost)
    known = {key: image for key, image in found.items() if image is not None}
    if not known:
        raise UserError(
            f"{path}: none of its images is there, {lost[0]} for instance: found "
            f"{describe(root)}; where files are named otherwise, add a column image of their paths"
        )
    _check_sizes(root, path, table, known, ids, shapes)
    others = finder.num_others([*known.values()])
    if others:
        notes.append(
            f"{counted(others, 'image')} of the train folder without line in {path.name}: not "
            "trained on; for those of background alone add a line with an empty cell"
        )
    targets = {f"{below(root, path)}#{key}": key for key in known}
    drawings = {t: (known[key], tuple(shapes[key])) for t, key in targets.items()}
    decoder = RunsDecoder(root, drawings, rows=bool(rows))
    if rows is None:
        decoder = _settle_order(decoder, notes)
    decoder = _settle_first(decoder, notes)
    _note_overlaps(decoder, notes)
    splits = _read_splits(table, ids)
    index_rows = []
    for target, key in targets.items():
        split = splits.get(key) or "train"
        blind = split == "test" and not any(text for _, text in shapes[key])
        index_rows.append(Row(key, known[key], "" if blind else target, "", split))
    index_rows += _list_test(root) or _list_asked(root, finder, {*known.values()})
    default = ["foreground"] if names == [""] else [_name(name) for name in names]
    all_names = ("background", *([merged] if merged else default))
    return build_index(root, index_rows, all_names, decoder, notes=notes)


def find_runs(root: Path) -> tuple[Path | None, str]:
    """Return the table of run lengths in ``root`` and its column; (None, "") where there is none.

    The sample submission is none, nor a table of the test split.
    """
    sample = find_sample(root)
    for path in tables(root):
        head, first = first_lines(path)
        other = "submission" in path.name.casefold() or split_of_name(path.stem) == "test"
        if path == sample or other or head.count("\0"):
            continue
        cells = [cell.strip('" ') for cell in re.split(r"[,;\t]", head.strip().lstrip("\ufeff"))]
        column = pick_name(cells, RUN_NAMES) or (
            _ANY.search(first) and pick_name(cells, ["annotation", "encoding"])
        )
        if column:
            return path, column
    return None, ""


def _settle_starts(texts: Sequence[str], notes: list[str]) -> list[str]:
    """Return runs by their starts in the image, where most lines have them from run to run."""
    rows = [np.array(text.split(), np.int64).reshape(-1, 2) for text in texts]
    several = [pairs for pairs in rows if len(pairs) > 1]
    back = sum(bool((pairs[1:, 0] < pairs[:-1].sum(axis=1)).any()) for pairs in several)
    if 2 * back > len(several):
        notes.append(
            "starts of the run lengths go back: each is read as the distance from the run before, "
            "from 0 on, as in SIIM-ACR"
        )
        for pairs in rows:
            pairs[:, 0] += np.cumsum(pairs.sum(axis=1)) - pairs.sum(axis=1) + 1
    elif any(((pairs[:, 0] == 0) & (pairs[:, 1] > 0)).any() for pairs in rows):
        notes.append(_FROM_0)
        for pairs in rows:
            pairs[:, 0] += 1
    rows = [pairs[pairs[:, 1] > 0] for pairs in rows]  # "0 0" is no run
    return [" ".join(map(str, pairs.ravel().tolist())) for pairs in rows]


def _read_runs(table: pd.DataFrame, path: Path, runs: str) -> list[str]:
    """Return each line's runs, "" for none; refuse what is no list of runs."""
    texts = [_plain(text) for text in table[runs]]
    for line, text in enumerate(texts, start=2):
        if not _RUNS.fullmatch(text):
            raise UserError(
                f"{path}, line {line}: {text[:30]!r} is no list of runs (start, length, start, "
                "length …): mend it"
            )
    return texts


def _last(text: str) -> int:
    return int(np.array(text.split(), np.int64).reshape(-1, 2).sum(axis=1).max(initial=0))


def _check_sizes(
    root: Path,
    path: Path,
    table: pd.DataFrame,
    known: Mapping[str, str],
    ids: Sequence[str],
    shapes: Mapping[str, Sequence[tuple[int, str]]],
) -> None:
    """Refuse images of another size than the table says, where it does: runs would be askew.

    Where one does not hold its ``shapes``, all are of something else, as of boxes.
    """
    height, width = (pick_name(table.columns, (s, f"img_{s}", f"image_{s}")) for s in _SIDES)
    if height is None or width is None:
        return
    said = dict(zip(ids, zip(table[height], table[width], strict=True), strict=True))
    odd = []
    for key, image in [*known.items()][:: max(1, len(known) // _LOOK_AT)]:
        sides = image_header(root / image)[1::-1]
        if not all(map(is_number, said[key])) or not all(sides):
            continue
        stated = tuple(int(min(abs(float(side)), 1e9)) for side in said[key])
        end = max(_last(text) for _, text in shapes[key])
        if stated[0] * stated[1] < end:
            return
        odd += [(stated, sides, key, image)] * (stated not in (sides, sides[::-1]) and end > 0)
    for stated, sides, key, image in odd:
        refuse_size(stated, sides, f"{path}#{key}", root / image)


def _plain(text: str) -> str:
    """Return runs with one space between numbers, those of a list [1, 3] too; "" for no mask."""
    text = text.strip()
    listed = text[1:-1].replace(",", " ") if text[:1] + text[-1:] == "[]" else text
    words = " ".join(listed.split())
    return "" if words.casefold() in _NONE else words


def _split_ids(
    table: pd.DataFrame, path: Path, runs: str, finder: ImageFinder
) -> tuple[list[str], list[str]]:
    """Return each line's image and class; "" where the table says no class."""
    rest = table.drop(columns=runs)
    usual = pick_name(rest.columns, (*IMAGE_NAMES, *ID_NAMES)) or str(rest.columns[0])
    cells = rest[usual].tolist()
    label = pick_name(rest.columns.drop(usual), LABEL_NAMES)
    if not any(map(finder.finds, cells[:20])):
        heads = [cell.rpartition("_") for cell in cells]
        if label is None and any(finder.finds(head) for head, _, _ in heads[:20]):
            return [head for head, _, _ in heads], [tail for _, _, tail in heads]
        usual = image_column(rest, None, path, finder.finds)
        cells = rest[usual].tolist()
    return cells, rest[label].tolist() if label else [""] * len(cells)


def _name(name: str) -> str:
    return f"class_{name}" if name.isdecimal() else name or "foreground"


def _settle_order(decoder: RunsDecoder, notes: list[str]) -> RunsDecoder:
    """Choose columns or rows: counted the right way, masks have fewer edges.

    Of square images both have as many: the rows are taken where the colours at their masks' edges
    differ far more, else the columns, which most tables count by; a note says so.
    """
    by_rows = replace(decoder, rows=True)
    targets = _some_drawn(decoder)
    sides = (image_header(path)[:2] for path in map(decoder.image_of, targets))
    square = all(width == height for width, height in sides)
    if square:
        few = targets[:: max(1, len(targets) // _SEEN)]
        down, along = ([_contrast(read, path) for path in few] for read in (decoder, by_rows))
        better, told = _tells(along, down), _tells(along, down) or _tells(down, along)
    else:
        better = _edges(by_rows, targets) < _edges(decoder, targets)
    taken = by_rows if better else decoder
    how, other = ("along rows", COLUMNS) if taken.rows else ("down columns", ROWS)
    if square:
        how += ", as the images' colours say" if told else ", a guess, for the images are square"
    notes.append(f"pixels of the run lengths are counted {how}; if not, pass --source {other.name}")
    return taken


def _settle_first(decoder: RunsDecoder, notes: list[str]) -> RunsDecoder:
    """Choose the number of the first pixel, 1 or 0.

    By the wrong one whatever touches a border goes on at the opposite side.
    """
    from_0, targets = replace(decoder, first=0), _some_drawn(decoder)
    try:
        fewer = _edges(from_0, targets) < _edges(decoder, targets)
    except UserError:
        return decoder  # the last pixel would lie beyond
    if fewer:
        notes.append(f"{_FROM_0}, as masks at the borders say")
    return from_0 if fewer else decoder


def _note_overlaps(decoder: RunsDecoder, notes: list[str]) -> None:
    """Add a note where pixels are of several classes, of which a mask holds one."""
    alone = drawn = 0
    for path in _some_drawn(decoder):
        _, runs = decoder.shapes[below(decoder.root, path)]
        drawn += _cover([text for _, text in runs])
        for label in {label for label, _ in runs}:
            alone += _cover([text for own, text in runs if own == label])
    if alone > drawn:
        notes.append(
            f"{alone / drawn - 1:.1%} of the pixels that are drawn are of a further class, too: "
            "the later class counts"
        )


def _cover(texts: Sequence[str]) -> int:
    """Count the pixels that any of the runs holds."""
    pairs = np.array(" ".join(texts).split(), np.int64).reshape(-1, 2)
    starts, lengths = pairs[pairs[:, 0].argsort()].T
    ends = np.maximum.accumulate(starts + lengths)
    before = np.concatenate([starts[:1], ends[:-1]])
    return int(np.maximum(ends - np.maximum(starts, before), 0).sum())


def _some_drawn(decoder: RunsDecoder) -> list[Path]:
    drawn = [target for target, (_, runs) in decoder.shapes.items() if any(t for _, t in runs)]
    return [decoder.root / target for target in drawn[:: max(1, len(drawn) // _LOOK_AT)]]


def _tells(more: Sequence[float], less: Sequence[float]) -> bool:
    lead = np.greater(more, less).mean() if len(more) >= _LEAST else 0
    return bool(lead > _MOSTLY and np.mean(more) > _FAR * np.mean(less) + _NOISE)


def _contrast(decoder: RunsDecoder, path: Path) -> float:
    """Return how far colours differ at both sides of a mask's edge, as a share of their variance.

    Those far off do not count: what lies low is as dark as all the ground.
    """
    mask = decoder(path) > 0
    around = np.ones((_NEAR, _NEAR), np.uint8)
    wide, rest = (cv2.dilate(part.astype(np.uint8), around) > 0 for part in (mask, ~mask))
    if mask.all() or not mask.any():
        return 0.0
    try:
        image = decode_image(decoder.image_of(path))
    except UserError:  # damaged: said when it is trained on
        return 0.0
    inner, outer = image[mask & rest], image[wide & ~mask]
    apart = inner.mean(axis=0) - outer.mean(axis=0)
    return float((apart**2).sum() / (inner.var(axis=0) + outer.var(axis=0) + 1).sum())


def _edges(decoder: RunsDecoder, targets: Sequence[Path]) -> int:
    masks = (np.pad(decoder(path), 1) for path in targets)  # a border of the image is an edge, too
    return sum(int(np.count_nonzero(np.diff(m, axis=axis))) for m in masks for axis in (0, 1))


def _list_test(root: Path) -> Sequence[Row]:
    folder = find_split(root, "test")
    if folder is None:
        return []
    images = Scanner(root).images(below(root, folder))
    return [Row(Path(image).stem, image, "", "", "test") for image in images]


def _list_asked(root: Path, finder: ImageFinder, known: Collection[str]) -> Sequence[Row]:
    """List the images that the sample submission asks for, where they lie among the others."""
    path = find_sample(root)
    try:
        table = read_csv(path) if path else None
        if path is None or table is None or len(table.columns) < 2 or not len(table):
            return []
        ids, _ = _split_ids(table, path, str(table.columns[-1]), finder)
    except UserError:
        return []
    found = {key: finder.find_quietly(key) for key in ids}
    return [Row(key, p, "", "", "test") for key, p in found.items() if p and p not in known]


def _read_splits(table: pd.DataFrame, ids: Sequence[str]) -> dict[str, str]:
    """Return {id: split} as a column says it."""
    column = next((name for name in table.columns if name.casefold() in SPLIT_COLUMNS), None)
    return dict(zip(ids, map(split_of_word, table[column]), strict=True)) if column else {}


def is_rle_table(root: Path) -> bool:
    """Tell whether run lengths lie in ``root``, and no masks that are drawn already."""
    return find_runs(root)[0] is not None and not holds_masks(root)


SOURCE = Source("rle", read_rle_table, is_rle_table)
ROWS = Source("rle_rows", partial(read_rle_table, rows=True))
COLUMNS = Source("rle_columns", partial(read_rle_table, rows=False))
