"""Nested (cross-fitted) evaluation of blends: fit on the other folds, score on the fold left out.

Everything here reads the full class distributions from disk, a block of rows at a time.

The table of candidates shows fitted loss, nested loss and its bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from src.ensemble.blend import (
    NUM_FLOORS,
    THREADS,
    Tables,
    best_single,
    bootstrap_means,
    convex,
    cross_fit,
    greedy,
    losses_of,
    seed_weights,
    uniform_weights,
)
from src.ensemble.oof import Oof
from src.ensemble.pool import (
    FLOORS,
    Blend,
    Member,
    Mixture,
    add_floors,
    fit_finish,
    log_softmax,
    pool_arrays,
    row_blocks,
    true_losses,
)
from src.ensemble.search import Panel, Structure
from src.metrics.classification import Array

_THIN_VALUES = 1 << 22


@dataclass(frozen=True)
class Fitted:
    """A blend and how it does on rows it has not seen.

    Attributes:
        blend: fitted on all rows.
        loss: of ``blend`` on the rows it was fitted on, nats.
        nested_losses: (N,) of each row, everything fitted without its part.
        nested: (N, K) float32 log probabilities behind ``nested_losses``.
    """

    blend: Blend
    loss: float
    nested_losses: Array
    nested: Array


def fit_blend(panel: Panel, structure: Structure) -> Fitted:
    """Fit weights, temperature and floors of a structure; cross-fit all for the nested losses.

    The parts' temperatures and floors are fitted on at most four million values of the others.
    """
    oof, tables = panel.oof, panel.tables
    weights, without = panel.fit_parts(structure)
    own = tables.temperatures if structure.order == "before" else np.ones(len(oof.members))
    pools = _pool_all(oof, structure.pool, weights, without, own, tables)
    everything = np.arange(len(oof.targets))
    temperature, floors = finish_pool(pools.fit, everything, oof, tables)
    for part, others in zip(np.unique(tables.parts), pools.thin, strict=True):
        kept = tables.parts[pools.thin_rows] != part
        cross, shares = finish_pool(others[kept], pools.thin_rows[kept], oof, tables)
        held_out = tables.parts == part
        prediction = log_softmax(pools.nested[held_out], cross)
        pools.nested[held_out] = add_floors(prediction, shares, tables.prior)
    blend = Blend(structure.pool, oof.members, weights, own, temperature, floors, tables.prior)
    prediction = add_floors(log_softmax(pools.fit, temperature), floors, tables.prior)
    loss = float(true_losses(prediction, oof.targets).mean())
    return Fitted(blend, loss, true_losses(pools.nested, oof.targets), pools.nested)


def finish_pool(
    pooled: Array, rows: Array, oof: Oof, tables: Tables
) -> tuple[float, tuple[float, float]]:
    """Return the temperature and the floors' weights that suit ``pooled`` (R, K), of ``rows``."""

    def true_at(temperature: float) -> Array:
        losses = [
            true_losses(log_softmax(pooled[block], temperature), oof.targets[rows[block]])
            for block in row_blocks(*pooled.shape)
        ]
        return -np.concatenate(losses)

    return fit_finish(true_at, tables.raw[rows, -NUM_FLOORS:], tables.prior)


@dataclass(frozen=True)
class _Pools:
    """Pooled log probabilities before the temperature.

    ``fit`` (N, K) with the weights of all rows; ``nested`` (N, K) with those of the other parts;
    ``thin`` (P, T, K) of the rows ``thin_rows`` (T,) with the weights without each part.
    """

    fit: Array
    nested: Array
    thin: Array
    thin_rows: Array


def _pool_all(
    oof: Oof, kind: str, weights: Array, without: Array, temperatures: Array, tables: Tables
) -> _Pools:
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    used = np.flatnonzero((weights > 0) | (without > 0).any(axis=0))
    step = max(1, num_rows * num_classes // _THIN_VALUES)
    thin_rows = np.arange(0, num_rows, step)
    pools = _Pools(
        fit=np.empty((num_rows, num_classes), dtype=np.float32),
        nested=np.empty((num_rows, num_classes), dtype=np.float32),
        thin=np.empty((len(without), len(thin_rows), num_classes), dtype=np.float32),
        thin_rows=thin_rows,
    )

    def work(rows: Array) -> None:
        members = np.empty((len(used), len(rows), num_classes), dtype=np.float32)
        for place, m in enumerate(used):
            members[place] = oof.read(oof.members[m], rows, float(temperatures[m]))

        def pooled(w: Array, here: Array) -> Array:
            return pool_arrays(kind, members[:, here], w[used])

        pools.fit[rows] = pooled(weights, np.arange(len(rows)))
        thin = np.flatnonzero(rows % step == 0)
        for part, w in enumerate(without):
            pools.thin[part, rows[thin] // step] = pooled(w, thin)
            here = np.flatnonzero(tables.parts[rows] == part)
            pools.nested[rows[here]] = pooled(w, here)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, row_blocks(num_rows, num_classes * max(len(used), 1))))
    return pools


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: of the method.
        weights: (M,) of members, or (M + 2,) of members and floors.
        loss: on the rows it was fitted on, nats.
        nested: (N,) loss of each row when fitted without its part.
    """

    name: str
    weights: Array
    loss: float
    nested: Array


def contest(
    members: Sequence[Member],
    tables: Tables,
    priors: Mapping[str, float],
) -> tuple[list[Entry], Mixture]:
    """Weigh the members in every way that pools linearly and does not calibrate.

    Args:
        members: (model, view) pairs.
        tables: from ``build_tables``.
        priors: model → prior weight.

    Returns:
        The entries, and the certified solution of the convex one.
    """
    table, parts = tables.raw, tables.parts
    fits = {
        "uniform": lambda _: uniform_weights(members),
        "prior weights": lambda _: seed_weights(members, priors),
        "best single": best_single,
        "greedy": greedy,
    }
    entries = [
        Entry(name, weights := fit(table), _mean(table, weights), cross_fit(fit, table, parts))
        for name, fit in fits.items()
    ]
    weights, mixture = convex(table)
    nested = cross_fit(lambda rows: convex(rows, start=weights)[0], table, parts)
    return [*entries, Entry("convex", weights, mixture.loss, nested)], mixture


def entry_of(name: str, fitted: Fitted) -> Entry:
    """Return a finished blend as an entry."""
    return Entry(name, fitted.blend.weights, fitted.loss, fitted.nested_losses)


def score_entries(
    entries: Sequence[Entry], groups: Array | None = None
) -> dict[str, dict[str, float]]:
    """Return name → fitted, nested, low, high: mean losses and the 95 % bootstrap interval."""
    means = bootstrap_means(np.stack([entry.nested for entry in entries], axis=1), groups)
    scores = {}
    for entry, resampled in zip(entries, means.T, strict=True):
        low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
        nested = float(entry.nested.mean())
        scores[entry.name] = {"fitted": entry.loss, "nested": nested, "low": low, "high": high}
    return scores


def is_better(challenger: Array, champion: Array) -> bool:
    """Tell whether nested losses (N,) are lower by more than one standard error, row by row."""
    change = challenger - champion
    return bool(change.mean() < -change.std() / np.sqrt(len(change)) and change.mean() < -1e-6)


def contributions(members: Sequence[Member], table: Array, weights: Array) -> list[list[object]]:
    """Return rows (kind, name, weight, loss alone, loss gained by having it).

    What is gained compares the best weights with and without the model or view, on the rows they
    are fitted on; alone means only its members, equally weighted.

    Args:
        members: (model, view) pairs.
        table: (N, M + 2) log p(true class), as in :class:`Tables`.
        weights: (M + 2,) of the convex entry.
    """
    full = _mean(table, weights)
    rows: list[list[object]] = []
    for kind, place in (("model", 0), ("view", 1)):
        names = list(dict.fromkeys(member[place] for member in members))
        for name in names:
            mine = np.array([member[place] == name for member in members] + [False] * len(FLOORS))
            alone = _mean(table, mine / mine.sum())
            gained = float("nan")
            if len(names) > 1:
                without = np.where(mine, 0.0, weights)
                gained = convex(table, columns=~mine, start=without)[1].loss - full
            rows.append([kind, name, float(weights[mine].sum()), alone, gained])
    for floor, weight in zip(FLOORS, weights[-len(FLOORS) :], strict=True):
        rows.append(["floor", floor, float(weight), float("nan"), float("nan")])
    return rows


def _mean(table: Array, weights: Array) -> float:
    return float(losses_of(table, weights).mean())
