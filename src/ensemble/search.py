"""Blend structures (pool, order of calibration, models, views): Optuna search, fit in full.

The weights themselves are a convex problem and need no search; what is searched is everything that
is not convex. The journal keeps each score, so a stopped search goes on where it was, to the same
end.

Trials are scored on a top-k class subset of the OOF predictions (the panel). It keeps of each row
the true class, the classes the members think likeliest, and one class that stands for all others,
each as likely as they are on average. Linear pools of it are exact; logarithmic pools and
temperatures are close. What is adopted is fitted and cross-fitted in full, from the members' whole
distributions on disk, a block of rows at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from src.ensemble.blend import NUM_FLOORS, THREADS, Method, Tables, convex
from src.ensemble.oof import Oof
from src.ensemble.pool import (
    MAX_LOSS,
    TINY,
    Blend,
    Member,
    add_floors,
    fit_calibration,
    fit_log_pool,
    floored_losses,
    log_softmax,
    pool_arrays,
    row_blocks,
    true_losses,
)
from src.ensemble.studies import Journal, ask_until, open_study
from src.metrics.classification import Array

POOLS, ORDERS = ("linear", "log"), ("after", "before")


@dataclass(frozen=True)
class Structure:
    """What the convex solve takes for granted."""

    pool: str  # "linear" or "log"
    # "after" applies one temperature after pooling; "before" also calibrates each member on
    # its own first
    order: str
    models: tuple[str, ...]  # those that may have weight
    views: tuple[str, ...]  # those that may have weight

    def columns(self, members: Sequence[Member]) -> Array:
        """Return (M,) bool: which members may have weight."""
        return np.array([m in self.models and v in self.views for m, v in members])


def full_structure(members: Sequence[Member]) -> Structure:
    """Return the structure the search starts from: linear, everything in, calibrated after."""
    models = tuple(dict.fromkeys(model for model, _ in members))
    views = tuple(dict.fromkeys(view for _, view in members))
    return Structure(pool="linear", order="after", models=models, views=views)


def search_structures(
    score: Callable[[Structure], float],
    members: Sequence[Member],
    *,
    journal: Path | None,
    name: str,
    trials: int,
    seed: int = 0,
    storage: str = "",
) -> tuple[Structure, float]:
    """Search pool, order, models and views; return the best structure and its score.

    The search is the same for the same seed and scores: the journal saves scores alone, and a
    search that was stopped runs through its first trials again without computing them.

    Args:
        score: nested log loss of a structure, nats.
        members: their models and views span the search; the first structure tried is of all, and
            one of which no member is left is none.
        journal: file that keeps the scores; made if absent; None = none.
        name: of the study; another name (other data) starts afresh in the same file.
        trials: in all, those of earlier runs included; at least 1.
        seed: of the sampler.
        storage: of a study that several machines share; see :mod:`src.ensemble.studies`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = full_structure(members)
    kept = Journal(journal, name) if journal else None
    known = _read_scores(kept, start) if kept else {}
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    study = open_study(storage, name) if storage else optuna.create_study(sampler=sampler)
    for pool, order in product(POOLS, ORDERS):
        params: dict[str, str | bool] = dict.fromkeys(_choices(start), True) | {
            "pool": pool,
            "order": order,
        }
        study.enqueue_trial(params, skip_if_exists=True)
    for trial in ask_until(study, trials):
        for key, choices in _choices(start).items():
            trial.suggest_categorical(key, choices)
        structure = _from_params(trial.params, start)
        if not structure.columns(members).any():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        if structure not in known:
            known[structure] = score(structure)
            if kept:
                kept.append({"params": trial.params, "score": known[structure]})
        study.tell(trial, known[structure])
    return _from_params(study.best_params, start), float(study.best_value)


def _read_scores(kept: Journal, start: Structure) -> dict[Structure, float]:
    """Return the scores of the journal's structures; what has another shape is passed over."""
    known = {}
    for record in kept.records:
        params, value = record.get("params"), record.get("score")
        if (
            isinstance(params, dict)
            and isinstance(value, float)
            and set(params) == set(_choices(start))
        ):
            known[_from_params(params, start)] = value
    return known


def _choices(start: Structure) -> dict[str, list[str | bool]]:
    choices: dict[str, list[str | bool]] = {"pool": [*POOLS], "order": [*ORDERS]}
    for kind, names in (("model", start.models), ("view", start.views)):
        if len(names) > 1:
            choices |= {f"{kind} {name}": [True, False] for name in names}
    return choices


def _from_params(params: dict[str, Any], start: Structure) -> Structure:
    return Structure(
        pool=params["pool"],
        order=params["order"],
        models=tuple(m for m in start.models if params.get(f"model {m}", True)),
        views=tuple(v for v in start.views if params.get(f"view {v}", True)),
    )


SCORE_VERSION = 4  # of what `Panel.score` computes: trials of another are not comparable
_PANEL_VALUES = 1 << 25  # float32 values for each temperature order: 128 MiB
_MIN_CLASSES = 8
_LEAST_TRIALS = 8
_CALIBRATION_ROWS = 8192
_THIN_VALUES = 1 << 22


@dataclass(frozen=True)
class Panel:
    """The rows ``rows`` (R,) of the OOF table, their few classes, and the tables.

    ``raw`` and ``calibrated`` are (R, M, C) float32 log probabilities of the members; class 0 is
    the true one, class C - 1 stands for ``num_rest`` others, each of that probability.
    """

    oof: Oof
    tables: Tables
    rows: Array
    raw: Array
    calibrated: Array
    num_rest: int

    @property
    def parts(self) -> Array:
        """The cross-fitting part of each row, (R,)."""
        return self.tables.parts[self.rows]

    def log_probs(self, order: str) -> Array:
        """Return the log probabilities for temperature order "after" or "before" pooling."""
        return {"after": self.raw, "before": self.calibrated}[order]

    def fit(self, structure: Structure, keep: Array, start: Array | None = None) -> Array:
        """Return the best weights (M,) of a structure on the panel rows ``keep`` (R,) bool."""
        columns = structure.columns(self.oof.members)
        if structure.pool == "linear":
            table = self.tables.true_log_probs(structure.order)[self.rows[keep], :-NUM_FLOORS]
            return convex(table, columns=columns, start=start)[0]
        weights = np.zeros(len(columns))
        values = self.log_probs(structure.order)
        values = values[np.ix_(keep, columns)] if not (keep.all() and columns.all()) else values
        guess = None if start is None else start[columns]
        truth = np.zeros(len(values), dtype=np.int64)
        weights[columns] = fit_log_pool(values, truth, bias=self._counts(), start=guess)
        return weights

    def fit_parts(self, structure: Structure) -> tuple[Array, Array]:
        """Return weights (M,) of all rows, and (P, M) without each part."""
        everything = np.ones(len(self.rows), dtype=bool)
        weights = self.fit(structure, everything)
        without = [
            self.fit(structure, self.parts != part, weights) for part in np.unique(self.parts)
        ]
        return weights, np.stack(without)

    def score(self, structure: Structure) -> float:
        """Return the nested log loss of a structure: weights, temperature, floors cross-fitted.

        Temperature and floors are fitted on at most 8,192 rows of the other parts.
        """
        if not structure.columns(self.oof.members).any():  # models that lack these views
            return MAX_LOSS
        linear = structure.pool == "linear"
        values = self.log_probs(structure.order)
        values = np.exp(values) if linear else values
        floors = self.tables.raw[self.rows, -NUM_FLOORS:]
        _, without = self.fit_parts(structure)
        total = 0.0
        for part, weights in zip(np.unique(self.parts), without, strict=True):
            pooled = weights.astype(np.float32) @ values
            if linear:
                pooled = np.log(np.maximum(pooled, TINY))
            held_out = self.parts == part
            others = np.flatnonzero(~held_out)[:: -(-len(self.rows) // _CALIBRATION_ROWS)]
            temperature, shares = fit_calibration(
                lambda t, pooled=pooled[others]: self._true(pooled, t),  # type: ignore[misc]
                floors[others],
                self.tables.prior,
            )
            true = self._true(pooled[held_out], temperature)
            total += float(floored_losses(true, floors[held_out], shares).sum())
        return total / len(self.rows)

    def _true(self, pooled: Array, temperature: float) -> Array:
        """Return (R,) float64 log probabilities of the true class."""
        log_probs = log_softmax(pooled / np.float32(temperature) + self._counts())
        return log_probs[:, 0].astype(np.float64)

    def _counts(self) -> Array:
        """Return (C,) logarithms of how many classes each class of the panel stands for."""
        counts = np.zeros(self.raw.shape[2], dtype=np.float32)
        counts[-1] = np.log(self.num_rest)
        return counts


def affordable_trials(panel: Panel) -> int:
    """Return how many structures are scored in about 20 s of two CPU cores, by the panel's size.

    A clock would make the blend depend on how busy the machine is. One score of the largest panel
    takes a second (``benchmarks/results.md``).
    """
    return max(_LEAST_TRIALS, 20 * _PANEL_VALUES // panel.raw.size)


def search_panel(panel: Panel, journal: Path, *, trials: int, seed: int, storage: str) -> Structure:
    """Search structures, as many as the size of the panel allows, and print the best."""
    oof = panel.oof
    what = [SCORE_VERSION, oof.members, oof.config_hashes, oof.folds_hash, oof.classes]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    trials = min(trials, affordable_trials(panel))
    best, value = search_structures(
        panel.score, oof.members, journal=journal, name=name, trials=trials, seed=seed,
        storage=storage,
    )  # fmt: skip
    print(
        f"Optuna, {trials} structures: nested {value:.5f} with {best.pool} pool, members "
        f"calibrated {'first too' if best.order == 'before' else 'after pooling only'}, "
        f"models {' '.join(best.models)}, "
        f"views {' '.join(best.views)}"
    )
    return best


def build_panel(oof: Oof, tables: Tables) -> Panel:
    """Read the members twice: once to see which classes matter in each row, once to keep them."""
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    num_members = len(oof.members)
    kept = _PANEL_VALUES // (num_members * num_rows)
    kept = min(max(kept, _MIN_CLASSES), num_classes + 1)
    most_rows = max(_PANEL_VALUES // (num_members * kept), 1000)
    rows = np.arange(0, num_rows, -(-num_rows // most_rows))
    raw = np.empty((len(rows), num_members, kept), dtype=np.float32)
    calibrated = np.empty_like(raw)
    num_rest = max(num_classes - kept + 1, 1)

    def fill(block: Array) -> None:
        here = rows[block]
        members = [oof.read(member, here) for member in oof.members]
        classes = _likeliest(members, oof.targets[here], kept - 1)
        for m, (member, own) in enumerate(zip(oof.members, tables.temperatures, strict=True)):
            raw[block, m] = _lump(members[m], classes, num_rest)
            calibrated[block, m] = _lump(oof.read(member, here, float(own)), classes, num_rest)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(fill, row_blocks(len(rows), num_classes * num_members)))
    return Panel(oof, tables, rows, raw, calibrated, num_rest)


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


def _lump(log_probs: Array, classes: Array, num_rest: int) -> Array:
    """Return (R, C): the log probabilities of ``classes``, and of the others' mean."""
    chosen = np.take_along_axis(log_probs, classes, axis=1)
    rest = 1.0 - np.exp(chosen).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.concatenate([chosen, np.log(np.maximum(rest, 1e-9) / num_rest)], axis=1)


@dataclass(frozen=True)
class Fitted:
    """A blend and how it does on rows it has not seen."""

    blend: Blend  # fitted on all rows
    loss: float  # of ``blend`` on the rows it was fitted on, nats
    nested_losses: Array  # (N,) of each row, everything fitted without its part
    nested: Array  # (N, K) float32 log probabilities behind ``nested_losses``

    def as_method(self, name: str) -> Method:
        """Return it to be compared with the methods of ``blend.py``."""
        return Method(name, self.blend.weights, self.loss, self.nested_losses)


def fit_blend(panel: Panel, structure: Structure) -> Fitted:
    """Fit weights, temperature and floors of a structure; cross-fit all for the nested losses.

    The parts' temperatures and floors are fitted on about four million values of the others.
    """
    oof, tables = panel.oof, panel.tables
    weights, without = panel.fit_parts(structure)
    own = tables.own_temperatures(structure.order)
    fit, nested, thin, rows = _pool_all(oof, structure.pool, weights, without, own, tables)
    temperature, floors = calibrate_pool(fit, np.arange(len(oof.targets)), oof, tables)
    for part, others in zip(np.unique(tables.parts), thin, strict=True):
        kept = tables.parts[rows] != part
        cross, shares = calibrate_pool(others[kept], rows[kept], oof, tables)
        held_out = tables.parts == part
        prediction = log_softmax(nested[held_out], cross)
        nested[held_out] = add_floors(prediction, shares, tables.prior)
    blend = Blend(structure.pool, oof.members, weights, own, temperature, floors, tables.prior)
    prediction = add_floors(log_softmax(fit, temperature), floors, tables.prior)
    loss = float(true_losses(prediction, oof.targets).mean())
    return Fitted(blend, loss, true_losses(nested, oof.targets), nested)


def calibrate_pool(
    pooled: Array, rows: Array, oof: Oof, tables: Tables
) -> tuple[float, tuple[float, float]]:
    """Return the temperature and the floors' weights that suit ``pooled`` (R, K), of ``rows``."""

    def true_at(temperature: float) -> Array:
        losses = [
            true_losses(log_softmax(pooled[block], temperature), oof.targets[rows[block]])
            for block in row_blocks(*pooled.shape)
        ]
        return -np.concatenate(losses)

    return fit_calibration(true_at, tables.raw[rows, -NUM_FLOORS:], tables.prior)


def _pool_all(
    oof: Oof, kind: str, weights: Array, without: Array, temperatures: Array, tables: Tables
) -> tuple[Array, Array, Array, Array]:
    """Return pooled log probabilities before the temperature.

    (N, K) with the weights of all rows; (N, K) with those of the other parts; with the weights
    without each part (P, T, K), of the rows (T,) that come last.
    """
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    used = np.flatnonzero((weights > 0) | (without > 0).any(axis=0))
    step = max(1, num_rows * num_classes // _THIN_VALUES)
    thin_rows = np.arange(0, num_rows, step)
    fit = np.empty((num_rows, num_classes), dtype=np.float32)
    nested = np.empty_like(fit)
    thin = np.empty((len(without), len(thin_rows), num_classes), dtype=np.float32)

    def work(rows: Array) -> None:
        members = np.empty((len(used), len(rows), num_classes), dtype=np.float32)
        for place, m in enumerate(used):
            members[place] = oof.read(oof.members[m], rows, float(temperatures[m]))

        def pooled(w: Array, here: Array) -> Array:
            return pool_arrays(kind, members[:, here], w[used])

        fit[rows] = pooled(weights, np.arange(len(rows)))
        every = np.flatnonzero(rows % step == 0)
        for part, w in enumerate(without):
            thin[part, rows[every] // step] = pooled(w, every)
            here = np.flatnonzero(tables.parts[rows] == part)
            nested[rows[here]] = pooled(w, here)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, row_blocks(num_rows, num_classes * max(len(used), 1))))
    return fit, nested, thin, thin_rows


def is_better(challenger: Array, champion: Array) -> bool:
    """Tell whether nested losses (N,) are lower by more than one standard error, row by row."""
    change = challenger - champion
    return bool(change.mean() < -change.std() / np.sqrt(len(change)) and change.mean() < -1e-6)
