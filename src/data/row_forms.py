"""Training tables in other forms than a line an image: long ones, repeats, columns of splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.classes import SEPARATOR, split_lines
from src.data.columns import is_hot, says_no, says_yes, words_of
from src.data.finder import ImageFinder
from src.data.label_sets import Targets
from src.data.root import read_name
from src.data.splits import split_of_word
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd

_FOLDS = frozenset({"fold", "folds", "kfold", "kfolds"})
_SHORT = {"tr": "train", "trainval": "train", "te": "test", "ts": "test", "va": "valid"}
_SPLIT_COLUMNS = frozenset({
    *("split", "set", "subset", "partition", "phase", "usage", "mode", "dataset"),
})  # fmt: skip


def widen(table: pd.DataFrame, finder: ImageFinder) -> pd.DataFrame:
    """Turn a line for each image and class (``7_rust``, 0 or 1) into one an image.

    Args:
        table: of two columns, where it is such a table.
        finder: of the images.
    """
    import pandas as pd

    if table.shape[1] != 2 or not is_hot(table, [table.columns[1]]):
        return table
    if finder.finds(str(table.iat[0, 0])):
        return table
    names = finder.names()
    long = split_lines(table.iloc[:, 0].tolist(), names)
    if long is None:
        return table
    classes, places = long
    rows = list(dict.fromkeys(row for row, _ in places))
    number = {row: place for place, row in enumerate(rows)}
    hot = np.zeros((len(rows), len(classes)), np.int64)
    for (row, column), cell in zip(places, table.iloc[:, 1], strict=True):
        hot[number[row], column] = says_yes(cell)
    wide = pd.DataFrame(hot, columns=classes).astype(str)
    wide.insert(0, "id", pd.Series([names[row] for row in rows], dtype=str))
    return wide


def leave_splits_out(
    table: pd.DataFrame, path: Path, wanted: Sequence[str | None] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Return a table without the rows of the test split, and without columns of splits and folds.

    Such a column is called ``split``, ``is_test``, ``fold`` or alike.

    Args:
        table: the rows of ``path``.
        path: for the notes.
        wanted: columns that the user named, which stay.
    """
    notes = []
    for name in [name for name in table.columns if name not in wanted]:
        words = words_of(name)
        if _FOLDS.intersection(words) and table.shape[1] > 2:
            notes.append(f"{path.name}: {name} is not used: folds are made here, see folds.csv")
            table = table.drop(columns=name)
            continue
        flag = split_of_word(words[1]) if words[:1] == ["is"] and len(words) == 2 else ""
        if not (flag or _SPLIT_COLUMNS.intersection(words)) or table.shape[1] < 3:
            continue
        split = {cell: _read_split(cell, flag) for cell in set(table[name])}
        if "" in split.values():
            if len(split) < 6 and words in (["split"], ["subset"], ["partition"]):
                notes.append(f"{path.name}: {name} is not used: it does not say train and test")
            continue
        said = table[name].map(split)
        if (said == "test").any() and (said != "test").any():
            notes.append(
                f"{path.name}: {(said == 'test').sum()} rows whose {name} is test are not trained "
                "on; to predict them, write their lines to test.csv"
            )
            table = table[said != "test"].reset_index(drop=True)
        if (said == "valid").any():
            notes.append(
                f"{path.name}: {(said == 'valid').sum()} rows whose {name} is valid are trained on "
                "too, for the folds hold out images of their own"
            )
        table = table.drop(columns=name)
    return table, notes


def _read_split(cell: str, flag: str) -> str:
    """Return the split that a cell names; ``flag`` is the one that 1 means, if any."""
    if not flag:
        return read_name(cell)[0] or _SHORT.get(cell.strip().casefold(), "")
    if says_yes(cell):
        return flag
    return ("test" if flag == "train" else "train") if says_no(cell) else ""


def join_lines(
    images: Sequence[str], found: Targets, table: pd.DataFrame, path: Path
) -> tuple[list[int], Targets, str]:
    """Return the first line of each image, the targets of those, and a note.

    Args:
        images: of each line.
        found: of each line; of several labels an image, they become those of all its lines.
        table: the lines.
        path: for messages.

    Raises:
        UserError: one class an image, and lines that say several; or lines that say no.
    """
    lines: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        lines.setdefault(image, []).append(row)
    sets = [sorted({found.names[row] for row in rows}) for rows in lines.values()]
    odd = next((k for k, names in enumerate(sets) if len(names) > 1), None)
    if odd is not None and not found.labels:
        image, shown = list(lines)[odd], ", ".join(sets[odd][:3])
        raise UserError(
            f"{path} has lines of {image} with different labels ({shown}): ids must be unique, so "
            "leave the right one, or where an image has several labels pass --metric f1_samples, "
            "mean_auc or map"
        )
    denied = [name for name in table.columns if name not in found.columns
              and is_hot(table, [name]) and table[name].nunique() > 1]  # fmt: skip
    if odd is not None and denied:
        raise UserError(
            f"{path} has several lines an image, of which some may say no ({denied[0]} is 0): "
            "remove those, and that column"
        )
    if found.labels:
        sets = [sorted({*SEPARATOR.join(names).split(SEPARATOR)} - {""}) for names in sets]
    names = [SEPARATOR.join(names) for names in sets]
    note = f"{path.name}: {len(images) - len(lines)} lines name an image again: joined"
    return [rows[0] for rows in lines.values()], replace(found, names=names), note
