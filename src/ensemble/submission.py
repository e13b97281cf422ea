"""Submission writer: the sample's ids and columns, read back and checked.

Cells are written as they stand in the sample, so a grader finds its own names again: they are
quoted where CSV needs it and never altered.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.classes import join_groups, nfc
from src.files import atomic_write
from src.metrics.classification import Array, row_slices
from src.script import UserError

MIN_PROB = 1e-15  # below this the usual grader clips anyway
MIN_UNSEEN = 1e-4  # for classes without training images together: costs 1e-4 nats where none comes
_BLOCK_VALUES = 1 << 18


@dataclass(frozen=True)
class Columns:
    """How K classes become J columns.

    Attributes:
        names: J column names as the sample has them.
        classes: (J,) the class whose mass a column takes; -1 = a class without training images.
        shares: (J,) the part of it; alias groups share one class. Where the class is -1: the
            probability itself, the same in every row.
        complete: whether every class has a column, so that rows sum to 1.
        notes: what the user should know.
    """

    names: tuple[str, ...]
    classes: Array
    shares: Array
    complete: bool = True
    notes: tuple[str, ...] = ()


def match_columns(
    names: Sequence[str],
    classes: Sequence[str],
    *,
    alias_groups: Sequence[Sequence[str]] = (),
    policy: str = "split",
    floor: float = 0.0,
    source: str = "sample_submission.csv",
) -> Columns:
    """Match the sample's columns to classes by name (in NFC), aliases included.

    A name that is no class may differ in case, blanks and words such as ``prob_`` or ``is_``, or
    say ``target`` alone, where that leaves no doubt. Where every class has its column, another
    column is a class without training images.

    Args:
        names: J class columns of the sample.
        classes: K classes of the predictions; merged ones carry one name of their group.
        alias_groups: names that mean the same.
        policy: where the mass of a group with several columns goes: ``split`` evenly, all to its
            ``first`` column, or ``both_equal_renormalised``: whole to each, rows then renormalised.
        floor: mass that the blend's learned floor spreads over all classes evenly.
        source: the sample's name, for messages.

    Raises:
        UserError: a column that is no class, or a column twice.
    """
    if len({nfc(name) for name in names}) < len(names):
        twice = next(n for n in names if [nfc(m) for m in names].count(nfc(n)) > 1)
        raise UserError(f"{source}: column {twice!r} occurs twice; keep one")
    group_of = {name: group for group in join_groups(alias_groups) for name in group}
    place = {nfc(name): k for k, name in enumerate(classes)}
    exact = [
        next((place[n] for n in (nfc(name), *group_of.get(nfc(name), ())) if n in place), None)
        for name in names
    ]
    found, notes = _guess_rest(names, classes, exact, source)
    lacking = [name for k, name in enumerate(classes) if k not in found]
    unseen = [name for name, k in zip(names, found, strict=True) if k is None]
    _refuse_strangers(names, classes, unseen, lacking, source)
    taken = np.array([-1 if k is None else k for k in found], dtype=np.int64)
    shares = _share_out(names, taken, len(classes), policy, group_of)
    if unseen:
        mass = max(floor * len(unseen) / (len(classes) + len(unseen)), MIN_UNSEEN)
        shares[taken < 0] = mass / len(unseen)
        are = "is" if len(unseen) == 1 else "are"
        notes.append(
            f"{source}: {_listed(unseen)} {are} no class with training images: every row "
            f"gets {mass / len(unseen):.2g} there{'' if floor else ', or what the floor learns'}"
        )
    if lacking:
        notes.append(
            f"{source} asks for {len(classes) - len(lacking)} of {len(classes)} classes: each "
            f"column holds its own probability, and what is left for {_listed(lacking)} is not "
            "spread over them (rows sum to less than 1)"
        )
    return Columns(tuple(names), taken, shares, not lacking, tuple(notes))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _refuse_strangers(
    names: Sequence[str],
    classes: Sequence[str],
    unseen: Sequence[str],
    lacking: Sequence[str],
    source: str,
) -> None:
    """Raise a UserError where a column may be a class that has none under another name."""
    if len(unseen) == len(names):
        asked = f"asks for {names[0]!r} alone" if len(names) == 1 else f"first: {names[0]!r}"
        raise UserError(
            f"{source}: no column is a class ({asked}): a submission here has one column of "
            f"probabilities for each class; write the sample with its ids and the columns "
            f"{', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}"
            + (
                "; if it is the probability of one class, write the line "
                f"`{classes[-1]},{names[0]}` (with that class) into aliases.csv beside it and run "
                "optimize_weights.py again"
            )
            * (len(names) == 1)
            + (
                "; if they are the classes by other names, write a line for each into aliases.csv "
                f"beside it, such as `{classes[0]},{names[0]}` (with the class that it is), and "
                "run optimize_weights.py again"
            )
            * (1 < len(names) <= len(classes))
        )
    if unseen and lacking:
        plain = [nfc(name) for name in lacking]
        close = difflib.get_close_matches(nfc(unseen[0]), plain, n=1, cutoff=0)
        raise UserError(
            f"{source}: column {unseen[0]!r} matches no class (nearest without a column: "
            f"{', '.join(close)}); if they are one, write the line `{close[0]},{nfc(unseen[0])}` "
            "into aliases.csv beside it and run optimize_weights.py again, else remove the "
            "column from the sample"
        )


# Words around a class's name in a column, and columns that mean the positive one of two classes.
_AROUND = frozenset(
    (
        *("p", "pr", "prob", "probs", "proba", "probability", "pred", "prediction", "predicted"),
        *("score", "is", "has", "class", "label", "target", "of", "y", "vote", "votes"),
    )
)
_POSITIVE = {frozenset({"0", "1"}): "1", frozenset({"0.0", "1.0"}): "1.0"} | {
    frozenset({no, yes}): yes
    for no, yes in (
        *(("no", "yes"), ("false", "true"), ("negative", "positive"), ("neg", "pos"), ("n", "y")),
        *(("f", "t"), ("normal", "abnormal"), ("benign", "malignant"), ("healthy", "sick")),
    )
}


def _guess_rest(
    names: Sequence[str], classes: Sequence[str], exact: Sequence[int | None], source: str
) -> tuple[list[int | None], list[str]]:
    """Find the classes of columns that have none by name, and say what was taken for what."""
    found = list(exact)
    loose: dict[tuple[str, ...], list[int]] = {}
    for k, name in enumerate(classes):
        if k not in exact:
            loose.setdefault(_words(name), []).append(k)
    notes = []
    for place, name in enumerate(names):
        words = _words(name)
        if len(words) == 1 and (match := re.fullmatch(r"([^\W\d]+)(\d+)", words[0])):
            words = (match[1], match[2]) if match[1] in _AROUND else words  # class0
        inner = tuple(word for word in words if word not in _AROUND)
        near = next((loose[form] for form in (words, inner) if form and form in loose), [])
        if found[place] is None and len(near) == 1 and near[0] not in found:
            found[place] = near[0]
            notes.append(f"{source}: column {name!r} is taken for class {classes[near[0]]!r}")
    lacking = {*range(len(classes))} - {*found}
    if None in found and lacking and any(re.search(r"\d$", classes[k]) for k in lacking):
        found, notes = list(exact), []  # numbers that begin elsewhere: Class1 may be class 0
    plain = {name.casefold(): k for k, name in enumerate(classes)}
    positive = _POSITIVE.get(frozenset(plain)) if len(classes) == 2 else None
    if found == [None] and positive:
        found[0] = plain[positive]
        other = classes[1 - plain[positive]]
        notes.append(
            f"{source}: its one column {names[0]!r} is taken for the probability of the positive "
            f"class, {classes[plain[positive]]!r}; for the other one write the line "
            f"`{other},{names[0]}` into aliases.csv beside it"
        )
    return found, notes


def _words(name: str) -> tuple[str, ...]:
    if re.fullmatch(r"\d+\.0+", name.strip()):  # 3.0 is 3
        name = name.partition(".")[0]
    words = re.findall(r"[^\W_]+", nfc(name).casefold())
    return tuple(str(int(word)) if word.isdecimal() else word for word in words)


def _share_out(
    names: Sequence[str],
    taken: Array,
    num_classes: int,
    policy: str,
    group_of: dict[str, tuple[str, ...]],
) -> Array:
    """Return (J,) the part of its class's mass that each column gets under ``policy``."""
    counts = np.bincount(taken[taken >= 0], minlength=num_classes)
    if policy == "split":
        return 1.0 / np.maximum(counts[taken], 1)
    shares = np.ones(len(taken))
    if policy == "first":
        for k in np.flatnonzero(counts > 1):
            rivals = np.flatnonzero(taken == k).tolist()
            ranks = [group_of[nfc(names[j])].index(nfc(names[j])) for j in rivals]
            shares[rivals] = 0.0
            shares[rivals[int(np.argmin(ranks))]] = 1.0
    return shares


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
        out[:, seen].sum(axis=1, keepdims=True), MIN_PROB
    )
    out[:, seen] *= scale
    np.maximum(out, MIN_PROB, out=out)
    return out / out.sum(axis=1, keepdims=True) if columns.complete else out


def write_submission(
    path: Path,
    id_column: str,
    ids: Sequence[str],
    columns: Columns,
    predictions: Callable[[slice], Array],
) -> None:
    """Write the submission block by block, read it back, and only then put it in place.

    Args:
        path: the file; whatever stood there stays until the new one is proved.
        id_column: name of the first column.
        ids: N ids in order.
        columns: from ``match_columns``.
        predictions: gives log probabilities (R, K) of a slice of rows.

    Raises:
        UserError: what was read back is not what a grader accepts.
    """
    line = ",".join(["%.8g"] * len(columns.names)) + "\n"
    with atomic_write(path) as file:
        file.write(csv_row([id_column, *columns.names]).encode("utf-8"))
        for rows in row_slices(len(ids), len(columns.names), _BLOCK_VALUES):
            probs = to_columns(predictions(rows), columns)
            text = [
                f"{csv_row([id_])[:-1]},{line % tuple(row)}"
                for id_, row in zip(ids[rows], probs.tolist(), strict=True)
            ]
            file.write("".join(text).encode("utf-8"))
        file.flush()
        check_submission(
            Path(file.name), id_column, ids, columns.names, complete=columns.complete, name=path
        )


def csv_row(cells: Sequence[str]) -> str:
    """Return cells as a line of CSV, quoted where they must be."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _to_floats(cells: Sequence[str]) -> Array:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        return np.full(len(cells), np.nan)


def check_submission(
    path: Path,
    id_column: str,
    ids: Sequence[str],
    names: Sequence[str],
    *,
    complete: bool = True,
    name: Path | None = None,
) -> None:
    """Read a submission and prove it: header, ids in order, finite, in (0, 1], rows sum to 1.

    Args:
        path: file to read.
        id_column: name of the first column.
        ids: N ids in order.
        names: J class columns.
        complete: whether every class has a column; if not, rows may sum to less than 1.
        name: how messages call the file.

    Raises:
        UserError: the first thing that is wrong.
    """
    shown = name or path
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != [id_column, *names]:
            raise UserError(f"{shown}: header is not the sample's; check the disk and try again")
        num_rows = 0
        for row, cells in enumerate(reader):
            if row >= len(ids) or not cells or cells[0] != ids[row]:
                raise UserError(f"{shown}: row {row + 1} has not the sample's id; try again")
            probs = _to_floats(cells[1:])
            good = len(probs) == len(names) and np.isfinite(probs).all() and probs.min() > 0
            excess = probs.sum() - 1.0
            if not good or excess > 1e-6 or (complete and excess < -1e-6):
                raise UserError(f"{shown}: row {ids[row]!r} is no distribution; try again")
            num_rows += 1
    if num_rows != len(ids):
        raise UserError(f"{shown}: {num_rows} rows instead of {len(ids)}; try again")
