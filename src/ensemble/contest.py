"""Blends judged by a contest metric: candidates, decision rules and their choice, cross-fitted.

The log loss stays the convex, certified start: it weighs the members of every structure. On top,
members are selected greedily by the metric (Caruana et al. 2004,
https://doi.org/10.1145/1015330.1015432), Optuna searches structures by it, and a rule turns
probabilities into labels. Weights, temperature, floors, rule and in the end the choice among the
candidates are all judged on parts of the rows that had no say in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from src.ensemble.blend import NUM_FLOORS, Tables, convex, uniform_weights
from src.ensemble.calibration import FORECAST_Z, Estimate
from src.ensemble.oof import Oof
from src.ensemble.pool import TINY, Blend, fit_log_pool, pool_arrays, row_blocks, true_losses
from src.ensemble.search import Fitted, Structure, calibrate_pool, full_structure, search_structures
from src.metrics.classification import Array
from src.metrics.contest import Metric
from src.metrics.decisions import Decision, fit_decision, plain_decision

Recipe = Callable[[Array], Blend]  # rows to fit on, (R,) bool → blend

_BOARD_VALUES = 1 << 25  # float32 values for each temperature order: 128 MiB
_KEPT_VALUES = 1 << 26  # of the structures' cross-fitted submissions
_RESAMPLED_VALUES = 20_000_000
_START = 10  # picks that the convex weights count as
_STEPS = 20
_LEAST_TRIALS = 8
NUM_PLAIN = 4  # candidates before those of Optuna's structures
_OFFERED = 8  # members that the greedy selection may pick


@dataclass(frozen=True)
class Board:
    """The OOF rows that candidates are judged on: R rows ``rows`` of the N, all K classes.

    Where an image has several labels, rows are pairs, and all pairs of an image are there.
    ``raw`` and ``calibrated`` are (M, R, K) float32 log probabilities of the members.
    """

    metric: Metric
    oof: Oof
    tables: Tables
    rows: Array
    raw: Array
    calibrated: Array

    @property
    def targets(self) -> Array:
        """Class numbers (R,)."""
        return self.oof.targets[self.rows]

    @property
    def parts(self) -> Array:
        """Cross-fitting part of each row, (R,)."""
        return self.tables.parts[self.rows]

    def predict(self, blend: Blend) -> Array:
        """Return log probabilities (R, K) of a blend."""
        before = (blend.temperatures != 1).any()
        return blend.predict((self.calibrated if before else self.raw)[blend.used])

    def calibrate(self, weights: Array, keep: Array, *, pool: str, order: str) -> Blend:
        """Return the blend of given weights (M,), its temperature and floors fitted on ``keep``."""
        values = self.raw if order == "after" else self.calibrated
        used = np.flatnonzero(weights > 0)
        pooled = pool_arrays(pool, values[used][:, keep], weights[used])
        temperature, floors = calibrate_pool(pooled, self.rows[keep], self.oof, self.tables)
        own = self.tables.own_temperatures(order)
        return Blend(pool, self.oof.members, weights, own, temperature, floors, self.tables.prior)


def build_board(metric: Metric, oof: Oof, tables: Tables) -> Board:
    """Read the members; of very many rows every so manyth."""
    num_members, num_classes = len(oof.members), len(oof.classes)
    most = max(_BOARD_VALUES // (num_members * num_classes), 1000 * metric.unit)
    images = np.arange(0, len(oof.targets), metric.unit * -(-len(oof.targets) // most))
    rows = metric.rows_of(images // metric.unit)
    raw = np.empty((num_members, len(rows), num_classes), dtype=np.float32)
    calibrated = np.empty_like(raw)
    for block in row_blocks(len(rows), num_classes):
        for m, (member, own) in enumerate(zip(oof.members, tables.temperatures, strict=True)):
            raw[m, block] = oof.read(member, rows[block])
            calibrated[m, block] = oof.read(member, rows[block], float(own))
    return Board(metric, oof, tables, rows, raw, calibrated)


@dataclass(frozen=True)
class Candidate:
    """A way to blend and decide."""

    name: str  # for the table
    blend: Blend  # fitted on all rows
    order: str  # where its members are calibrated, "before" or "after" pooling
    decision: Decision  # fitted on all rows
    fitted: float  # its score on the rows it was fitted on
    submitted: Array  # what is scored, of R rows, everything fitted without each row's part
    nested: Array  # (R, K) log probabilities behind it


def judge(board: Board, name: str, recipe: Recipe, order: str = "after") -> Candidate:
    """Fit a candidate on all rows, and once more without each part for what it submits there."""
    everything = np.ones(len(board.rows), dtype=bool)
    blend, decision, log_probs = _fit(board, recipe, everything)
    submitted, nested = decision.apply(log_probs), log_probs.copy()
    fitted = board.metric.measure(submitted, board.targets)
    submitted = submitted.copy()
    for part in np.unique(board.parts):
        held_out = board.parts == part
        _, rule, log_probs = _fit(board, recipe, ~held_out)
        nested[held_out] = log_probs[held_out]
        submitted[held_out] = rule.apply(log_probs[held_out])
    return Candidate(name, blend, order, decision, fitted, submitted, nested)


def _fit(board: Board, recipe: Recipe, keep: Array) -> tuple[Blend, Decision, Array]:
    blend = recipe(keep)
    log_probs = board.predict(blend)
    return blend, fit_decision(board.metric, log_probs[keep], board.targets[keep]), log_probs


def blend_structure(board: Board, structure: Structure, keep: Array) -> Blend:
    """Weigh the members of a structure by log loss on the rows ``keep``."""
    columns = structure.columns(board.oof.members)
    weights = np.zeros(len(columns))
    if structure.pool == "linear":
        table = board.tables.true_log_probs(structure.order)[board.rows[keep], :-NUM_FLOORS]
        weights = convex(table, columns=columns)[0]
    else:
        values = board.raw if structure.order == "after" else board.calibrated
        values = values[np.ix_(columns, keep)].transpose(1, 0, 2)
        weights[columns] = fit_log_pool(values, board.targets[keep])
        if weights.sum() <= 0:
            weights[columns] = 1.0 / columns.sum()
    return board.calibrate(weights, keep, pool=structure.pool, order=structure.order)


def blend_uniform(board: Board, keep: Array) -> Blend:
    """Weigh all members equally."""
    weights = uniform_weights(board.oof.members)[:-NUM_FLOORS]
    return board.calibrate(weights, keep, pool="linear", order="after")


def blend_best(board: Board, keep: Array) -> Blend:
    """Take the member that scores best on the rows ``keep``."""
    weights = np.zeros(len(board.oof.members))
    weights[np.argmin(_alone(board, keep))] = 1.0
    return board.calibrate(weights, keep, pool="linear", order="after")


def blend_greedily(board: Board, keep: Array) -> Blend:
    """Start from the convex weights, and add the member that helps the metric most, while one does.

    The rule is fitted at the start and stands still meanwhile; eight members that score best alone
    are offered.
    """
    metric, targets = board.metric, board.targets[keep]
    start = convex(board.tables.raw[board.rows[keep], :-NUM_FLOORS])[0]
    probs = np.exp(board.raw[:, keep])
    total = _START * np.tensordot(start.astype(np.float32), probs, axes=1)
    decision = fit_decision(metric, _log(total / _START), targets)
    best = metric.loss(decision.apply(_log(total / _START)), targets)
    picks = np.zeros(len(start))
    offered = np.argsort(_alone(board, keep), kind="stable")[:_OFFERED]
    for step in range(1, _STEPS + 1):
        losses = [
            metric.loss(decision.apply(_log((total + probs[m]) / (_START + step))), targets)
            for m in offered
        ]
        if not min(losses) < best - 1e-9:
            break
        best, chosen = min(losses), offered[int(np.argmin(losses))]
        picks[chosen] += 1
        total += probs[chosen]
    weights = (_START * start + picks) / (_START + picks.sum())
    return board.calibrate(weights, keep, pool="linear", order="after")


def _alone(board: Board, keep: Array) -> list[float]:
    """Return each member's loss (the metric's) on its own, under the plain rule."""
    targets = board.targets[keep]
    rule = plain_decision(board.metric, targets, board.raw.shape[2])
    return [board.metric.loss(rule.apply(member[keep]), targets) for member in board.calibrated]


def _log(probs: Array) -> Array:
    return np.log(np.maximum(probs, TINY))


def find_candidates(board: Board, *, trials: int, seed: int) -> list[Candidate]:
    """Return the candidates, the convex blend first and those of Optuna's structures last.

    Optuna tries at most ``trials`` structures, fewer where the board is large; 0 = none.
    """
    trials = min(trials, max(_LEAST_TRIALS, 10 * _BOARD_VALUES // board.raw.size))
    start = full_structure(board.oof.members)
    found = [
        judge(board, "log loss, convex", partial(blend_structure, board, start)),
        judge(board, "uniform", partial(blend_uniform, board)),
        judge(board, "best single", partial(blend_best, board)),
        judge(board, "greedy by the metric", partial(blend_greedily, board)),
    ]
    kept: list[Candidate] = []

    def score(structure: Structure) -> float:
        recipe = partial(blend_structure, board, structure)
        tried = judge(board, _describe(structure, start), recipe, structure.order)
        size = 2 * tried.nested.size * (len(kept) + 1)
        if structure != start and size <= _KEPT_VALUES:
            kept.append(tried)
        return board.metric.loss(tried.submitted, board.targets)

    if trials:  # what was submitted is needed, hence no journal of scores
        members = board.oof.members
        search_structures(score, members, journal=None, name="", trials=trials, seed=seed)
    return found + kept


def _describe(structure: Structure, start: Structure) -> str:
    left_out = [m for m in start.models if m not in structure.models]
    left_out += [v for v in start.views if v not in structure.views]
    return f"{structure.pool} pool, calibrated {structure.order}" + (
        f", without {' '.join(left_out)}" if left_out else ""
    )


def choose(metric: Metric, submitted: Sequence[Array], targets: Array) -> int:
    """Return the number of the best of several submissions (R, …) of the same rows.

    The first one stays unless the best is ahead by more than one standard error, row by row.
    """
    losses = [metric.loss(one, targets) for one in submitted]
    best = int(np.argmin(losses))
    if best:
        pair = resample(metric, [submitted[0], submitted[best]], targets)
        error = float((pair[:, 1] - pair[:, 0]).std())
        if not losses[best] < losses[0] - max(error, 1e-9):
            return 0
    return best


def resample(metric: Metric, submitted: Sequence[Array], targets: Array) -> Array:
    """Return (B, J) losses of J submissions on B bootstrap resamplings of the images.

    B is 400, and fewer (at least 20) where a submission is large.
    """
    rng = np.random.default_rng(0)
    num = int(np.clip(_RESAMPLED_VALUES // max(submitted[0].size, 1), 20, 400))
    images = len(targets) // metric.unit
    draws = (metric.rows_of(rng.integers(0, images, images)) for _ in range(num))
    return np.array([[metric.loss(one[d], targets[d]) for one in submitted] for d in draws])


def score_of(metric: Metric, submitted: Array, targets: Array) -> Estimate:
    """Return the score; its error is the bootstrap's, and at least one image's weight.

    Of a loss the least error is a thousandth of it.
    """
    value = metric.measure(submitted, targets)
    least = metric.unit / len(targets) if metric.greater_is_better else 1e-3 * value
    error = max(float(resample(metric, [submitted], targets).std()), least)
    return _around(value, 1.96 * error, metric.bounds)


def _around(value: float, error: float, bounds: tuple[float, float]) -> Estimate:
    return Estimate(value, max(value - error, bounds[0]), min(value + error, bounds[1]))


def adopt(board: Board, candidates: Sequence[Candidate]) -> tuple[Candidate, Estimate]:
    """Return the best candidate on all rows, and the cross-fitted score of choosing so.

    For the score each part's choice is made by the other parts alone.
    """
    targets, submitted = board.targets, [one.submitted for one in candidates]
    chosen = candidates[choose(board.metric, submitted, targets)]
    nested = chosen.submitted.copy()
    for part in np.unique(board.parts):
        here = board.parts == part
        best = choose(board.metric, [one[~here] for one in submitted], targets[~here])
        nested[here] = submitted[best][here]
    return chosen, score_of(board.metric, nested, targets)


def as_fitted(board: Board, candidate: Candidate) -> Fitted:
    """Return a candidate as the log-loss blend is kept, on the board's rows."""
    losses = true_losses(candidate.nested, board.targets)
    loss = float(true_losses(board.predict(candidate.blend), board.targets).mean())
    return Fitted(candidate.blend, loss, losses, candidate.nested)


def forecast_score(
    score: Estimate,
    num_rows: int,
    num_test: int,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    design_effect: float = 1.0,
    gain: float = 0.0,
) -> Estimate:
    """Return a nested score as a forecast for ``num_test`` other rows of the same kind.

    Args:
        score: of one fold's networks, with its interval.
        num_rows: OOF rows behind it.
        num_test: rows of the forecast; the chance of which ones adds to the score's error.
        bounds: the least and the greatest score there is.
        design_effect: by which groups make both errors larger.
        gain: of averaging the folds' networks, from :func:`averaging_gain`, which is known to
            about half of itself (docs/experiments.md).

    Returns:
        The forecast, with an interval of level ``FORECAST_LEVEL``.
    """
    error = max(score.value - score.low, score.high - score.value) / 1.96
    error *= math.sqrt((1 + num_rows / num_test) * design_effect)
    error = math.hypot(error, gain / 2) * FORECAST_Z
    value = min(max(score.value + gain, bounds[0]), bounds[1])
    return _around(value, error, bounds)
