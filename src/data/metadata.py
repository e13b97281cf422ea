"""Metadata of photographs: further columns of train.csv and test.csv, joined to the images.

Age, sex, camera, hour: what a competition's tables say of an image beside its label. Columns that
name rows, images, labels or groups, and those that the test table lacks, are left out by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.classes import nfc
from src.data.columns import (
    FOLDER_NAMES,
    ID_NAMES,
    IMAGE_NAMES,
    looks_like_image,
    numbers_rows,
    pick_name,
    words_of,
)
from src.data.csv_io import is_unnamed, read_csv
from src.data.index import Index
from src.data.root import find_annotations, find_split, find_split_table
from src.data.sample import id_stem
from src.data.tables import find_train_table
from src.script import UserError, nearest

MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "?", "<na>"})
_NAMES_ROWS = frozenset({"id", "ids", "uuid", "index", "idx", "url", "path", "file", "filename"})
FEW_WORDS = 10  # that are no free text, however few rows there are
_SPLITS = frozenset({"fold", "folds", "kfold", "split", "subset"})


@dataclass(frozen=True)
class Metadata:
    """Columns of the images' tables, row for row with an index."""

    numbers: tuple[str, ...]  # columns of numbers
    words: tuple[str, ...]  # columns of categories
    train: pd.DataFrame  # N rows: numbers as float64, words as text, what is missing as NaN
    test: pd.DataFrame  # T rows of the same columns
    left_out: dict[str, str]  # column → why it is not used
    notes: tuple[str, ...]  # what else deserves saying aloud

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that are used."""
        return (*self.numbers, *self.words)

    @property
    def lines(self) -> list[str]:
        """What is used and what is not, for people."""
        said = [f"{name} ({'number' if name in self.numbers else 'category'})"
                for name in self.columns]  # fmt: skip
        left = [f"{name} ({why})" for name, why in self.left_out.items()]
        lines = [f"columns used: {', '.join(said) or 'none'}"]
        return [*lines, *([f"left out: {', '.join(left)}"] if left else []), *self.notes]

    @property
    def mark(self) -> str:
        """Name the content of the columns that are used."""
        digest = hashlib.sha256(repr((self.numbers, self.words)).encode())
        for table in (self.train, self.test):
            digest.update(table.to_csv(index=False, lineterminator="\n").encode())
        return digest.hexdigest()[:16]


def read_metadata(
    train: Index, test: Index, *, columns: Sequence[str] = (), table: str = "", test_table: str = ""
) -> Metadata:
    """Read the columns that the tables of train and test images share, as far as they are inputs.

    ``columns`` are names to use; none = all that are no id, path, label, group or constant.
    ``table`` and ``test_table`` are CSVs of which one column has the ids or file names of the
    images; empty = the ``train.csv`` and ``test.csv`` of the data.

    Raises:
        UserError: no table, no column that names the images, a wanted column that cannot be used.
    """
    paths = _find(train.root, "train", table), _find(test.root, "test", test_table)
    found = [_join(path, index) for path, index in zip(paths, (train, test), strict=True)]
    (known, key, rows), (unseen, test_key, test_rows) = found
    taken = dict.fromkeys((key, test_key, *train.taken), "names images, labels or groups")
    left_out = {
        name: why for name in known.columns
        if (why := taken.get(name) or _why_not(name, known[name], unseen, train))
    }  # fmt: skip
    hard = {name: why for name, why in left_out.items() if name in taken or name not in unseen}
    for name in columns:
        if name not in known.columns:
            raise UserError(
                f"--columns {name}: {paths[0]} has no such column{nearest(name, known.columns)}"
            )
        if name in hard:
            raise UserError(f"--columns {name}: {hard[name]}: leave it out of --columns")
    wanted = list(columns) or [name for name in known.columns if name not in left_out]
    numbers = tuple(name for name in wanted if _is_numeric(known[name]))
    words = tuple(name for name in wanted if name not in numbers)
    tables: list[pd.DataFrame] = []
    for source, place in ((known, rows), (unseen, test_rows)):
        cells = {name: _take(source[name], place, name in numbers) for name in (*numbers, *words)}
        tables.append(pd.DataFrame(cells, index=range(len(place))))
    notes = [
        f"{int((place < 0).sum())} of {len(place)} images are not in {path.name}: their columns "
        "are missing values"
        for path, place in zip(paths, (rows, test_rows), strict=True) if (place < 0).any()
    ]  # fmt: skip
    shown = {name: why for name, why in left_out.items() if name not in (*wanted, *taken)}
    return Metadata(numbers, words, tables[0], tables[1], shown, tuple(notes))


def _find(root: Path, split: str, given: str) -> Path:
    flag = "--table" if split == "train" else "--test_table"
    if given:
        path = next((p for p in (Path(given), root / given) if p.is_file()), None)
        if path is None:
            raise UserError(f"{flag} {given}: no such file")
        return path
    path = (
        find_train_table(root, find_split(root, split))
        if split == "train"
        else find_split_table(root, split) or find_annotations(root, split)
    )
    if path is None:
        raise UserError(
            f"{root} has no {split}.csv to take columns from: name the table with {flag}"
        )
    return path


def _join(path: Path, index: Index) -> tuple[pd.DataFrame, str, np.ndarray]:
    """Return the table, the column that names the images, and each image's row in it, -1 = none.

    Names are compared as they stand, else without folders and endings of files.
    """
    table = read_csv(path)
    first = str(table.columns[0]) if len(table.columns) else ""
    usual = [pick_name(table.columns, names) for names in (ID_NAMES, IMAGE_NAMES)]
    images = [name for name in table.columns if table[name].head(100).map(looks_like_image).all()]
    forms: tuple[Callable[[str], str], ...] = (lambda cell: nfc(cell).strip(), id_stem)
    best, best_key = np.full(len(index), -1), first
    for name in dict.fromkeys([name for name in (*usual, *images, first) if name]):
        for form in forms:
            place = {form(cell): row for row, cell in enumerate(table[name].tolist())}
            if len(place) < len(table):
                continue
            for column in ("id", "image"):
                cells = index.table[column].tolist()
                rows = np.array([place.get(form(cell), -1) for cell in cells])
                if (rows >= 0).sum() > (best >= 0).sum():
                    best, best_key = rows, name
            if (best >= 0).all():
                return table, best_key, best
    if not (best >= 0).any():
        raise UserError(
            f"{path}: no column holds the ids or file names of the images, each once, as "
            f"{index.table['id'].iat[0]!r}: add one"
        )
    return table, best_key, best


def _why_not(name: str, cells: pd.Series, unseen: pd.DataFrame, train: Index) -> str:
    """Return why a column is no input, "" where it is one."""
    values = _values(cells)
    present = values.dropna()
    if name not in unseen.columns:
        return "not in the test table"
    if present.nunique() < 2:
        return "constant"
    asked = _values(unseen[name]).dropna()
    if not len(asked):
        return "empty in the test table"
    words = set(words_of(name))
    if words & _SPLITS:
        return "a split"
    usual = (*ID_NAMES, *IMAGE_NAMES, *FOLDER_NAMES)
    named = is_unnamed(name) or words & _NAMES_ROWS or pick_name([name], usual)
    if named or numbers_rows(cells) or looks_like_image(str(present.iat[0])):
        return "an id or path"
    different = present.nunique()
    hardly = different == len(present) or different > max(len(present) / 2, FEW_WORDS)
    if hardly and not _is_numeric(cells):
        return "text that hardly repeats"
    if asked.isin(present).mean() < 0.5 and not _is_numeric(cells):
        return "most of its words in the test table are not in the training table"
    return ""


def _values(cells: pd.Series) -> pd.Series:
    """Return cells as text without blanks around, NaN where nothing is said."""
    text = cells.astype(str).str.strip().astype(object)
    text = text.mask(text.str.casefold().isin(MISSING), np.nan)
    said = text.dropna()
    commas = (
        said.str.fullmatch(r"-?\d+(,\d+)?(e-?\d+)?").all()
        and said.str.contains(r",(?!\d{3}$)").any()
    )
    return text.str.replace(",", ".") if commas else text  # 1,5 of a spreadsheet


def _is_numeric(cells: pd.Series) -> bool:
    """Tell whether all cells that say anything are finite numbers."""
    numbers = pd.to_numeric(_values(cells).dropna(), errors="coerce")
    return bool(np.isfinite(numbers.astype(float)).all())


def _take(cells: pd.Series, rows: np.ndarray, number: bool) -> np.ndarray:
    """Return the values at ``rows``, NaN where a row is -1."""
    values = _values(cells)
    if number:
        values = pd.to_numeric(values, errors="coerce").astype(float)
        values = values.where(np.isfinite(values))
    taken = values.to_numpy(dtype=float if number else object, copy=True)[np.maximum(rows, 0)]
    taken[rows < 0] = np.nan
    return taken
