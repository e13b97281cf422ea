"""OOF predictions in; what the search looks at, small enough to stay in memory, out.

The panel keeps of each row the true class, the classes the members think likeliest, and the sum of
the rest as one more class. Linear pooling commutes with that sum, so linear pools are exact; for
the logarithmic pool and for temperatures it is close, and what is adopted is scored again in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.ensemble.blend import NUM_FLOORS, Tables, convex
from src.ensemble.log_pool import fit_log_pool
from src.ensemble.oof import Oof
from src.ensemble.pool import MAX_LOSS, TINY, log_softmax, row_blocks
from src.ensemble.search import Structure
from src.metrics.classification import fit_temperature

Array = npt.NDArray[Any]

_PANEL_VALUES = 1 << 25  # float32 values for each temperature order: 128 MiB
_MIN_CLASSES = 8


@dataclass(frozen=True)
class Panel:
    """The rows ``rows`` (R,) of the OOF table, their few classes, and the tables.

    ``raw`` and ``calibrated`` are (R, M + 2, C) float32 log probabilities of members and floors;
    class 0 is the true one, class C - 1 the sum of those not kept.
    """

    oof: Oof
    tables: Tables
    rows: Array
    raw: Array
    calibrated: Array

    @property
    def parts(self) -> Array:
        """The cross-fitting part of each row, (R,)."""
        return self.tables.parts[self.rows]

    def of(self, order: str) -> Array:
        """Return the log probabilities for temperature order "after" or "before" pooling."""
        return {"after": self.raw, "before": self.calibrated}[order]

    def fit(self, structure: Structure, keep: Array, start: Array | None = None) -> Array:
        """Return the best weights (M + 2,) of a structure on the panel rows ``keep`` (R,) bool."""
        columns = structure.columns(self.oof.members)
        if structure.pool == "linear":
            table = self.tables.of(structure.order)[self.rows[keep]]
            return convex(table, columns=columns, start=start)[0]
        weights = np.zeros(len(columns))
        values = self.of(structure.order)
        values = values[np.ix_(keep, columns)] if not (keep.all() and columns.all()) else values
        truth = np.zeros(len(values), dtype=np.int64)
        guess = None if start is None else start[columns]
        weights[columns] = fit_log_pool(values, truth, start=guess)
        return weights

    def fit_parts(self, structure: Structure) -> tuple[Array, Array]:
        """Return weights (M + 2,) of all rows, and (P, M + 2) without each part."""
        everything = np.ones(len(self.rows), dtype=bool)
        weights = self.fit(structure, everything)
        without = [
            self.fit(structure, self.parts != part, weights) for part in np.unique(self.parts)
        ]
        return weights, np.stack(without)

    def temperature(self, structure: Structure, weights: Array, keep: Array) -> float:
        """Return the temperature after pooling that suits the panel rows ``keep`` (R,) best."""
        pooled = self._pool(structure.pool, self.of(structure.order)[keep], weights)
        truth = np.zeros(len(pooled), dtype=np.int64)
        return fit_temperature(pooled, truth, tolerance=1e-4)

    def score(self, structure: Structure) -> float:
        """Return the nested log loss of a structure: weights and temperature cross-fitted."""
        values = self.of(structure.order)
        _, without = self.fit_parts(structure)
        total = 0.0
        for part, weights in zip(np.unique(self.parts), without, strict=True):
            held_out = self.parts == part
            temperature = self.temperature(structure, weights, ~held_out)
            pooled = self._pool(structure.pool, values[held_out], weights)
            losses = -log_softmax(pooled, temperature)[:, 0]
            total += float(np.minimum(losses, MAX_LOSS).sum(dtype=np.float64))
        return total / len(self.rows)

    def _pool(self, kind: str, values: Array, weights: Array) -> Array:
        used = np.flatnonzero(weights)
        chosen = values if len(used) == len(weights) else values[:, used]
        weights = weights[used].astype(np.float32)
        if kind == "log":
            return log_softmax(weights @ chosen)
        return np.log(np.maximum(weights @ np.exp(chosen), TINY))


def build_panel(oof: Oof, tables: Tables) -> Panel:
    """Read the members twice: once to see which classes matter in each row, once to keep them."""
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    num_members = len(oof.members) + NUM_FLOORS
    kept = _PANEL_VALUES // (num_members * num_rows)
    kept = min(max(kept, _MIN_CLASSES), num_classes + 1)
    most_rows = max(_PANEL_VALUES // (num_members * kept), 1000)
    rows = np.arange(0, num_rows, -(-num_rows // most_rows))
    raw = np.empty((len(rows), num_members, kept), dtype=np.float32)
    calibrated = np.empty_like(raw)
    uniform = np.full(num_classes, 1.0 / num_classes)
    floors = np.log(np.maximum(np.stack([uniform, tables.prior]), TINY))
    for block in row_blocks(len(rows), num_classes):
        here = rows[block]
        members = [oof.read(member, here) for member in oof.members]
        classes = _likeliest(members, oof.targets[here], kept - 1)
        for m, member in enumerate(oof.members):
            raw[block, m] = _lump(members[m], classes)
            calibrated[block, m] = _lump(
                oof.read(member, here, float(tables.temperatures[m])), classes
            )
        for f, floor in enumerate(floors, start=len(members)):
            constant = _lump(np.broadcast_to(floor, (len(here), num_classes)), classes)
            raw[block, f] = calibrated[block, f] = constant
    return Panel(oof, tables, rows, raw, calibrated)


def _likeliest(members: list[Array], targets: Array, num: int) -> Array:
    """Return (R, num) classes: the true one, then those with the largest mean probability."""
    mean = sum(np.exp(member) for member in members)
    assert isinstance(mean, np.ndarray)
    mean[np.arange(len(mean)), targets] = np.inf
    if num < mean.shape[1]:
        best = np.argpartition(-mean, num - 1, axis=1)[:, :num]
    else:
        best = np.broadcast_to(np.arange(num), mean.shape)
    first = best == targets[:, None]
    return np.take_along_axis(best, np.argsort(~first, axis=1, kind="stable"), axis=1)


def _lump(log_probs: Array, classes: Array) -> Array:
    """Return (R, C): the log probabilities of ``classes`` and of all others together."""
    chosen = np.take_along_axis(log_probs, classes, axis=1)
    rest = 1.0 - np.exp(chosen, dtype=np.float64).sum(axis=1, keepdims=True)
    return np.concatenate([chosen, np.log(np.maximum(rest, 1e-12))], axis=1)
