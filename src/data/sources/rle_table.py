"""Kaggle's table of run lengths in, label masks out: a line for each image, or image and class.

``ImageId, EncodedPixels`` (``1 3 10 5``: pixels 1 to 3 and 10 to 14, counted from 1), and what else
contests write: docs/layouts.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.data.columns import ID_NAMES, IMAGE_NAMES, LABEL_NAMES, RUN_NAMES, image_column, pick_name
from src.data.csv_io import first_lines, read_csv
from src.data.files import Scanner, below
from src.data.finder import ImageFinder
from src.data.root import find_sample, find_split, tables
from src.data.sources.folders import holds_masks
from src.data.sources.frames import natural_key
from src.data.sources.masks import MaskIndex, Row, Source, build_index, image_header, note_missing
from src.data.sources.places import describe
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd

_RUNS = re.compile("([0-9]{1,12} [0-9]{1,12}( |$))*")  # sums fit 64 bits
_NONE = frozenset({"-1", "nan", "none", "null"})  # cells that mean no mask
_ANY = re.compile(r'(^|[,;\t])"?\d+ \d+ \d+ \d+')  # a line with runs in it
_LOOK_AT = 64  # images, to tell columns from rows
Shapes = Mapping[str, tuple[str, tuple[tuple[int, str], ...]]]


@dataclass(frozen=True)
class RunsDecoder:
    """Draw the runs of one image: "train.csv#id" below ``root`` -> (H, W) uint8."""

    root: Path  # the folder that targets are relative to
    shapes: Shapes  # target -> (path of the image, ((label, runs), ...))
    rows: bool  # whether pixels are counted along the rows

    def __call__(self, path: Path) -> np.ndarray:
        """Draw the runs; where they overlap the later class wins."""
        image, runs = self.shapes[below(self.root, path)]
        width, height, _ = image_header(self.root / image)
        flat = np.zeros(height * width, np.uint8)
        for label, text in runs:
            pairs = np.array(text.split(), np.int64).reshape(-1, 2)
            if len(pairs) and (pairs[:, 0].min() < 1 or pairs.sum(axis=1).max() - 1 > flat.size):
                raise UserError(
                    f"{path}: runs lie beyond the {width}x{height} pixels of {image}: the image "
                    "must have the size that was drawn on"
                )
            for start, length in pairs:
                flat[start - 1 : start - 1 + length] = label
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
    ids, classes, texts = _read_lines(path, runs, finder)
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
    index_rows = [Row(key, known[key], t, "", "train") for t, key in targets.items()]
    index_rows += _list_test(root)
    default = ["foreground"] if names == [""] else [_name(name) for name in names]
    all_names = ("background", *([merged] if merged else default))
    return build_index(root, index_rows, all_names, decoder, notes=notes)


def find_runs(root: Path) -> tuple[Path | None, str]:
    """Return the table of run lengths in ``root`` and its column; (None, "") where there is none.

    The sample submission is none.
    """
    sample = find_sample(root)
    for path in tables(root):
        head, first = first_lines(path)
        if path == sample or "submission" in path.name.casefold() or head.count("\0"):
            continue
        cells = [cell.strip('" ') for cell in re.split(r"[,;\t]", head.strip().lstrip("\ufeff"))]
        column = pick_name(cells, RUN_NAMES) or (
            _ANY.search(first) and pick_name(cells, ["annotation"])
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
        notes.append("run lengths start at pixel 0: pixels are counted from 0 on")
        for pairs in rows:
            pairs[:, 0] += 1
    rows = [pairs[pairs[:, 1] > 0] for pairs in rows]  # "0 0" is no run
    return [" ".join(map(str, pairs.ravel().tolist())) for pairs in rows]


def _read_lines(
    path: Path, runs: str, finder: ImageFinder
) -> tuple[list[str], list[str], list[str]]:
    """Return each line's image, class and runs, "" for none; refuse what is no list of runs."""
    table = read_csv(path)
    texts = [_plain(text) for text in table[runs]]
    for line, text in enumerate(texts, start=2):
        if not _RUNS.fullmatch(text):
            raise UserError(
                f"{path}, line {line}: {text[:30]!r} is no list of runs (start, length, start, "
                "length …): mend it"
            )
    return *_split_ids(table, path, runs, finder), texts


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

    Of square images both have as many, and columns are taken, with a note.
    """
    by_rows = RunsDecoder(decoder.root, decoder.shapes, rows=True)
    drawn = [target for target, (_, runs) in decoder.shapes.items() if any(t for _, t in runs)]
    targets = [decoder.root / target for target in drawn[:: max(1, len(drawn) // _LOOK_AT)]]
    down, along = (sum(_edges(read(target)) for target in targets) for read in (decoder, by_rows))
    taken = by_rows if along < down else decoder
    how, other = ("along rows", "rle") if taken.rows else ("down columns", "rle_rows")
    notes.append(f"pixels of the run lengths are counted {how}; if not, pass --source {other}")
    return taken


def _edges(mask: np.ndarray) -> int:
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def _list_test(root: Path) -> Sequence[Row]:
    folder = find_split(root, "test")
    if folder is None:
        return []
    images = Scanner(root).images(below(root, folder))
    return [Row(Path(image).stem, image, "", "", "test") for image in images]


def is_rle_table(root: Path) -> bool:
    """Tell whether run lengths lie in ``root``, and no masks that are drawn already."""
    return find_runs(root)[0] is not None and not holds_masks(root)


SOURCE = Source("rle", read_rle_table, is_rle_table)
ROWS = Source("rle_rows", partial(read_rle_table, rows=True))
