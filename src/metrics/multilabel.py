"""Contest metrics of several labels an image: binary cross-entropy, mean AUC, samples F1, mAP.

``targets`` are (N, K) of 0 and 1. Formulas, sources and tests: ``docs/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EPS = 1e-15


def binary_log_loss(probs: Array, targets: Array) -> float:
    """Return the mean binary cross-entropy over images and labels, in nats.

    Args:
        probs: (N, K), clipped to [1e-15, 1 - 1e-15].
        targets: (N, K).
    """
    clipped = np.clip(probs.astype(np.float64), EPS, 1.0 - EPS)
    return float(-np.log(np.where(targets > 0, clipped, 1.0 - clipped)).mean())


def mean_label_auc(probs: Array, targets: Array) -> float:
    """Return the area under the ROC curve, a mean over the labels; ties count half.

    A label that every image has, or none, has no curve and is left out.

    Source: Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747.
    """

    def area(scores: Array, has: Array) -> float:
        positive, others = scores[has], np.sort(scores[~has])
        below, up_to = (np.searchsorted(others, positive, side) for side in ("left", "right"))
        return float((below + up_to).mean() / (2 * len(others)))

    return _mean_over_labels(area, probs, targets, both=True)


def mean_label_precision(probs: Array, targets: Array) -> float:
    """Return the average precision Σ (R_i - R_{i-1}) P_i, a mean over the labels (mAP).

    i runs over the different scores, from the highest on. A label that no image has is left out.

    Source: Zhu 2004, Recall, precision and average precision, University of Waterloo.
    """

    def precision(scores: Array, has: Array) -> float:
        order = np.argsort(-scores, kind="stable")
        last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # of equal scores
        hits = np.cumsum(has[order])[last]
        return float((np.diff(np.r_[0, hits]) * hits / (last + 1)).sum() / has.sum())

    return _mean_over_labels(precision, probs, targets, both=False)


def samples_f1(marks: Array, targets: Array) -> float:
    """Return the mean over images of 2 TP / (labels it has + labels it was given).

    An image without labels that is given none counts 1.

    Args:
        marks: (N, K) of 0 and 1.
        targets: (N, K).
    """
    return float(f1_of_images((marks * targets).sum(1), marks.sum(1) + targets.sum(1)).mean())


def f1_of_images(hits: Array, both: Array) -> Array:
    """Return (N,) F1 of the true positives of each image, and of the labels had plus given."""
    return np.where(both > 0, 2.0 * hits / np.maximum(both, 1), 1.0)


def _mean_over_labels(
    measure: Callable[[Array, Array], float], probs: Array, targets: Array, *, both: bool
) -> float:
    found = []
    for k in range(probs.shape[1]):
        has = targets[:, k] > 0
        if has.any() and not (both and has.all()):
            found.append(measure(probs[:, k], has))
    return float(np.mean(found)) if found else float("nan")
