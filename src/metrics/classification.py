"""Classification metrics: log loss, temperature-calibrated log loss, accuracy, macro F1.

Everything is float64 numpy and goes through the rows in blocks, so that 33,137 × 396 logits cost
tens of megabytes of scratch memory rather than gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

EPS = 1e-15  # the usual grader clips to [1e-15, 1 - 1e-15], then divides by the row sum
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_BLOCK_VALUES = 1 << 20  # float64 values looked at together: 8 MiB
_FLOOR = -1e5  # below any float16 logit; lets log(0) = -inf through without a nan


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Turn logits (..., K) of any float type into float64 probabilities (..., K).

    Args:
        logits: (..., K); -inf is allowed and means probability 0.
        temperature: divides the logits; above 1 softens.
    """
    probs = np.array(logits, dtype=np.float64)  # one copy, then in place
    probs -= probs.max(axis=-1, keepdims=True)
    probs /= temperature
    np.exp(probs, out=probs)
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs


def log_loss(probs: Array, targets: Array) -> float:
    """Return the mean of -log p(true class) in nats, as the grader computes it.

    Every probability is clipped to [1e-15, 1 - 1e-15], then each row is divided by its sum. (The
    function of the same name in scikit-learn clips by dtype and does not renormalise.)

    Args:
        probs: (N, K) in [0, 1], any float type; rows need not sum to one.
        targets: (N,) class numbers in [0, K).
    """
    targets = _check_targets(targets, probs.shape)
    total = 0.0
    for rows in row_slices(*probs.shape):
        clipped = np.clip(np.asarray(probs[rows], dtype=np.float64), EPS, 1.0 - EPS)
        true = clipped[np.arange(len(clipped)), targets[rows]]
        total += float(np.sum(np.log(clipped.sum(axis=1)) - np.log(true)))
    return total / len(targets)


def fit_temperature(
    logits: Array, targets: Array, *, prior: float = 0.0, tolerance: float = 1e-7
) -> float:
    """Return the temperature T that minimises the log loss of softmax(logits / T).

    The loss is convex in b = 1 / T: its slope is mean(E_p[z] - z_y), its curvature mean(Var_p[z]).
    Newton's method, kept inside a bracket that only shrinks, ends in about eight passes. Where no
    finite optimum exists (every row right, or worse than chance) T stops at its bound,
    [0.05, 20]; where the logits are not finite it is 1.

    Args:
        logits: (N, K) of any float type, or log probabilities; -inf is allowed.
        targets: (N,) class numbers in [0, K).
        prior: weight, in rows, of the belief that T is 1: b - log b is added to the summed loss.
            With 0 a small set on which every row is right would ask for boundless confidence.
        tolerance: relative width of the bracket or step at which the search ends.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    targets = _check_targets(targets, logits.shape)
    low, high = 1.0 / MAX_TEMPERATURE, 1.0 / MIN_TEMPERATURE
    if not np.isfinite(_slope_and_curvature(logits, targets, 1.0, prior)[0]):
        return 1.0
    if _slope_and_curvature(logits, targets, high, prior)[0] <= 0:
        return MIN_TEMPERATURE
    if _slope_and_curvature(logits, targets, low, prior)[0] >= 0:
        return MAX_TEMPERATURE
    beta = 1.0
    while high - low > tolerance * low:
        slope, curvature = _slope_and_curvature(logits, targets, beta, prior)
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else np.inf
        if abs(step - beta) <= tolerance * beta:
            return 1.0 / step
        # Where Newton leaves the bracket, bisect it on a log scale.
        beta = step if low < step < high else float(np.sqrt(low * high))
    return 1.0 / beta


def macro_f1(predicted: Array, targets: Array, num_classes: int) -> float:
    """Return F1 averaged over the classes that occur among targets or predictions.

    ``predicted`` and ``targets`` (N,) are class numbers in [0, K).
    """
    hits = np.bincount(targets[predicted == targets], minlength=num_classes)
    both = np.bincount(targets, minlength=num_classes) + np.bincount(
        predicted, minlength=num_classes
    )
    return float(np.mean(2.0 * hits[both > 0] / both[both > 0]))


class ClassificationMeter:
    """Collects logits and targets batch by batch; `compute` divides once, at the end."""

    def __init__(
        self, num_classes: int, extra: Mapping[str, Callable[[Array, Array], float]] | None = None
    ) -> None:
        """Make an empty meter; ``extra`` scores calibrated log probabilities and targets."""
        self.num_classes = num_classes
        self._extra = dict(extra or {})
        self._logits: list[Array] = []
        self._targets: list[Array] = []

    def update(self, prediction: Tensor | Array, batch: Mapping[str, Tensor | Array]) -> None:
        """Add one batch.

        Args:
            prediction: logits (B, K), a tensor on any device or an array.
            batch: holds `target` (B,), class numbers in [0, K).
        """
        logits, targets = _to_numpy(prediction), _to_numpy(batch["target"])
        assert logits.shape == (len(targets), self.num_classes), (logits.shape, targets.shape)
        self._logits.append(logits.astype(np.float32))
        self._targets.append(targets.astype(np.int64))

    def state(self) -> tuple[list[Array], list[Array]]:
        """Return what was collected, for another process."""
        return self._logits, self._targets

    def merge_states(self, states: Sequence[tuple[list[Array], list[Array]]]) -> None:
        """Replace the state by those of all processes, by rank."""
        self._logits = [logits for part, _ in states for logits in part]
        self._targets = [targets for _, part in states for targets in part]

    def compute(self) -> dict[str, float]:
        """Return log_loss, calibrated_log_loss, temperature, accuracy and macro_f1 of all rows.

        The calibrated figure is fitted on the very rows it is read on: one number fitted, so its
        optimism is of the order of 1 / (2 N) nats; choose checkpoints by it.
        """
        assert self._logits, "no batch has been added"
        logits, targets = np.concatenate(self._logits), np.concatenate(self._targets)
        temperature = fit_temperature(logits, targets, prior=1.0)
        predicted = logits.argmax(axis=1)
        calibrated = softmax(logits, temperature)
        scores = {
            "log_loss": log_loss(softmax(logits), targets),
            "calibrated_log_loss": log_loss(calibrated, targets),
            "temperature": temperature,
            "accuracy": float(np.mean(predicted == targets)),
            "macro_f1": macro_f1(predicted, targets, self.num_classes),
        }
        if self._extra:
            log_probs = np.log(np.maximum(calibrated, EPS)).astype(np.float32)
            scores |= {name: score(log_probs, targets) for name, score in self._extra.items()}
        return scores


def _slope_and_curvature(
    logits: Array, targets: Array, beta: float, prior: float
) -> tuple[float, float]:
    """Return the first and second derivative in beta of the penalised mean log loss."""
    slope, curvature = prior * (1 - 1 / beta), prior / beta**2
    for rows in row_slices(*logits.shape):
        z = np.array(logits[rows], dtype=np.float64)
        z -= z.max(axis=1, keepdims=True)
        np.maximum(z, _FLOOR, out=z)
        probs = np.exp(beta * z)
        probs /= probs.sum(axis=1, keepdims=True)
        true = z[np.arange(len(z)), targets[rows]]
        mean = np.einsum("nk,nk->n", probs, z)
        z *= z
        square = np.einsum("nk,nk->n", probs, z)
        slope += float(np.sum(mean - true))
        curvature += float(np.sum(square - mean**2))
    return slope / len(targets), curvature / len(targets)


def row_slices(num_rows: int, width: int, values: int = _BLOCK_VALUES) -> Iterator[slice]:
    """Yield slices of rows, so many that ``width`` columns hold about ``values`` numbers."""
    size = max(1, values // max(1, width))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def number_units(groups: Sequence[str] | Array | None, num_rows: int) -> Array:
    """Number groups (N,) from 0; "" is a group of its own each time, and so is all without any."""
    if groups is None:
        return np.arange(num_rows)
    names = [group or f"\0{row}" for row, group in enumerate(np.asarray(groups).tolist())]
    return np.unique(names, return_inverse=True)[1]


def _check_targets(targets: Array, shape: tuple[int, ...]) -> Array:
    targets = np.asarray(targets)
    assert len(shape) == 2 and targets.shape == shape[:1] and len(targets), (targets.shape, shape)
    assert targets.min() >= 0 and targets.max() < shape[1], "a target is not a class number"
    return targets


def _to_numpy(values: Tensor | Array) -> Array:
    """Return a float32 or integer array of a tensor (any device, bf16 included) or an array."""
    if hasattr(values, "detach"):
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values)
