"""Paired, grouped bootstrap interval of the difference of two scores over the same images.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap", percentile intervals. Pairs are
resampled: both runs see the same images in every resampling, so that hard images cancel out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from src.metrics.classification import number_units
from src.metrics.counts import STATISTICS, SegmentationCounts
from src.script import UserError

MIN_UNITS = 5  # resampling fewer images or groups says nothing

Score = Callable[[np.ndarray], np.ndarray]  # weights (R, N) -> scores (R,)


@dataclass(frozen=True)
class Difference:
    """Score of a run B minus that of a run A, with its bootstrap interval."""

    name: str  # the score
    first: float  # score of A
    second: float  # score of B
    low: float  # lower end of the interval of ``second - first``
    high: float  # its upper end
    num_units: int  # images, or groups of images, that were resampled

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.second - self.first

    @property
    def within_noise(self) -> bool:
        """Whether these images cannot tell the two apart: zero inside, too few units, or nan."""
        return self.num_units < MIN_UNITS or not (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        verdict = "within noise" if self.within_noise else "beyond noise"
        if np.isnan(self.difference):
            verdict = "not measured on these images"
        return (
            f"{self.name}: {self.first:.4f} -> {self.second:.4f}, difference "
            f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
            f"(95%, n = {self.num_units}): {verdict}"
        )


def bootstrap_difference(
    name: str,
    first: Score,
    second: Score,
    num_rows: int,
    *,
    groups: Sequence[str] | np.ndarray | None = None,
) -> Difference:
    """Resample rows and score both runs on each resampling.

    Args:
        name: of the score, for the report.
        first: weights (R, N) -> scores (R,) of run A.
        second: the same of run B, over the same rows in the same order.
        num_rows: N.
        groups: (N,) where given, whole groups are resampled: frames of a video are no
            independent evidence. "" is a group of its own.
    """
    assert num_rows > 0, "nothing to compare"
    weights, num_units = draw_weights(num_rows, groups)
    gaps = second(weights) - first(weights)
    low, high = percentile_interval(gaps)
    ones = np.ones((1, num_rows))
    a, b = (float(score(ones)[0]) for score in (first, second))
    return Difference(name, a, b, float(low), float(high), num_units)


def percentile_interval(scores: np.ndarray) -> np.ndarray:
    """Return the 95 % interval of resampled scores: (R, ...) -> (2, ...), nan where all are nan."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.nanquantile(scores, [0.025, 0.975], axis=0)


def draw_weights(
    num_rows: int,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    num_resamples: int = 2000,
) -> tuple[np.ndarray, int]:
    """Return how often each row is drawn (R, N) float64, and the number of units resampled.

    R is ``num_resamples``; the other arguments are those of :func:`bootstrap_difference`.
    """
    unit = number_units(groups, num_rows)
    num_units = int(unit.max()) + 1
    rng = np.random.default_rng(0)
    draws = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)
    return draws[:, unit].astype(np.float64), num_units


def assign_parts(groups: Sequence[str] | np.ndarray, num_parts: int = 5) -> np.ndarray:
    """Split rows into parts, groups whole, "" alone: (N,) numbers below ``num_parts``."""
    unit = number_units(groups, len(groups))
    order = np.random.default_rng(0).permutation(int(unit.max()) + 1)
    return order[unit] % num_parts


def compare_counts(
    first: SegmentationCounts,
    second: SegmentationCounts,
    statistic: str = "pooled_mean_iou",
    *,
    groups: Sequence[str] | np.ndarray | None = None,
) -> Difference:
    """Compare two segmentation runs on the images that both predicted.

    ``statistic`` is a name in ``STATISTICS``; ``groups`` (N,) are of the images, in the order of
    their index.

    Raises:
        UserError: runs over different images.
    """
    first, second = first.sort(), second.sort()
    if not np.array_equal(first.index, second.index):
        raise UserError("the two runs predicted different images: compare them on one split")
    score = STATISTICS[statistic]
    return bootstrap_difference(
        statistic,
        lambda weights: score(first, weights),
        lambda weights: score(second, weights),
        len(first),
        groups=groups,
    )
