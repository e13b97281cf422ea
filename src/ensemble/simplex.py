"""True-class probabilities of M predictors in, the best mixture of them and its certificate out.

f(w) = -mean log(sum_m w_m p_m) is convex on the simplex {w >= 0, sum w = 1}. With
g_m = mean(p_m / p̄), p̄ the mixture, every optimum has g_m <= 1, and max_m g_m - 1 bounds how far f
still is above it (its Frank-Wolfe gap), so an answer proves itself. Minimising f(x) + sum x over
x >= 0 alone gives the same weights, which frees Newton's method from the equality: each step is a
non-negative least-squares problem of M unknowns. (Kim et al. 2020, https://arxiv.org/abs/1806.01412;
here without their low-rank step. The update w ← w · g, EM, gives the first few iterations.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_EM_STEPS = 5
_MAX_STEPS = 200


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
