"""Opinion pools of many predictors, linear and logarithmic, and the certified fit of their weights.

A *member* is one view of one model. The linear pool is the weighted mean of probabilities; the
logarithmic pool is the weighted sum of log probabilities, normalised again (Genest and Zidek 1986,
https://doi.org/10.1214/ss/1177013825). Then comes one temperature, and last a learned *floor*: a
little of two distributions that look at no image, the uniform one and the class frequencies of the
training rows. (A floor before the temperature would act as one, and a temperature below 1 would
sharpen it away.) All arrays are float32 log probabilities; a least value of 1e-30 keeps their
logarithms finite.

Linear weights: f(w) = -mean log(sum_m w_m p_m) is convex on the simplex {w >= 0, sum w = 1}. With
g_m = mean(p_m / p̄), p̄ the mixture, every optimum has g_m <= 1, and max_m g_m - 1 bounds how far f
still is above it (its Frank-Wolfe gap), so a prediction proves itself. Minimising f(x) + sum x over
x >= 0 alone gives the same weights, which frees Newton's method from the equality: each step is a
non-negative least-squares problem of M unknowns. (Kim et al. 2020,
https://arxiv.org/abs/1806.01412; here without their low-rank step. The update w ← w · g, EM, gives
the first few iterations.)

Logarithmic weights: p ∝ exp(sum_m w_m log p_m) with w >= 0 and no other constraint: the weights'
sum is an inverse temperature. The mean loss is convex in w (a log-sum-exp of linear forms);
Newton's steps are non-negative least-squares problems, as above.

Temperature and floor are fitted together on the pooled predictions: without a floor one mislabelled
image would soften every prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from src.metrics.classification import EPS, MAX_TEMPERATURE, MIN_TEMPERATURE, Array, row_slices

Member = tuple[str, str]  # (model, view)

TINY = 1e-30
MAX_LOSS = float(-np.log(EPS))  # of a probability of 0, as the usual grader counts it
FLOORS = ("uniform", "class frequencies")
_EM_STEPS, _MAX_STEPS = 5, 200
_BLOCK_VALUES = 1 << 18  # stays in the processor's cache
MAX_POOL_SUM = 100.0  # of a log pool's weights, which grow without end where no row is left wrong


@dataclass(frozen=True)
class Blend:
    """How the members become one distribution."""

    pool: str  # "linear" or "log"
    members: tuple[Member, ...]  # (model, view) pairs, M of them
    weights: Array  # (M,) non-negative; in the linear pool they sum to 1
    temperatures: Array  # (M,) each member's own, applied before pooling
    temperature: float  # the one applied after pooling
    floors: tuple[float, float]  # weights of the uniform distribution and of ``prior`` in the end
    prior: Array  # (K,) class frequencies of the training rows

    @property
    def used(self) -> list[int]:
        """Numbers of the members with weight."""
        return np.flatnonzero(self.weights > 0).tolist()

    def predict(self, log_probs: Array) -> Array:
        """Return log probabilities (R, K) from those of the used members (U, R, K)."""
        pooled = pool_arrays(self.pool, log_probs, self.weights[self.used])
        return add_floors(log_softmax(pooled, self.temperature), self.floors, self.prior)


def log_softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Return float32 log probabilities of logits (..., K); ``logits`` stay as they are."""
    scaled = np.array(logits, dtype=np.float32)
    if temperature != 1.0:
        scaled /= np.float32(temperature)
    scaled -= scaled.max(axis=-1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return scaled


def row_blocks(num_rows: int, num_classes: int) -> Iterator[Array]:
    """Yield consecutive row numbers, few enough that a block of float32 values stays small."""
    for rows in row_slices(num_rows, num_classes):
        yield np.arange(rows.start, rows.stop)


def pool_arrays(kind: str, log_probs: Array, weights: Array) -> Array:
    """Pool members (M, R, K) by ``weights`` (M,): normalised float32 log probabilities (R, K)."""
    assert kind in ("linear", "log"), kind
    total = np.zeros(log_probs.shape[1:], dtype=np.float32)
    for weight, member in zip(weights, log_probs, strict=True):
        total += np.float32(weight) * (np.exp(member) if kind == "linear" else member)
    if kind == "linear":
        total = np.log(np.maximum(total, TINY, out=total), out=total)
    return log_softmax(total)


def add_floors(log_probs: Array, floors: Sequence[float], prior: Array) -> Array:
    """Mix log probabilities (R, K) with the uniform distribution and ``prior`` (K,)."""
    if not any(floors):
        return log_probs
    constant = floors[0] / len(prior) + floors[1] * prior
    mixed = np.exp(log_probs) * np.float32(1.0 - sum(floors)) + constant.astype(np.float32)
    return np.log(np.maximum(mixed, TINY))


def true_losses(log_probs: Array, targets: Array) -> Array:
    """Return (N,) float64 -log p(true class), clipped as the grader clips."""
    losses = -log_probs[np.arange(len(targets)), targets].astype(np.float64)
    return np.minimum(losses, MAX_LOSS)


def entropy(log_probs: Array) -> Array:
    """Return float64 entropies (...) of log probabilities (..., K), nats."""
    exact = log_probs.astype(np.float64)
    return -np.einsum("...k,...k->...", np.exp(exact), exact)


def member_log_probs(
    logits: Array, temperature: float, columns: Sequence[int], num_classes: int
) -> Array:
    """Return one member's float32 log probabilities (R, K) from its logits (R, K0).

    Columns of the same class are added up first; the temperature then acts on the K classes.
    ``columns`` (K0,) are the merged class of each column.
    """
    if num_classes == len(columns):
        return log_softmax(logits, temperature)
    merged = merge_columns(log_softmax(logits), columns, num_classes)
    return merged if temperature == 1.0 else log_softmax(merged, temperature)


def merge_columns(log_probs: Array, columns: Sequence[int], num_classes: int) -> Array:
    """Add up the probabilities of columns of the same class: logarithms (R, K0) to (R, K).

    ``columns`` (K0,) are the merged class of each column, below ``num_classes``.
    """
    merged = np.full((len(log_probs), num_classes), -np.inf, dtype=np.float32)
    target = np.asarray(columns)
    first = np.unique(target, return_index=True)[1]
    merged[:, target[first]] = log_probs[:, first]
    for column in sorted(set(range(len(target))) - set(first.tolist())):
        into = target[column]
        merged[:, into] = np.logaddexp(merged[:, into], log_probs[:, column])
    return merged


@dataclass(frozen=True)
class Mixture:
    """The solution: weights (M,) on the simplex, mean loss in nats, and the gap in nats."""

    weights: Array
    loss: float
    gap: float
    steps: int


def solve_mixture(
    log_probs: Array, *, start: Array | None = None, tolerance: float = 1e-6
) -> Mixture:
    """Minimise -mean log(sum_m w_m exp(log_probs[:, m])) over the simplex.

    Args:
        log_probs: (N, M) log probabilities (or log densities up to a factor a row).
        start: (M,) first guess; zeros in it are lifted. None is uniform.
        tolerance: the gap, in nats, at which to stop.
    """
    probs, shift = scaled_probs(log_probs)
    num_members = probs.shape[1]
    weights = np.full(num_members, 1.0 / num_members)
    if start is not None:
        weights = 0.99 * start / start.sum() + 0.01 * weights
    step = 0
    while True:
        mixture = probs @ weights
        gain = probs.T @ (1.0 / mixture) / len(probs)
        gap = float(gain.max() - 1.0)
        if gap <= tolerance or step == _MAX_STEPS:
            break
        if step < _EM_STEPS:
            weights = weights * gain
        else:
            weights = _newton_step(probs, weights, mixture, gain)
        weights /= weights.sum()
        step += 1
    loss = -float(np.mean(np.log(mixture) + shift))
    return Mixture(weights, loss, max(gap, 0.0), step)


def scaled_probs(log_probs: Array) -> tuple[Array, Array]:
    """Return probabilities divided by each row's largest, float64, and that one's logarithm."""
    shift = log_probs.max(axis=1).astype(np.float64)
    probs = np.exp(log_probs - shift[:, None], dtype=np.float64)
    return np.ascontiguousarray(probs), shift


def mixture_losses(log_probs: Array, weights: Array) -> Array:
    """Return (N,) -log(sum_m w_m p_m) in nats."""
    probs, shift = scaled_probs(log_probs)
    return -(np.log(np.maximum(probs @ weights, 1e-300)) + shift)


def _newton_step(probs: Array, weights: Array, mixture: Array, gain: Array) -> Array:
    """Return non-negative weights with a lower f(x) + sum x."""
    from scipy.optimize import nnls

    relative = probs / mixture[:, None]
    hessian = relative.T @ relative / len(probs)
    ridge = 1e-9 * np.trace(hessian) / len(weights)
    hessian[np.diag_indices_from(hessian)] += ridge
    factor = np.linalg.cholesky(hessian)
    # min over y >= 0 of 1/2 (y-x)'H(y-x) + (1-g)'(y-x), where Hx = g for the unridged H
    target = np.linalg.solve(factor, 2.0 * gain - 1.0 + ridge * weights)
    try:
        direction = nnls(factor.T, target)[0] - weights
    except RuntimeError:  # its iteration limit: fall back on EM, which always descends
        return weights * gain
    slope = float((1.0 - gain) @ direction)
    change = probs @ direction
    size = 1.0
    while size > 1e-10 and slope < 0:
        moved = mixture + size * change
        if moved.min() > 0:
            drop = -np.mean(np.log(moved / mixture)) + size * direction.sum()
            if drop <= 0.01 * size * slope:
                return np.maximum(weights + size * direction, 0.0)
        size /= 2
    return weights * gain


def fit_log_pool(
    log_probs: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    start: Array | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 30,
) -> Array:
    """Return the weights (M,) >= 0 with the lowest mean loss.

    Args:
        log_probs: (R, M, K) float32, finite.
        targets: (R,) class numbers.
        bias: (K,) added to the pooled logits; log n for a class that stands for n equal ones.
        start: (M,) first guess; None is 1 / M each.
        tolerance: predicted further gain, in nats, at which to stop.
        max_steps: Newton steps at most.
    """
    from scipy.optimize import nnls

    num_members = log_probs.shape[1]
    weights = np.full(num_members, 1.0 / num_members) if start is None else start.copy()
    bias = np.zeros(log_probs.shape[2]) if bias is None else bias
    loss, slope, curve = _derivatives(log_probs, targets, bias, weights)
    for _ in range(max_steps):
        factor, ridge = _factorise(curve)
        target = np.linalg.solve(factor, curve @ weights + ridge * weights - slope)
        try:
            direction = nnls(factor.T, target)[0] - weights
        except RuntimeError:  # it found no end: what was reached is kept
            break
        decrement = float(-slope @ direction)
        if decrement <= tolerance:
            break
        growth = float(direction.sum())
        room = MAX_POOL_SUM - float(weights.sum())
        size = min(1.0, room / growth) if growth > 0 else 1.0
        while size > 1e-6:
            moved = np.maximum(weights + size * direction, 0.0)
            result = _derivatives(log_probs, targets, bias, moved)
            if result[0] <= loss - 0.01 * size * decrement:
                break
            size /= 2
        else:
            break
        weights, (loss, slope, curve) = moved, result
    return weights


def _factorise(curve: Array) -> tuple[Array, float]:
    """Return the Cholesky factor of the Hessian plus the least ridge that lets it exist.

    Members that are nearly one another make it singular to float32, in which it was summed.
    """
    ridge = 1e-7 * float(np.trace(curve)) / len(curve) + 1e-12
    while True:
        try:
            return np.linalg.cholesky(curve + ridge * np.eye(len(curve))), ridge
        except np.linalg.LinAlgError:
            ridge *= 10


def _derivatives(
    log_probs: Array, targets: Array, bias: Array, weights: Array
) -> tuple[float, Array, Array]:
    """Return mean loss, gradient (M,) and Hessian (M, M) in the weights."""
    num_rows, num_members, num_classes = log_probs.shape
    loss, slope = 0.0, np.zeros(num_members)
    curve = np.zeros((num_members, num_members))
    for part in row_slices(num_rows, num_members * num_classes, _BLOCK_VALUES):
        block, true = log_probs[part], targets[part]
        rows = np.arange(len(block))
        probs = weights.astype(np.float32) @ block
        probs += bias
        probs -= probs.max(axis=1, keepdims=True)
        true_logits = probs[rows, true]
        np.exp(probs, out=probs)
        total = probs.sum(axis=1, keepdims=True)
        probs /= total
        loss += float(np.sum(np.log(total[:, 0]) - true_logits, dtype=np.float64))
        centred = block - block @ probs[:, :, None]  # log p_m minus its mean under the pool
        slope -= centred[rows, :, true].sum(axis=0, dtype=np.float64)
        centred *= np.sqrt(probs)[:, None, :]
        curve += (centred @ centred.transpose(0, 2, 1)).sum(axis=0)
    return loss / num_rows, slope / num_rows, curve / num_rows


def fit_calibration(
    true_at: Callable[[float], Array], floors: Array, prior: Array
) -> tuple[float, tuple[float, float]]:
    """Return the temperature and the weights of the two floors with the lowest loss.

    ``true_at`` returns the log probabilities (R,) of the true class at a temperature; ``floors``
    (R, 2) are the same of the uniform distribution and of the class frequencies, ``prior`` (K,).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return fit_floors(true_at(float(np.exp(log_temperature))), floors, prior).loss

    found = minimize_scalar(
        loss,
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    temperature = float(np.exp(found.x))
    _, uniform, frequencies = fit_floors(true_at(temperature), floors, prior).weights
    return temperature, (float(uniform), float(frequencies))


def fit_floors(log_probs: Array, floors: Array, prior: Array) -> Mixture:
    """Return the best mixture of a prediction with the two floors, weights (3,).

    One imaginary row is added, of any class, which the prediction holds impossible. So no
    prediction is surer than its number of rows can prove (Laplace's rule of succession: a mistake
    not yet seen in n rows has a chance of about 1 / n). It costs 1 / n nats a row where no mistake
    comes; it caps what one mislabelled image costs. ``log_probs`` (R,) are of the true class,
    ``floors`` (R, 2) the same of the uniform distribution and of the class frequencies, ``prior``
    (K,).
    """
    imaginary = [-MAX_LOSS, -np.log(len(prior)), np.log(np.maximum(prior, TINY)).mean()]
    table = np.vstack([np.column_stack([log_probs, floors]), imaginary])
    return solve_mixture(table, start=np.array([0.98, 0.01, 0.01]), tolerance=1e-7)


def floored_losses(log_probs: Array, floors: Array, shares: tuple[float, float]) -> Array:
    """Return (R,) losses of predictions mixed with the floors, clipped as the grader clips.

    ``log_probs`` (R,) are of the true class, ``floors`` (R, 2) the same of the floors, ``shares``
    the floors' weights.
    """
    table = np.column_stack([log_probs, floors])
    losses = mixture_losses(table, np.array([1.0 - sum(shares), *shares]))
    return np.minimum(losses, MAX_LOSS)
