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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import SEPARATOR, is_number, nfc
from src.data.columns import (
    LABEL_NAMES,
    OFTEN_LABELS,
    find_twins,
    is_hot,
    names_subject,
    numbers_rows,
    pick_column,
    pick_name,
    plain,
    repeats_much,
    says_yes,
    shown_names,
)
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = ("|", ";", ",")  # before blanks
_JOINTS = ("+", "/", "&")  # where each part is a label of its own elsewhere
_LIST = re.compile(r"\s*[\[{](.*)[\]}]\s*", re.DOTALL)
_QUOTED = re.compile(r"""\s*(['"])[^'"]+\1\s*""")
_SIGNS = frozenset({"0", "0.0", "1", "1.0"})
_BETWEEN = frozenset({"", "-1", "-1.0"})  # not mentioned, uncertain
_NONE = frozenset({"", "nan", "none", "null"})


@dataclass(frozen=True)
class Targets:
    """What a table says of its rows' classes."""

    columns: tuple[str, ...]  # where it says it
    said: str  # the same, for people
    names: list[str]  # (N,) class names in NFC, or labels joined by ``|``
    # the K labels where an image may have several, sorted; () = one class each
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what deserves saying aloud


@dataclass(frozen=True)
class LabelSearch:
    """Where the labels of a table are looked for."""

    table: pd.DataFrame  # the rows of ``path``
    path: Path  # for messages
    taken: Sequence[str | None]  # columns that say the image, its group and its id, None for none
    asked: Sequence[str] = ()  # the columns that the sample submission asks for
    shown: Sequence[str] = ()  # the cells of its one column
    elsewhere: bool = False  # a table that is not read has labels of the same rows

    @cached_property
    def free(self) -> list[str]:
        """The columns that are not taken and do not count the rows.

        Nor is it a label that all rows have beside others of which each row has one: a weight.
        """
        free = [name for name in self.table.columns if name not in self.taken]
        free = [name for name in free if not numbers_rows(self.table[name])] or free
        rest = [name for name in free if not all(map(says_yes, set(self.table[name])))]
        hot = [name for name in rest if is_hot(self.table, [name])]
        weighed = len(hot) > 1 and self.is_once(hot) and not {*self.asked} & {*free} - {*rest}
        return rest if weighed else free

    def has_label(self) -> bool:
        """Tell whether the columns asked for, or names, say which one column is the label."""
        return len(self._asked_for) == 1 or self._by_name[0] is not None

    def asked_if_hot(self) -> list[str]:
        """Return the columns asked for where they are several of this table that say yes and no."""
        here = len(self.asked) > 1 and set(self.asked) <= set(self.free)
        return list(self.asked) if here and is_hot(self.table, self.asked) else []

    def is_once(self, columns: Sequence[str]) -> bool:
        """Tell whether each row says yes in one of the ``columns``."""
        return bool(self.table[list(columns)].map(says_yes).sum(axis=1).eq(1).all())

    def find(self, wanted: str | None) -> tuple[list[str], str]:
        """Return the label's column, or the columns of a one-hot table, and why it is that one.

        Raises:
            UserError: there is none, or not the one ``wanted`` by the user.
        """
        table, free = self.table, self.free
        if wanted:
            pick_column(table, wanted, (), self.path, "--label_column")
            return [wanted], ""
        label, weak, why = self._by_name
        found = self._asked_for or self._shown()
        named = found[0] if found else label
        found = (self._numbers_of(named) if named else []) or found
        if found:
            return found, " (as the sample submission asks)"
        if label is not None or (len(free) == 1 and not self.elsewhere):
            return [label or free[0]], why
        if is_hot(table, free):
            return free, ""
        hot = [name for name in free if is_hot(table, [name])]
        if len(hot) > 2 and self.is_once(hot):
            return hot, " (1 once in each line)"
        few = weak or [
            name
            for name in free
            if _holds_classes(table[name])
            and not (names_subject(name) and repeats_much(table[name]))
        ]
        if len(few) == 1 and (weak or len(hot) < 2) and not self.elsewhere:
            return few, " (the one column of few different words)"
        number = {name: table[name].nunique() for name in table.columns if name != self.taken[0]}
        likely = few or [name for name in free if 2 <= number.get(name, 0) <= len(table) // 2]
        shown = [f"{name} ({number[name]} values)" for name in (likely or [*number])[:6]]
        raise UserError(
            f"{self.path} has no known label column among {shown_names(table.columns)}: name it "
            f"with --label_column{', such as ' * bool(shown)}{', '.join(shown)}"
            + f"; if {', '.join(hot[:3])} are labels of an image, pass --metric mean_auc"
            * (len(hot) > 1)
        )

    @cached_property
    def _by_name(self) -> tuple[str | None, list[str], str]:
        """Return the column whose name says that it is the label, those that may be it, and why."""
        free = [name for name in self.table.columns if name not in self.taken]
        label = pick_name(free, LABEL_NAMES)
        weak = [name for name in free if plain(name) in OFTEN_LABELS]
        if label is None and len(weak) == 1:
            return weak[0], weak, " (by its name)"
        return label, weak, ""

    @cached_property
    def _asked_for(self) -> list[str]:
        """Return the column (or one-hot columns) that the columns asked for mean, or none."""
        if len(self.asked) == 1 and self.asked[0] in self.free:
            return [self.asked[0]]
        if hot := self.asked_if_hot():
            return hot if self.is_once(hot) else []
        names = {nfc(name).strip() for name in self.asked}
        fits = [name for name in self.free if len(v := self._values(name)) > 1 and v <= names]
        usual = [name for name in fits if plain(name) in {plain(known) for known in LABEL_NAMES}]
        return (usual or fits)[:1] if len(usual) == 1 or len(fits) == 1 else []

    def _shown(self) -> list[str]:
        """Return the one column that has most words of the sample's cells, or none."""
        cells = {nfc(cell).strip() for cell in self.shown}
        words = {word for cell in cells for word in (cell, *cell.split()) if not is_number(word)}
        hits = {name: len(words & self._values(name)) for name in self.free}
        best = [name for name, count in hits.items() if count and count == max(hits.values())]
        return best if len(self.asked) == 1 and len(best) == 1 else []

    def _numbers_of(self, label: str) -> list[str]:
        """Return the column that numbers the words of ``label``, where the sample's cells do."""
        cells, words = {cell.strip() for cell in self.shown} - {""}, [*self.table[label]]
        asks_numbers = len(self.asked) == 1 and cells and all(map(is_number, cells))
        if not asks_numbers or any(is_number(word.strip()) for word in words):
            return []
        fits, many = [], len({*words})
        counts = [{str(n) for n in range(first, first + many)} for first in (0, 1)]
        for name in self.free:
            numbers = {*self.table[name]}
            pairs = {*zip(words, self.table[name], strict=True)}
            coded = numbers in counts or (cells <= numbers and all(map(is_number, numbers)))
            if coded and len(pairs) == many == len(numbers):  # no weights of the classes
                fits.append(name)
        return fits if len(fits) == 1 else []

    def _values(self, name: str) -> set[str]:
        return {nfc(cell).strip() for cell in set(self.table[name])}


def read_targets(search: LabelSearch, wanted: str | None, *, several: bool = False) -> Targets:
    """Find and read the label's column, or the columns and cells of several labels.

    ``wanted`` is the column that the user named; ``several`` says that the metric is one of several
    labels an image.

    Raises:
        UserError: no label is found.
    """
    table, path = search.table, search.path
    columns = [] if wanted else _hot_columns(search, several=several)
    if columns:
        return _read_hot(table, columns, path)
    if not wanted:
        _refuse_shares(search, least=3)
    try:
        found, why = search.find(wanted)
    except UserError:
        _refuse_shares(search, least=2)
        raise
    if len(found) > 1:
        hot = table[found].map(says_yes)
        empty = [name for name in found if not hot[name].any()]
        notes = [f"no image is of class {', '.join(empty)}: it is not trained"] if empty else []
        names = [nfc(found[place]) for place in hot.to_numpy().argmax(axis=1)]
        said = f"the one of {', '.join(found)} that is 1{why}"
        return Targets(tuple(found), said, names, notes=tuple(notes))
    cells = [nfc(cell) for cell in table[found[0]]]
    names = [cell.strip() for cell in cells]
    _refuse_vectors(names, found[0], path)
    pairs = table[[str(search.taken[0]), found[0]]]
    lines = bool(pairs.drop_duplicates().iloc[:, 0].duplicated().any())
    sets, form = _read_cells(names, search, several=several, lines=lines), "several labels a cell"
    if several and sets is None and pairs.iloc[:, 0].duplicated().any():
        sets, form = [[name] for name in names], "one label a line"
    if sets is not None:
        return _from_sets(sets, tuple(found), f"{found[0]}{why}, {form}", path)
    if several:
        raise UserError(
            f"{path}: column {found[0]} has one class in each cell, and --metric is for several"
            " labels an image: choose accuracy, macro_f1 or auc, or name the column of labels "
            "with --label_column"
        )
    notes = find_twins(set(cells), "blanks", str.strip, "merged")
    words = {*names}
    if all(map(_LIST.fullmatch, words)) and not any(map(_LIST.fullmatch, search.shown)):
        names = [next(iter(split_cell(name, ",")), "") for name in names]  # ["cat"] of a JSON
    also = [
        name for name in search.free
        if name != found[0] and words.issuperset(cell.strip() for cell in table[name] if cell)
        and table[name].nunique() > 1
    ]  # fmt: skip
    if also and not all(map(is_number, names)):
        notes.append(
            f"{', '.join(also[:3])} has the same words and is not used: where an image has several "
            f"labels, write all into {found[0]}, as in a|b, and pass what the contest counts"
        )
    return Targets(tuple(found), found[0] + why, names, notes=tuple(notes))


def _refuse_shares(search: LabelSearch, *, least: int) -> None:
    """Raise a UserError where ``least`` columns of classes hold shares, or more than 0 and 1."""
    table, path, asked = search.table, search.path, search.asked
    of_sample = len(asked) > 1 and set(asked) <= set(search.free)
    if not of_sample and search.has_label():
        return
    names = list(asked) if of_sample else search.free
    cells = {name: set(table[name].str.strip()) for name in names}
    signs = [name for name in names if cells[name] - _SIGNS and cells[name] <= _SIGNS | _BETWEEN]
    said = set().union(*(cells[name] for name in signs))
    least = 2 if of_sample else least
    if len(signs) >= least and (of_sample or said & {"1", "1.0"}):
        odd = min(said - _SIGNS)
        raise UserError(
            f"{path}: columns {', '.join(signs[:3])} … hold {odd!r} beside 0 and 1: write 0 or "
            "1 in each cell, and pass --metric mean_auc (several labels an image)"
        )
    shares = [name for name in names if all(map(_is_share, cells[name]))]
    hot = [name for name in shares if is_hot(table, [name])]  # beside weights of the rows
    if (
        len(shares) >= least
        and (of_sample or len(shares) == len(names))
        and not is_hot(table, shares)
        and not (len(hot) > 2 and search.is_once(hot))
    ):
        raise UserError(
            f"{path}: columns {', '.join(shares[:3])} … hold shares of the classes, and one class "
            "an image is learned here: write the name of each line's largest in a column label, "
            f"and leave these out of {path.name}"
        )


def _refuse_vectors(cells: Sequence[str], column: str, path: Path) -> None:
    """Raise a UserError where each cell holds a 0 or 1 for every class: ``[0, 1, 0]``."""
    rows = {tuple(re.findall(r"[^\s,;\[\](){}]+", cell)) for cell in {*cells}}
    first = min(rows, default=())
    if len(first) < 2 + (not cells[0].startswith(("[", "(", "{"))):
        return
    if all(len(row) == len(first) and _SIGNS.issuperset(row) for row in rows):
        raise UserError(
            f"{path}: the cells of {column} hold a 0 or 1 for each of {len(first)} classes "
            f"({cells[0][:40]}): write them as columns, one for each class, under its name"
        )


def _is_share(cell: str) -> bool:
    text = cell.replace(",", ".")
    return is_number(text) and 0 <= float(text) <= 1


def _hot_columns(search: LabelSearch, *, several: bool) -> list[str]:
    """Return the columns of 0 and 1 that are labels of which a row has several, or none.

    They are those that the sample asks for; else all columns that are left, unless one of them is
    the label.
    """
    table, columns = search.table, search.asked_if_hot()
    if not columns:
        columns = [name for name in search.free if is_hot(table, [name]) or not several]
        if len(columns) < 2 or not is_hot(table, columns) or search.has_label():
            return []
    return [] if search.is_once(columns) and not several else columns


def _read_hot(table: pd.DataFrame, columns: Sequence[str], path: Path) -> Targets:
    hot = table[list(columns)].map(says_yes).to_numpy()
    odd = (hot.sum(axis=1) != 1).nonzero()[0]
    sets = [[nfc(columns[k]) for k in row.nonzero()[0]] for row in hot]
    unseen = [name for name, any_ in zip(columns, hot.any(axis=0), strict=True) if not any_]
    notes = [f"no image has label {', '.join(unseen)}: it is not trained"] if unseen else []
    if 0 < 50 * len(odd) < len(hot):
        notes.append(
            f"only {counted(len(odd), 'line does', 'lines do')} not say 1 exactly once, first "
            f"line {odd[0] + 2}: if each image has one class, correct them"
        )
    elif len(odd) and hot.sum(axis=1).max() == 1:
        notes.append(
            f"no line says 1 twice: if each image has one class, add a column of {len(odd)} ones "
            "for those without any"
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
    return Targets(
        columns, said, [SEPARATOR.join(sorted(set(names))) for names in sets], labels,
        (count_labels(sets, len(labels)), *notes),
    )  # fmt: skip


def count_labels(sets: Sequence[Sequence[str]], number: int) -> str:
    """Return a note on how many of a ``number`` of labels the images have."""
    counts = [len(names) for names in sets]
    mean, none = sum(counts) / max(len(counts), 1), counts.count(0)
    about = f"several labels an image: {number} labels, {mean:.2f} an image on average"
    return about + (f", {counted(none, 'image')} without any" if none else "")


def _read_cells(
    cells: Sequence[str], search: LabelSearch, *, several: bool, lines: bool
) -> list[list[str]] | None:
    """Return the labels of each cell (in NFC, bare of blanks), None where a cell is one class.

    Where an image has several ``lines`` that differ, each may say one label ("polar bear").
    """
    different = {*cells}
    lists = any(_LIST.fullmatch(cell) for cell in different)
    separator = next((s for s in _SEPARATORS if any(s in cell for cell in different)), " ")
    columns = {nfc(name).strip() for name in search.asked}
    for joint in _JOINTS:
        names = {name for cell in different for name in split_cell(cell, joint)}
        if any(joint in cell for cell in different) and names <= different | columns:
            separator = joint
    split = {cell: split_cell(cell, separator) for cell in different}
    if not any(len(names) > 1 for names in split.values()):
        return None
    names = {name for found in split.values() for name in found}
    alone = names <= different  # each is the whole of another cell
    shown = [split_cell(nfc(cell), separator) for cell in search.shown]
    shown = [found for found in shown if len(found) > 1]
    by_columns = len(search.asked) > 1 and names <= columns and not different <= columns
    by_cells = alone and any(map(names.issuperset, shown))
    numbers = separator == " " and all(map(str.isdecimal, names))  # of labels, here and there
    by_numbers = numbers and any(all(map(str.isdecimal, found)) for found in shown)
    by_metric = several and (alone or not lines)
    if lists or by_columns or by_cells or by_numbers or by_metric:
        return [split[cell] for cell in cells]
    return None


def split_cell(cell: str, separator: str) -> list[str]:
    """Return the labels of one cell, without brackets and quotation marks; none for nan, "", []."""
    inner = _LIST.fullmatch(cell)
    text = inner[1] if inner else cell
    whole = separator == " " and inner and _QUOTED.fullmatch(text)  # ["polar bear"]
    parts = [text] if whole else text.split(None if separator == " " else separator)
    names = [part.strip().strip("'\"").strip() for part in parts]
    return [name for name in names if name.casefold() not in _NONE]


def _holds_classes(cells: pd.Series) -> bool:
    """Tell whether a column holds few different words, each in several rows, and no numbers."""
    counts = cells.str.strip().value_counts()
    if not 2 <= len(counts) <= max(2, len(cells) // 5) or "" in counts:
        return False
    return not any(map(is_number, counts.index))
