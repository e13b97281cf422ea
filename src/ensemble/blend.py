"""Linear blend weights by several methods (uniform, best, greedy, convex), cross-fitted.

The table (N, M + 2) holds log p(true class) of each member and of the two floors: all that the
linear pool's log loss depends on. A method is a function table → weights on the simplex. Its nested
estimate scores each part of the rows with weights fitted on the other parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from src.ensemble.oof import Oof
from src.ensemble.pool import (
    FLOORS,
    MAX_LOSS,
    TINY,
    Member,
    Mixture,
    mixture_losses,
    row_blocks,
    scaled_probs,
    solve_mixture,
)
from src.metrics.classification import Array, fit_temperature, number_units

Fit = Callable[[Array], Array]  # table (n, M + 2) → weights (M + 2,)

NUM_FLOORS = len(FLOORS)
_TEMPERATURE_VALUES = 1 << 20  # logits a member's own temperature is fitted on
_RESAMPLES = 1000
_BOOTSTRAP_VALUES = 1 << 21  # resampled counts held at once: 16 MiB
THREADS = 2


@dataclass(frozen=True)
class Tables:
    """What the linear pool needs to know."""

    raw: Array  # (N, M + 2) log p(true class) at temperature 1; the floors are the last columns
    calibrated: Array  # the same after each member's own temperature
    temperatures: Array  # (M,) those temperatures
    prior: Array  # (K,) class frequencies
    parts: Array  # (N,) cross-fitting part of each row

    def true_log_probs(self, order: str) -> Array:
        """Return the table for temperature order "after" or "before" pooling."""
        return {"after": self.raw, "before": self.calibrated}[order]

    def own_temperatures(self, order: str) -> Array:
        """Return the members' own temperatures (M,) in that order."""
        return self.temperatures if order == "before" else np.ones(len(self.temperatures))


def build_tables(oof: Oof) -> Tables:
    """Read every member once and keep the log probabilities of the true classes.

    A member's own temperature is one number fitted on (about a million values of) all rows;
    it is not cross-fitted, which flatters the nested estimate by about 1 / (2 N) nats a member.
    """
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    counts = np.bincount(oof.targets, minlength=num_classes)
    prior = counts / counts.sum()
    step = max(1, num_rows * num_classes // _TEMPERATURE_VALUES)
    thin = np.arange(0, num_rows, step)

    def column(member: Member) -> tuple[Array, Array, float]:
        temperature = fit_temperature(oof.read(member, thin), oof.targets[thin], tolerance=1e-4)
        raw, calibrated = np.empty(num_rows), np.empty(num_rows)
        for rows in row_blocks(num_rows, num_classes):
            true = (np.arange(len(rows)), oof.targets[rows])
            raw[rows] = oof.read(member, rows)[true]
            calibrated[rows] = oof.read(member, rows, temperature)[true]
        return raw, calibrated, temperature

    with ThreadPoolExecutor(THREADS) as threads:
        columns = list(threads.map(column, oof.members))
    floors = [np.full(num_rows, -np.log(num_classes)), np.log(np.maximum(prior, TINY))[oof.targets]]
    return Tables(
        raw=np.stack([c[0] for c in columns] + floors, axis=1),
        calibrated=np.stack([c[1] for c in columns] + floors, axis=1),
        temperatures=np.array([c[2] for c in columns]),
        prior=prior,
        parts=make_parts(oof.folds, oof.ids),
    )


def make_parts(folds: Array, ids: Array) -> Array:
    """Return (N,) parts for cross-fitting: the folds, or five by a hash of the id if only one."""
    if len(np.unique(folds)) > 1:
        return np.unique(folds, return_inverse=True)[1]
    images = (str(id_).partition("\0")[0] for id_ in ids)  # pairs of an image stay together
    parts = np.array([zlib.crc32(image.encode()) % 5 for image in images])
    return np.unique(parts, return_inverse=True)[1]


def uniform_weights(members: Sequence[Member]) -> Array:
    """Return equal weights for all members, none for the floors."""
    return np.r_[np.full(len(members), 1.0 / len(members)), np.zeros(NUM_FLOORS)]


def prior_weights(members: Sequence[Member], priors: Mapping[str, float]) -> Array:
    """Return weights in proportion to each model's prior, shared equally by its views.

    ``priors`` are model → prior weight; a model without one gets the mean of the others.
    """
    models = [model for model, _ in members]
    known = [priors[m] for m in dict.fromkeys(models) if priors.get(m, 0) > 0]
    default = float(np.mean(known)) if known else 1.0
    shares = [(priors.get(m, 0) or default) / models.count(m) for m in models]
    return np.r_[np.array(shares) / np.sum(shares), np.zeros(NUM_FLOORS)]


def best_single(table: Array) -> Array:
    """Return all weight on the member with the lowest loss."""
    weights = np.zeros(table.shape[1])
    weights[np.argmax(table[:, :-NUM_FLOORS].mean(axis=0))] = 1.0
    return weights


def greedy(table: Array, *, steps: int = 50) -> Array:
    """Select members one by one, with replacement; return how often each was taken.

    Source: Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432, without bagging.

    The floors of ``table`` (N, M + 2) are not offered. At most ``steps`` members are taken; the
    best prefix is returned.
    """
    probs = scaled_probs(table[:, :-NUM_FLOORS])[0].astype(np.float32)
    total = np.zeros(len(probs), dtype=np.float32)
    taken: list[int] = []
    losses: list[float] = []
    for step in range(1, steps + 1):
        # a sure mistake is 0 in float32
        mixed = np.maximum(probs + total[:, None], np.finfo(np.float32).tiny)
        scores = np.log(mixed).mean(axis=0, dtype=np.float64) - np.log(step)
        taken.append(int(scores.argmax()))
        losses.append(-float(scores.max()))
        total += probs[:, taken[-1]]
    chosen = taken[: int(np.argmin(losses)) + 1]
    return np.bincount(chosen, minlength=table.shape[1]) / len(chosen)


def convex(
    table: Array, *, columns: Array | None = None, start: Array | None = None
) -> tuple[Array, Mixture]:
    """Solve for the best weights; return them and the certified solution.

    Of ``table`` (N, M + 2) the ``columns`` (M + 2,) bool may have weight, None = all; ``start`` is
    a first guess (M + 2,).
    """
    columns = np.ones(table.shape[1], dtype=bool) if columns is None else columns
    guess = None if start is None or start[columns].sum() <= 0 else start[columns]
    mixture = solve_mixture(table[:, columns], start=guess)
    weights = np.zeros(table.shape[1])
    weights[columns] = mixture.weights
    return weights, mixture


def cross_fit(fit: Fit, table: Array, parts: Array) -> Array:
    """Return (N,) losses of each row under weights fitted without its part."""
    losses = np.empty(len(table))
    for part in np.unique(parts):
        held_out = parts == part
        losses[held_out] = losses_of(table[held_out], fit(table[~held_out]))
    return losses


def losses_of(table: Array, weights: Array) -> Array:
    """Return (N,) losses of a linear pool, clipped as the grader clips."""
    return np.minimum(mixture_losses(table, weights), MAX_LOSS)


def bootstrap_means(losses: Array, groups: Array | None = None) -> Array:
    """Return (B, J) means of resampled rows; all columns of ``losses`` (N, J) share resamples.

    Rows of one of the ``groups`` (N,), text, "" = none, are drawn together.
    """
    units = number_units(groups, len(losses))
    sizes = np.bincount(units)
    sums = np.stack([np.bincount(units, column) for column in losses.T], axis=1)
    rng = np.random.default_rng(0)
    means = np.empty((_RESAMPLES, losses.shape[1]))
    step = max(1, _BOOTSTRAP_VALUES // len(sums))
    for start in range(0, _RESAMPLES, step):
        size = min(step, _RESAMPLES - start)
        counts = rng.poisson(1.0, size=(size, len(sums)))  # the multinomial's limit, vectorised
        totals = np.maximum(counts @ sizes, 1)[:, None]
        means[start : start + size] = counts @ sums / totals
    return means


@dataclass(frozen=True)
class Method:
    """The weights that one method finds, and its losses."""

    name: str
    weights: Array  # (M,) of members, or (M + 2,) of members and floors
    loss: float  # on the rows it was fitted on, nats
    nested: Array  # (N,) loss of each row when fitted without its part


def compare_methods(
    members: Sequence[Member], tables: Tables, priors: Mapping[str, float]
) -> tuple[list[Method], Mixture]:
    """Weigh the members in every way that pools linearly and does not calibrate.

    Return the methods, the convex one last, and its certified solution. ``priors`` are model →
    prior weight.
    """
    table, parts = tables.raw, tables.parts
    fits = {
        "uniform": lambda _: uniform_weights(members),
        "prior weights": lambda _: prior_weights(members, priors),
        "best single": best_single,
        "greedy": greedy,
    }
    methods = [
        Method(name, weights := fit(table), _mean(table, weights), cross_fit(fit, table, parts))
        for name, fit in fits.items()
    ]
    weights, mixture = convex(table)
    nested = cross_fit(lambda rows: convex(rows, start=weights)[0], table, parts)
    return [*methods, Method("convex", weights, mixture.loss, nested)], mixture


def score_methods(
    methods: Sequence[Method], groups: Array | None = None
) -> dict[str, dict[str, float]]:
    """Return name → fitted, nested, low, high: mean losses and the 95 % bootstrap interval."""
    means = bootstrap_means(np.stack([method.nested for method in methods], axis=1), groups)
    scores = {}
    for method, resampled in zip(methods, means.T, strict=True):
        low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
        nested = float(method.nested.mean())
        scores[method.name] = {"fitted": method.loss, "nested": nested, "low": low, "high": high}
    return scores


def contributions(members: Sequence[Member], table: Array, weights: Array) -> list[list[object]]:
    """Return rows (kind, name, weight, loss alone, loss gained by having it).

    What is gained compares the best weights with and without the model or view, on the rows they
    are fitted on; alone means only its members, equally weighted. ``table`` (N, M + 2) is log
    p(true class), as in :class:`Tables`; ``weights`` (M + 2,) are those of the convex method.
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
