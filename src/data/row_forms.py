"""Training tables in other forms than a line an image: long ones, and those that say the split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.classes import split_lines
from src.data.columns import is_hot, says_yes
from src.data.files import ImageFinder
from src.data.root import read_name

if TYPE_CHECKING:
    import pandas as pd

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


def leave_test_out(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return a table without the rows that a column such as ``split`` says are of the test split.

    Args:
        table: the rows of ``path``.
        path: for the note, which comes second.
    """
    for name in table.columns:
        if not _SPLIT_COLUMNS.intersection(name.casefold().replace("_", " ").split()):
            continue
        split = {cell: read_name(cell)[0] for cell in set(table[name])}
        if "" in split.values() or not {"train", "test"} <= set(split.values()):
            continue
        kept = table[name].map(split) != "test"
        said = (
            f"{path.name}: {len(table) - kept.sum()} rows whose {name} is test are not trained on; "
            "to predict them, write their lines to test.csv"
        )
        return table[kept].reset_index(drop=True), [said]
    return table, []
