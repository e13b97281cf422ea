"""Submission forms of several labels an image: columns of probabilities, of 0 and 1, or a cell.

Each column is the probability of its own label, or 1 where the label is given; in the long form a
line is. A cell holds the names or numbers of the labels that are given, written as the sample
writes them: ``a b``, ``a|b``, ``[1, 4]``. Every file is read back and proved before it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from src.classes import nfc, split_lines
from src.ensemble.forms import (
    Form,
    Sample,
    join_cell,
    known_names,
    split_cells,
    write_rows,
    written_names,
)
from src.ensemble.submission import MIN_UNSEEN, Columns, match_columns
from src.metrics.classification import Array
from src.metrics.decisions import Decision
from src.script import UserError

_LEAST = 1e-7  # of a probability, and of what is left to 1: eight digits show it


def find_label_form(
    sample: Sample | None, labels: Sequence[str], *, holds: str, ids: Sequence[str] = ()
) -> Form:
    """Recognise the form that a sample asks for.

    Args:
        sample: None where there is none.
        labels: L names.
        holds: what the metric scores: ``probabilities`` or ``labels``.
        ids: test ids, for the long form.

    Raises:
        UserError: the sample names what is no label.
    """
    kind = "marks" if holds == "labels" else "shares"
    if sample is None:
        header = ("ID", *labels)
        return Form(kind, header, _match(labels, labels, "")[0])
    long = split_lines(sample.keys, ids) if len(sample.header) == 2 else None
    if long is not None:
        names, places = long
        columns, notes = _match(names, labels, sample.name)
        said = f"{sample.name} has one line for each of {len(names)} labels of an image"
        return Form(
            f"long {kind}", sample.header, columns, places=np.array(places), keys=sample.keys,
            notes=(said, *notes),
        )  # fmt: skip
    known = known_names(labels, ())
    if len(sample.header) == 2 and nfc(sample.header[1]) not in known:
        return _cell_form(sample, labels, known, holds)
    columns, notes = _match(sample.header[1:], labels, sample.name)
    if kind == "marks":
        notes = (f"{sample.name}: 1 in the columns of the labels that are given", *notes)
    return Form(kind, sample.header, columns, notes=notes)


def _match(
    names: Sequence[str], labels: Sequence[str], source: str
) -> tuple[Columns, tuple[str, ...]]:
    """Match columns to labels; return them with what deserves saying."""
    columns = match_columns(names, labels, source=source)
    lacking = [label for k, label in enumerate(labels) if k not in columns.classes]
    taken = columns.notes[: -1 if lacking else None]  # the last is about rows that sum to 1
    unseen = [name for name, k in zip(names, columns.classes, strict=True) if k < 0]
    if unseen:
        taken = (
            *taken[:-1],
            f"{source}: {', '.join(unseen[:5])}: no image has this label; every row gets "
            f"{MIN_UNSEEN:g} there, or 0",
        )
    if lacking:
        taken = (*taken, f"{source} does not ask for {', '.join(lacking[:5])}")
    return columns, taken


def _cell_form(sample: Sample, labels: Sequence[str], known: dict[str, int], holds: str) -> Form:
    cells = {nfc(cell).strip() for cell in sample.cells} - {""}
    words, separator, around = split_cells(cells, labels, known)
    names, notes = written_names(words, labels, known, sample)
    if any(separator in name for name in names):
        odd = next(name for name in names if separator in name)
        raise UserError(
            f"{sample.name}: {odd!r} holds {separator!r}, which stands between labels: write the "
            "labels as numbers in the sample (0, 1, …)"
        )
    form = Form("sets", sample.header, names=tuple(names), separator=separator, around=around)
    shown = join_cell(form, (names[0], names[-1]))
    notes.append(f"{sample.name}: column {sample.header[1]!r} gets the labels as {shown}")
    if holds == "probabilities":
        notes.append(
            f"{sample.name} asks for labels, which the metric does not score: those of probability "
            "one half and more are written; say what the contest counts: --metric f1_samples"
        )
    return replace(form, notes=tuple(notes))


def write_labels(
    path: Path, form: Form, ids: Sequence[str], log_probs: Array, decision: Decision
) -> None:
    """Write a submission in its form, read it back, and only then put it in place.

    Args:
        path: the file; whatever stood there stays until the new one is proved.
        form: from :func:`find_label_form`.
        ids: N ids in order.
        log_probs: (N · L, 2) of pairs.
        decision: what becomes of them.

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
        cells = _cells(form, values)
        if form.places is None:
            rows = [[id_, *row] for id_, row in zip(ids, cells.tolist(), strict=True)]
        else:
            found = cells[form.places[:, 0], form.places[:, 1]].tolist()
            rows = [[key, cell] for key, cell in zip(form.keys, found, strict=True)]
    write_rows(path, form, rows)


def _cells(form: Form, values: Array) -> Array:
    """Return the text (N, J) of each column."""
    assert form.columns is not None
    classes = form.columns.classes
    unseen = MIN_UNSEEN if form.kind.endswith("shares") else 0
    out = np.where(classes >= 0, values[:, np.maximum(classes, 0)], unseen)
    if form.kind.endswith("marks"):
        return out.astype(np.int64).astype(str)
    return np.array([[f"{p:.8g}" for p in row] for row in np.clip(out, _LEAST, 1 - _LEAST)])
