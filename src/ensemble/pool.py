"""Logits of many predictors in, one distribution a row out: linear and logarithmic pools.

A *member* is one view of one model. The linear pool is the weighted mean of probabilities; the
logarithmic pool is the weighted sum of log probabilities, normalised again (Genest and Zidek 1986,
https://doi.org/10.1214/ss/1177013825). Behind the members stand two *floor* members that look at no
image: the uniform distribution and the class frequencies of the training rows. All arrays are
float32 log probabilities; a floor of 1e-30 keeps their logarithms finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Member = tuple[str, str]  # (model, view)
Reader = Callable[[Member, Array, float], Array]  # (member, rows (R,), temperature) → (R, K)

TINY = 1e-30
MAX_LOSS = float(-np.log(1e-15))  # the usual grader clips probabilities to 1e-15
FLOORS = ("uniform", "class frequencies")
_BLOCK_VALUES = 1 << 20  # float32 values of one member handled together: 4 MiB


@dataclass(frozen=True)
class Blend:
    """How the members become one distribution.

    Attributes:
        pool: "linear" or "log".
        members: (model, view) pairs, M of them.
        weights: (M,) non-negative; with ``floors`` they sum to 1 in the linear pool.
        floors: weights of the uniform distribution and of ``prior``.
        temperatures: (M,) each member's own, applied before pooling.
        temperature: the one applied after pooling.
        prior: (K,) class frequencies of the training rows.
    """

    pool: str
    members: tuple[Member, ...]
    weights: Array
    floors: tuple[float, float]
    temperatures: Array
    temperature: float
    prior: Array


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
    size = max(1, _BLOCK_VALUES // max(1, num_classes))
    for start in range(0, num_rows, size):
        yield np.arange(start, min(start + size, num_rows))


def pool_arrays(kind: str, log_probs: Array, weights: Array, floors: Array, prior: Array) -> Array:
    """Pool members that are already in memory; see ``pool_rows``.

    Args:
        kind: "linear" or "log".
        log_probs: (M, R, K) float32.
        weights: (M,).
        floors: (2,) weights of the uniform and the prior member.
        prior: (K,) class frequencies.

    Returns:
        (R, K) normalised float32 log probabilities.
    """
    members = (row for row in log_probs)
    return _pool(kind, members, weights, floors, prior, log_probs.shape[1:])


def pool_rows(blend: Blend, read: Reader, rows: Array) -> Array:
    """Return the blend's log probabilities (R, K) float32 of ``rows``, final temperature included.

    Args:
        blend: members whose weight is 0 are not read.
        read: gives the log probabilities of one member.
        rows: (R,) row numbers.
    """
    used = [m for m, weight in enumerate(blend.weights) if weight > 0]
    members = (read(blend.members[m], rows, float(blend.temperatures[m])) for m in used)
    pooled = _pool(
        blend.pool,
        members,
        blend.weights[used],
        np.asarray(blend.floors),
        blend.prior,
        (len(rows), len(blend.prior)),
    )
    return log_softmax(pooled, blend.temperature)


def _pool(
    kind: str,
    members: Iterator[Array],
    weights: Array,
    floors: Array,
    prior: Array,
    shape: tuple[int, ...],
) -> Array:
    assert kind in ("linear", "log"), kind
    prior = np.maximum(prior, TINY)
    if kind == "linear":
        constant = floors[0] / len(prior) + floors[1] * prior
    else:
        constant = floors[1] * np.log(prior)  # the uniform member cancels
    total = np.empty(shape, dtype=np.float32)
    total[:] = constant
    for weight, member in zip(weights, members, strict=True):
        if weight > 0:
            values = np.exp(member) if kind == "linear" else member
            total += np.float32(weight) * values
    if kind == "linear":
        total = np.log(np.maximum(total, TINY, out=total), out=total)
    return log_softmax(total)


def true_losses(log_probs: Array, targets: Array) -> Array:
    """Return (N,) float64 -log p(true class), clipped as the grader clips."""
    losses = -log_probs[np.arange(len(targets)), targets].astype(np.float64)
    return np.minimum(losses, MAX_LOSS)


def member_log_probs(
    logits: Array, temperature: float, columns: Sequence[int], num_classes: int
) -> Array:
    """Return one member's float32 log probabilities (R, K) from its logits (R, K0).

    Columns of the same class are added up first; the temperature then acts on the K classes.

    Args:
        logits: (R, K0).
        temperature: the member's own.
        columns: (K0,) the merged class of each column.
        num_classes: K.
    """
    if num_classes == len(columns):
        return log_softmax(logits, temperature)
    merged = merge_columns(log_softmax(logits), columns, num_classes)
    return merged if temperature == 1.0 else log_softmax(merged, temperature)


def merge_columns(log_probs: Array, columns: Sequence[int], num_classes: int) -> Array:
    """Add up the probabilities of columns that stand for the same class.

    Args:
        log_probs: (R, K0).
        columns: (K0,) for each column the merged class it belongs to, below ``num_classes``.
        num_classes: K.

    Returns:
        (R, K) log probabilities.
    """
    merged = np.full((len(log_probs), num_classes), -np.inf, dtype=np.float32)
    target = np.asarray(columns)
    first = np.unique(target, return_index=True)[1]
    merged[:, target[first]] = log_probs[:, first]
    for column in sorted(set(range(len(target))) - set(first.tolist())):
        into = target[column]
        merged[:, into] = np.logaddexp(merged[:, into], log_probs[:, column])
    return merged
