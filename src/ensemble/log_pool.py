"""Log probabilities of M members in, the best weights of their logarithmic pool out.

p ∝ exp(sum_m w_m log p_m) with w >= 0 and no other constraint: the weights' sum is an inverse
temperature. The mean loss is convex in w (a log-sum-exp of linear forms); Newton's steps are
non-negative least-squares problems, as in ``simplex.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK_VALUES = 1 << 18  # stays in the processor's cache


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
        size = 1.0
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
    size = max(1, _BLOCK_VALUES // (num_members * num_classes))
    for begin in range(0, num_rows, size):
        block = log_probs[begin : begin + size]
        rows, true = np.arange(len(block)), targets[begin : begin + size]
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
