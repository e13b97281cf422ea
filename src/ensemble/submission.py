"""Submission writer: predictions in the form that the sample asks for, read back and checked.

Cells are written as they stand in the sample, so a grader finds its own names again: they are
quoted where CSV needs it and never altered. Every file is proved before it stands.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from src.files import atomic_write
from src.metrics.classification import EPS, Array, row_slices
from src.metrics.decisions import Decision
from src.script import UserError

Predict = Callable[[slice], Array]  # rows → log probabilities (R, K)

MIN_UNSEEN = 1e-4  # for classes without training images together: costs 1e-4 nats where none comes
_LEAST = 1e-7  # of a label's probability, and of what is left to 1: eight digits show it
_BLOCK_VALUES = 1 << 18
_BLOCK_ROWS = 4096
_LISTED = 5  # classes in a list where the metric does not say how many


@dataclass(frozen=True)
class Columns:
    """How K classes become J columns."""

    names: tuple[str, ...]  # J column names as the sample has them
    classes: Array  # (J,) the class whose mass a column takes; -1 = a class without training images
    # (J,) the part of it; alias groups share one class. Where the class is -1: the
    # probability itself, the same in every row
    shares: Array
    complete: bool = True  # whether every class has a column, so that rows sum to 1
    notes: tuple[str, ...] = ()  # what the user should know


@dataclass(frozen=True)
class Form:
    """How a submission is laid out."""

    # ``columns`` of probabilities, ``long`` for one line a probability, ``labels``, ``lists``
    # or ``hot`` for a 1 in the column of the label
    kind: str
    header: tuple[str, ...]  # column names, the ids' first
    # of ``columns`` and ``long``: which class a column, or line of an image, has
    columns: Columns | None = None
    names: tuple[str, ...] = ()  # (K,) each class as it is written, of ``labels`` and ``lists``
    # of ``hot``, (J,) the class of each column; of ``long``, (N · J, 2) image and column
    places: Array | None = None
    keys: tuple[str, ...] = ()  # of ``long``: the lines' first cells
    notes: tuple[str, ...] = ()  # what the user should know
    separator: str = " "  # of several classes in a cell
    # what stands before and behind those, and around each
    around: tuple[str, str, str] = ("", "", "")
    mark: str = ","  # between the columns of the file
    comma: bool = False  # whether its probabilities have decimal commas
    named: bool = True  # whether its first line names them
    place: int = 0  # of the ids among the columns of the file

    def __str__(self) -> str:
        columns = f"{len(self.header) - 1} columns"
        said = {"columns": columns, "shares": columns, "marks": f"{columns} of 0 and 1"}
        said |= {"long": "one line a class", "labels": "one label", "lists": "a list of classes"}
        said |= {"long shares": "one line a label", "long marks": "one line of 0 or 1 a label"}
        said |= {"hot": "0 and 1 in each class's column", "sets": "a cell of labels"}
        return said[self.kind]


def to_columns(log_probs: Array, columns: Columns) -> Array:
    """Return float64 probabilities (R, J) of at least 1e-15.

    Rows sum to 1 if every class has a column, else to the mass of those that have one.
    """
    probs = np.exp(log_probs.astype(np.float64))
    seen = columns.classes >= 0
    total = probs[:, np.unique(columns.classes[seen])].sum(axis=1, keepdims=True)
    if columns.complete:
        total = 1.0  # but for rounding it was
    out = np.tile(columns.shares, (len(probs), 1))
    out[:, seen] *= probs[:, columns.classes[seen]]
    scale = (total - columns.shares[~seen].sum()) / np.maximum(
        out[:, seen].sum(axis=1, keepdims=True), EPS
    )
    out[:, seen] *= scale
    np.maximum(out, EPS, out=out)
    return out / out.sum(axis=1, keepdims=True) if columns.complete else out


def csv_row(cells: Sequence[str], mark: str = ",") -> str:
    """Return cells as a line of CSV, quoted where they must be."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=mark, lineterminator="\r\n")  # else \r is not quoted
    writer.writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def join_cell(form: Form, names: Iterable[str]) -> str:
    """Return the cell of several classes, as the form has it."""
    before, behind, quote = form.around
    return f"{before}{form.separator.join(f'{quote}{name}{quote}' for name in names)}{behind}"


def write_form(
    path: Path, form: Form, ids: Sequence[str], predict: Predict, decision: Decision
) -> None:
    """Write a submission in its form, read it back, and only then put it in place.

    ``predict`` returns log probabilities (R, K) of a slice of rows; ``decision`` is what becomes of
    them, for labels and lists.

    Raises:
        UserError: what was read back is not what was to be written.
    """
    if form.kind == "columns":
        write_rows(path, form, lambda: _column_rows(form, ids, predict))
        return
    rows = _long_rows(form, ids, predict) if form.kind == "long" else None
    decided = rows or _decided_rows(form, ids, predict, decision)
    write_rows(path, form, lambda: decided)


def write_rows(path: Path, form: Form, rows: Callable[[], Iterable[list[str]]]) -> None:
    """Write rows of cells below the form's header, if any, read them back, then put them in place.

    ``rows`` is called twice: to write, and to compare.

    Raises:
        UserError: what was read back is not what was to be written.
    """

    def lines() -> Iterator[list[str]]:
        found = ([id_, *(c.replace(".", ",") for c in cells)] for id_, *cells in rows())
        for id_, *cells in chain([form.header] * form.named, found if form.comma else rows()):
            yield [*cells[: form.place], id_, *cells[form.place :]]

    with atomic_write(path) as file:
        for row in lines():
            file.write(csv_row(row, form.mark).encode("utf-8"))
        file.flush()
        with Path(file.name).open(encoding="utf-8", newline="") as written:
            read = csv.reader(written, delimiter=form.mark)
            for number, (row, cells) in enumerate(zip_longest(lines(), read), 1):
                if cells != row:
                    raise UserError(f"{path}: line {number} is not what was written; try again")


def _distributions(form: Form, ids: Sequence[str], predict: Predict) -> Iterator[Array]:
    """Yield the probabilities (R, J) of all rows, block by block: finite, in (0, 1].

    Raises:
        UserError: they are not, or rows do not sum to 1 where every class has a column.
    """
    assert form.columns is not None
    for rows in row_slices(len(ids), len(form.columns.names), _BLOCK_VALUES):
        probs = to_columns(predict(rows), form.columns)
        sums = probs.sum(axis=1)
        whole = not form.columns.complete or np.abs(sums - 1).max() < 1e-6
        if not (np.isfinite(probs).all() and probs.min() > 0 and sums.max() < 1 + 1e-6 and whole):
            raise UserError("the predictions are no distributions: run infer_ensemble.py again")
        yield probs


def _column_rows(form: Form, ids: Sequence[str], predict: Predict) -> Iterator[list[str]]:
    line = "%.8g " * (len(form.header) - 1)  # of a whole row at once, which takes half the time
    probs = chain.from_iterable(map(np.ndarray.tolist, _distributions(form, ids, predict)))
    for id_, row in zip(ids, probs, strict=True):
        yield [id_, *(line % tuple(row)).split()]


def _long_rows(form: Form, ids: Sequence[str], predict: Predict) -> list[list[str]]:
    assert form.places is not None
    probs = np.concatenate([*_distributions(form, ids, predict)])
    values = probs[form.places[:, 0], form.places[:, 1]].tolist()
    return [[key, f"{value:.8g}"] for key, value in zip(form.keys, values, strict=True)]


def _decided_rows(
    form: Form, ids: Sequence[str], predict: Predict, decision: Decision
) -> list[list[str]]:
    """Return the rows of labels, lists or zeros and ones."""
    if decision.rule == "none" and not decision.top:  # the metric scores probabilities
        decision = Decision("argmax", top=_LISTED if form.kind == "lists" else 0)
    rows = []
    for block in row_slices(len(ids), 1, _BLOCK_ROWS):
        decided = decision.apply(predict(block)).tolist()
        for id_, found in zip(ids[block], decided, strict=True):
            rows.append([id_, *_cells(form, found)])
    return rows


def _cells(form: Form, found: Any) -> list[str]:
    if form.kind == "hot":
        assert form.columns is not None and form.places is not None
        mine = form.places == found
        if mine.sum() > 1:  # several names of one class: its first column
            mine[np.flatnonzero(mine)[1:]] = False
        return ["1" if one else "0" for one in mine]
    classes = found if isinstance(found, list) else [found]
    if form.kind == "labels":
        return [form.names[classes[0]]]
    return [join_cell(form, (form.names[k] for k in classes))]


def write_labels(
    path: Path, form: Form, ids: Sequence[str], log_probs: Array, decision: Decision
) -> None:
    """Write a submission of several labels an image, read it back, and only then put it in place.

    ``log_probs`` (N · L, 2) are those of pairs.

    Raises:
        UserError: what was read back is not what was to be written.
    """
    num_labels = len(decision.slopes)
    if form.kind.endswith("shares"):
        decision = replace(decision, cuts=())
    elif not decision.cuts:
        decision = replace(decision, cuts=(0.5,) * num_labels)
    if not np.isfinite(log_probs).all():
        raise UserError("the predictions are no probabilities: run infer_ensemble.py again")
    values = decision.apply(log_probs).reshape(len(ids), num_labels)
    if form.kind == "sets":
        rows = [
            [id_, join_cell(form, (form.names[k] for k in row.nonzero()[0]))]
            for id_, row in zip(ids, values, strict=True)
        ]
    else:
        cells = _label_cells(form, values)
        if form.places is None:
            rows = [[id_, *row] for id_, row in zip(ids, cells.tolist(), strict=True)]
        else:
            found = cells[form.places[:, 0], form.places[:, 1]].tolist()
            rows = [[key, cell] for key, cell in zip(form.keys, found, strict=True)]
    write_rows(path, form, lambda: rows)


def _label_cells(form: Form, values: Array) -> Array:
    """Return the text (N, J) of each column."""
    assert form.columns is not None
    classes = form.columns.classes
    unseen = MIN_UNSEEN if form.kind.endswith("shares") else 0
    out = np.where(classes >= 0, values[:, np.maximum(classes, 0)], unseen)
    if form.kind.endswith("marks"):
        return out.astype(np.int64).astype(str)
    return np.array([[f"{p:.8g}" for p in row] for row in np.clip(out, _LEAST, 1 - _LEAST)])
