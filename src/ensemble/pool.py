"""Opinion pools of many predictors: linear (mean of probabilities) and logarithmic.

A *member* is one view of one model. The linear pool is the weighted mean of probabilities; the
logarithmic pool is the weighted sum of log probabilities, normalised again (Genest and Zidek 1986,
https://doi.org/10.1214/ss/1177013825). Then comes one temperature, and last a learned *floor*: a
little of two distributions that look at no image, the uniform one and the class frequencies of the
training rows. (After the temperature: a floor before it would act as one, and a
temperature below 1 would sharpen it away; see ``solvers.py``.) All arrays are float32 log
probabilities; a least value of 1e-30 keeps their logarithms finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from src.metrics.classification import Array, row_slices

Member = tuple[str, str]  # (model, view)

TINY = 1e-30
MAX_LOSS = float(-np.log(1e-15))  # the usual grader clips probabilities to 1e-15
FLOORS = ("uniform", "class frequencies")


@dataclass(frozen=True)
class Blend:
    """How the members become one distribution.

    Attributes:
        pool: "linear" or "log".
        members: (model, view) pairs, M of them.
        weights: (M,) non-negative; in the linear pool they sum to 1.
        temperatures: (M,) each member's own, applied before pooling.
        temperature: the one applied after pooling.
        floors: weights of the uniform distribution and of ``prior`` in the end.
        prior: (K,) class frequencies of the training rows.
    """

    pool: str
    members: tuple[Member, ...]
    weights: Array
    temperatures: Array
    temperature: float
    floors: tuple[float, float]
    prior: Array

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
    """Pool members.

    Args:
        kind: "linear" or "log".
        log_probs: (M, R, K) float32.
        weights: (M,).

    Returns:
        (R, K) normalised float32 log probabilities.
    """
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
