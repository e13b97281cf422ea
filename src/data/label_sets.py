"""Labels of a competition's CSV: one class a row, or several labels an image where they are found.

Several labels stand in columns of 0 and 1, or in one cell (``a b``, ``a|b``, ``a, b``, ``[1, 4]``).
Columns say it themselves: some row has none or several. A cell does where it is a list, where the
sample submission's columns are its words or the sample's cells hold several, or where the metric is
one of several labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import SEPARATOR, nfc
from src.data.columns import (
    find_label,
    free_columns,
    has_label,
    is_hot,
    read_labels,
    says_yes,
)
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = ("|", ";", ",")  # before blanks
_JOINTS = ("+", "/", "&")  # where each part is a label of its own elsewhere
_LIST = re.compile(r"\s*[\[{](.*)[\]}]\s*", re.DOTALL)
_SIGNS = frozenset({"0", "0.0", "1", "1.0"})
_BETWEEN = frozenset({"", "-1", "-1.0"})  # not mentioned, uncertain
_NONE = frozenset({"", "nan", "none", "null"})


@dataclass(frozen=True)
class Targets:
    """What a table says of its rows' classes.

    Attributes:
        columns: where it says it.
        said: the same, for people.
        names: (N,) class names in NFC, or labels joined by ``|``.
        labels: the K labels where an image may have several, sorted; () = one class each.
        notes: what deserves saying aloud.
    """

    columns: tuple[str, ...]
    said: str
    names: list[str]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_targets(
    table: pd.DataFrame,
    wanted: str | None,
    others: Sequence[str | None],
    path: Path,
    asked: Sequence[str] = (),
    shown: Sequence[str] = (),
    *,
    several: bool = False,
    repeats: bool = False,
) -> Targets:
    """Find and read the label's column, or the columns and cells of several labels.

    Args:
        table: the rows of ``path``.
        wanted: the column that the user named.
        others: columns that are taken.
        path: for messages.
        asked: the columns that the sample submission asks for.
        shown: the cells of its one column.
        several: whether the metric is one of several labels an image.
        repeats: whether an image has several lines, which then say one label each.

    Raises:
        UserError: no label is found.
    """
    columns = [] if wanted else _hot_columns(table, others, asked, several=several)
    if columns:
        return _read_hot(table, columns, path)
    if not wanted:
        _refuse_shares(table, others, asked, path, least=3)
    try:
        found, why = find_label(table, wanted, others, path, asked, shown)
    except UserError:
        _refuse_shares(table, others, asked, path, least=2)
        raise
    if len(found) == 1:
        cells = table[found[0]].tolist()
        sets = _read_cells(cells, asked, shown, several=several)
        sets = [[nfc(cell).strip()] for cell in cells] if several and repeats and not sets else sets
        if sets is not None:
            said = f"{found[0]}{why}, several labels a cell"
            return _from_sets(sets, tuple(found), said, path)
        if several:
            raise UserError(
                f"{path}: column {found[0]} has one class in each cell, and --metric is for several"
                " labels an image: choose accuracy, macro_f1 or auc, or name the column of labels "
                "with --label_column"
            )
    label = found[0] if len(found) == 1 else f"the one of {', '.join(found)} that is 1"
    names, notes = read_labels(table, found)
    return Targets(tuple(found), label + why, names, notes=tuple(notes))


def _refuse_shares(
    table: pd.DataFrame,
    others: Sequence[str | None],
    asked: Sequence[str],
    path: Path,
    *,
    least: int,
) -> None:
    """Raise a UserError where ``least`` columns of classes hold shares, or more than 0 and 1."""
    free = free_columns(table, others)
    of_sample = len(asked) > 1 and set(asked) <= set(free)
    if not of_sample and has_label(table, others, asked):
        return
    names = list(asked) if of_sample else free
    cells = {name: set(table[name].str.strip()) for name in names}
    signs = [name for name in names if cells[name] - _SIGNS and cells[name] <= _SIGNS | _BETWEEN]
    odd = sorted({cell for name in signs for cell in cells[name]} - _SIGNS)
    least = 2 if of_sample else least
    if len(signs) >= least and (
        of_sample or {"1", "1.0"} & set().union(*(cells[n] for n in signs))
    ):
        raise UserError(
            f"{path}: columns {', '.join(signs[:3])} … hold {odd[0]!r} beside 0 and 1: write 0 or "
            "1 in each cell, and pass --metric mean_auc (several labels an image)"
        )
    shares = [name for name in names if all(map(_is_share, cells[name]))]
    if (
        len(shares) >= least
        and (of_sample or len(shares) == len(names))
        and not is_hot(table, shares)
    ):
        raise UserError(
            f"{path}: columns {', '.join(shares[:3])} … hold shares of the classes, and one class "
            "an image is learned here: write the name of each line's largest in a column label, "
            f"and leave these out of {path.name}"
        )


def _is_share(cell: str) -> bool:
    try:
        return 0 <= float(cell.replace(",", ".")) <= 1
    except ValueError:
        return False


def _hot_columns(
    table: pd.DataFrame, others: Sequence[str | None], asked: Sequence[str], *, several: bool
) -> list[str]:
    """Return the columns of 0 and 1 that are labels of which a row has several, or none.

    They are those that the sample asks for; else all columns that are left, unless one of them is
    the label.
    """
    columns = free_columns(table, others)
    if len(asked) > 1 and set(asked) <= set(columns) and is_hot(table, asked):
        columns = list(asked)
    else:
        columns = [name for name in columns if is_hot(table, [name]) or not several]
        if len(columns) < 2 or not is_hot(table, columns) or has_label(table, others, asked):
            return []
    once = table[columns].map(says_yes).sum(axis=1).eq(1).all()
    return [] if once and not several else columns


def _read_hot(table: pd.DataFrame, columns: Sequence[str], path: Path) -> Targets:
    hot = table[list(columns)].map(says_yes).to_numpy()
    odd = (hot.sum(axis=1) != 1).nonzero()[0]
    sets = [[nfc(columns[k]) for k in row.nonzero()[0]] for row in hot]
    unseen = [name for name, any_ in zip(columns, hot.any(axis=0), strict=True) if not any_]
    notes = [f"no image has label {', '.join(unseen)}: it is not trained"] if unseen else []
    if 0 < 50 * len(odd) < len(hot):
        notes.append(
            f"only {len(odd)} lines do not say 1 exactly once, first line {odd[0] + 2}: if each "
            "image has one class, correct them"
        )
    shown = ", ".join(columns[:6]) + (", …" if len(columns) > 6 else "")
    return _from_sets(sets, tuple(columns), f"those of {shown} that are 1", path, notes)


def _from_sets(
    sets: Sequence[Sequence[str]],
    columns: tuple[str, ...],
    said: str,
    path: Path,
    notes: Sequence[str] = (),
) -> Targets:
    labels = tuple(sorted({name for names in sets for name in names}))
    odd = next((name for name in labels if SEPARATOR in name), None)
    if odd is not None:
        raise UserError(f"{path}: label {odd!r} holds {SEPARATOR!r}: rename it")
    odd = next((name for name in labels if re.search(r"""['"]\s*:""", name)), None)
    if odd is not None:
        raise UserError(
            f"{path}: the cells of {columns[0]} are dictionaries ({odd[:40]} …): write the labels "
            "that hold as a list, as in a b"
        )
    counts = [len(names) for names in sets]
    mean = sum(counts) / max(len(counts), 1)
    about = f"several labels an image: {len(labels)} labels, {mean:.2f} an image on average"
    none = counts.count(0)
    about += f", {none} images without any" if none else ""
    return Targets(
        columns, said, [SEPARATOR.join(sorted(set(names))) for names in sets], labels,
        (about, *notes),
    )  # fmt: skip


def _read_cells(
    cells: Sequence[str], asked: Sequence[str], shown: Sequence[str], *, several: bool
) -> list[list[str]] | None:
    """Return the labels of each cell, None where a cell is one class."""
    different = {nfc(cell).strip() for cell in cells}
    lists = any(_LIST.fullmatch(cell) for cell in different)
    separator = next((s for s in _SEPARATORS if any(s in cell for cell in different)), " ")
    columns = {nfc(name).strip() for name in asked}
    for joint in _JOINTS:
        names = {name for cell in different for name in split_cell(cell, joint)}
        if any(joint in cell for cell in different) and names <= different | columns:
            separator = joint
    split = {cell: split_cell(cell, separator) for cell in different}
    if not any(len(names) > 1 for names in split.values()):
        return None
    names = {name for found in split.values() for name in found}
    by_columns = len(asked) > 1 and names <= columns and not different <= columns
    alone = all(name in different for found in split.values() for name in found)
    by_cells = alone and any(
        len(found := split_cell(nfc(cell), separator)) > 1 and names.issuperset(found)
        for cell in shown
    )
    by_cells |= (
        separator == " "
        and all(map(str.isdecimal, names))
        and any(  # numbers of labels, here and there
            len(found := split_cell(nfc(cell), separator)) > 1 and all(map(str.isdecimal, found))
            for cell in shown
        )
    )
    if not (lists or by_columns or by_cells or several):
        return None
    return [split[nfc(cell).strip()] for cell in cells]


def split_cell(cell: str, separator: str) -> list[str]:
    """Return the labels of one cell, without brackets and quotation marks; none for nan, "", []."""
    inner = _LIST.fullmatch(cell)
    text = inner[1] if inner else cell
    parts = text.split() if separator == " " else text.split(separator)
    names = [part.strip().strip("'\"").strip() for part in parts]
    return [name for name in names if name.casefold() not in _NONE]
