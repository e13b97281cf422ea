"""Submission writer: the sample's ids and columns, read back and checked.

Cells are written as they stand in the sample, so a grader finds its own names again: they are
quoted where CSV needs it and never altered.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src.classes import join_groups, nfc
from src.files import atomic_write
from src.script import UserError

Array = npt.NDArray[Any]

POLICIES = ("split", "first", "both_equal_renormalised")
MIN_PROB = 1e-15  # below this the usual grader clips anyway
_BLOCK_VALUES = 1 << 18


@dataclass(frozen=True)
class Columns:
    """How K classes become J columns.

    Attributes:
        names: J column names as the sample has them.
        classes: (J,) the class whose mass a column takes.
        shares: (J,) the part of it; alias groups share one class.
        notes: what the user should know.
    """

    names: tuple[str, ...]
    classes: Array
    shares: Array
    notes: tuple[str, ...] = ()


def match_columns(
    names: Sequence[str],
    classes: Sequence[str],
    *,
    alias_groups: Sequence[Sequence[str]] = (),
    policy: str = "split",
    source: str = "sample_submission.csv",
) -> Columns:
    """Match the sample's columns to classes by name (in NFC), aliases included.

    Args:
        names: J class columns of the sample.
        classes: K classes of the predictions; merged ones carry one name of their group.
        alias_groups: names that mean the same.
        policy: where the mass of a group with several columns goes: ``split`` evenly, all to its
            ``first`` column, or ``both_equal_renormalised``: whole to each, rows then renormalised.
        source: the sample's name, for messages.

    Raises:
        UserError: a column that is no class, a column twice, or an unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"--alias_policy {policy}: is none of {', '.join(POLICIES)}")
    group_of = {name: group for group in join_groups(alias_groups) for name in group}
    place = {nfc(name): k for k, name in enumerate(classes)}
    found = [_class_of(nfc(name), place, group_of) for name in names]
    if all(k is None for k in found):
        asked = f"asks for {names[0]!r} alone" if len(names) == 1 else f"first: {names[0]!r}"
        raise UserError(
            f"{source}: no column is a class ({asked}): a submission here has one column of "
            f"probabilities for each class; write the sample with its ids and the columns "
            f"{', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}"
        )
    for name, k in zip(names, found, strict=True):
        if k is None:
            close = difflib.get_close_matches(nfc(name), list(place), n=1, cutoff=0)
            raise UserError(
                f"{source}: column {name!r} matches no class (nearest: {', '.join(close)}); "
                f"rename it, or name the pair in aliases.csv"
            )
    if len({nfc(name) for name in names}) < len(names):
        twice = next(n for n in names if [nfc(m) for m in names].count(nfc(n)) > 1)
        raise UserError(f"{source}: column {twice!r} occurs twice; keep one")
    taken = np.array([k for k in found if k is not None], dtype=np.int64)
    counts = np.bincount(taken, minlength=len(classes))
    if policy == "split":
        shares = 1.0 / counts[taken]
    elif policy == "first":
        shares = _first_only(names, taken, group_of)
    else:
        shares = np.ones(len(taken))
    lacking = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    notes: tuple[str, ...] = ()
    if lacking:
        shown = ", ".join(lacking[:5]) + (" …" if len(lacking) > 5 else "")
        notes = (f"{len(lacking)} classes have no column in {source}, mass dropped: {shown}",)
    return Columns(tuple(names), taken, shares, notes)


def _class_of(name: str, place: dict[str, int], group_of: dict[str, tuple[str, ...]]) -> int | None:
    if name in place:
        return place[name]
    return next((place[other] for other in group_of.get(name, ()) if other in place), None)


def _first_only(names: Sequence[str], taken: Array, group_of: dict[str, tuple[str, ...]]) -> Array:
    """Return (J,) 1 for the column whose name its group says first, 0 for the others."""
    shares = np.ones(len(names))
    for k in np.flatnonzero(np.bincount(taken) > 1):
        rivals = np.flatnonzero(taken == k).tolist()
        ranks = [group_of[nfc(names[j])].index(nfc(names[j])) for j in rivals]
        shares[rivals] = 0.0
        shares[rivals[int(np.argmin(ranks))]] = 1.0
    return shares


def to_columns(log_probs: Array, columns: Columns) -> Array:
    """Return float64 probabilities (R, J), clipped from below, rows summing to 1."""
    probs = np.exp(log_probs.astype(np.float64))[:, columns.classes] * columns.shares
    probs /= np.maximum(probs.sum(axis=1, keepdims=True), MIN_PROB)
    np.maximum(probs, MIN_PROB, out=probs)
    return probs / probs.sum(axis=1, keepdims=True)


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
    size = max(1, _BLOCK_VALUES // max(len(columns.names), 1))
    with atomic_write(path) as file:
        file.write(_csv_row([id_column, *columns.names]).encode("utf-8"))
        for start in range(0, len(ids), size):
            rows = slice(start, min(start + size, len(ids)))
            probs = to_columns(predictions(rows), columns)
            text = [
                f"{_csv_row([id_])[:-1]},{line % tuple(row)}"
                for id_, row in zip(ids[rows], probs.tolist(), strict=True)
            ]
            file.write("".join(text).encode("utf-8"))
        file.flush()
        check_submission(Path(file.name), id_column, ids, columns.names, name=path)


def _csv_row(cells: Sequence[str]) -> str:
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
    name: Path | None = None,
) -> None:
    """Read a submission and prove it: header, ids in order, finite, in (0, 1], rows sum to 1.

    Args:
        path: file to read.
        id_column: name of the first column.
        ids: N ids in order.
        names: J class columns.
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
            if not good or abs(probs.sum() - 1.0) > 1e-6:
                raise UserError(f"{shown}: row {ids[row]!r} is no distribution; try again")
            num_rows += 1
    if num_rows != len(ids):
        raise UserError(f"{shown}: {num_rows} rows instead of {len(ids)}; try again")
