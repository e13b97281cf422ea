"""Segmentation scores from per-image pixel counts, each stating its averaging.

Everything is a function of weighted sums over images, ``score(counts, weights (R, N)) -> (R,)``:
weights of one give the score, R resamplings its bootstrap. The ``class_`` functions return (R, K);
without weights they score each image by itself, (N, K).

Averaging: *pooled* sums the pixels of all images first; *image* scores each image and takes the
mean. A class with an empty union (nowhere true, nowhere predicted) has no score and enters no
mean. ``_foreground`` leaves the background class out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from src.files import atomic_write, read_arrays

Weights = np.ndarray | None
PROTOCOL_EPSILON = 1e-6  # of the micro track's own score


@dataclass(frozen=True)
class SegmentationCounts:
    """What has to be kept of N predicted images with K classes; all arrays int64."""

    index: np.ndarray  # (N,) address of each image in its table, unique
    # (N, K) pixels of class k predicted as k; void is left out here and below
    intersection: np.ndarray
    predicted: np.ndarray  # (N, K) pixels predicted as k
    target: np.ndarray  # (N, K) pixels of class k
    void_predicted: np.ndarray  # (N, K) void pixels predicted as k
    boundary: np.ndarray  # (N, K, 4) see :func:`src.metrics.segmentation.count_boundaries`
    background: np.ndarray  # () label of the background, -1 where no class is one

    def __len__(self) -> int:
        return len(self.index)

    @property
    def foreground(self) -> np.ndarray:
        """Bool (K,): every class but the background."""
        return np.arange(self.target.shape[1]) != int(self.background)

    def sort(self) -> SegmentationCounts:
        """Order the images by their index."""
        order = np.argsort(self.index, kind="stable")
        arrays = {f.name: getattr(self, f.name)[order] for f in fields(self)[:-1]}
        return replace(self, **arrays)

    def save(self, path: Path | str) -> None:
        """Write a plain npz, atomically."""
        with atomic_write(path) as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})


ClassScore = Callable[[SegmentationCounts, Weights], np.ndarray]
Statistic = Callable[[SegmentationCounts, np.ndarray], np.ndarray]


def load_counts(path: Path | str, remedy: str = "score the run again") -> SegmentationCounts:
    """Read what :meth:`SegmentationCounts.save` wrote.

    Raises:
        UserError: missing, or not what was written; ends with ``remedy``.
    """
    names = [field.name for field in fields(SegmentationCounts)]
    return SegmentationCounts(**read_arrays(Path(path), names, remedy))


def count_constant(counts: SegmentationCounts) -> SegmentationCounts:
    """Count what predicting nothing would score: all background.

    Where no class is the background, the most frequent class is predicted everywhere.
    """
    label = int(counts.background)
    if label < 0:
        label = int(counts.target.sum(0).argmax())
    zeros = np.zeros_like(counts.target)
    intersection, predicted, void = zeros.copy(), zeros.copy(), zeros.copy()
    intersection[:, label] = counts.target[:, label]
    predicted[:, label] = counts.target.sum(1)
    void[:, label] = counts.void_predicted.sum(1)
    boundary = counts.boundary.copy()
    boundary[..., :3] = 0
    return replace(
        counts, intersection=intersection, predicted=predicted, void_predicted=void,
        boundary=boundary,
    )  # fmt: skip


def class_iou(counts: SegmentationCounts, weights: Weights = None) -> np.ndarray:
    """Pooled I / U of each class: (R, K), nan where the union is empty."""
    hits, predicted, target = _pool(counts, weights)
    return _divide(hits, predicted + target - hits)


def class_dice(counts: SegmentationCounts, weights: Weights = None) -> np.ndarray:
    """Pooled 2I / (P + T) of each class, the F1 of its pixels: (R, K)."""
    hits, predicted, target = _pool(counts, weights)
    return _divide(2 * hits, predicted + target)


def class_precision(counts: SegmentationCounts, weights: Weights = None) -> np.ndarray:
    """Pooled I / P of each class: (R, K), nan where nothing is predicted."""
    hits, predicted, _ = _pool(counts, weights)
    return _divide(hits, predicted)


def class_recall(counts: SegmentationCounts, weights: Weights = None) -> np.ndarray:
    """Pooled I / T of each class: (R, K), nan where the class is nowhere true."""
    hits, _, target = _pool(counts, weights)
    return _divide(hits, target)


def class_boundary_f1(counts: SegmentationCounts, weights: Weights = None) -> np.ndarray:
    """Pooled boundary F1 of each class: (R, K), nan where no boundary is true or predicted."""
    pooled = counts.boundary
    if weights is not None:
        pooled = np.einsum("rn,nkc->rkc", weights, pooled, optimize=True)
    return _boundary_f1(pooled)


def class_protocol_iou(counts: SegmentationCounts, weights: Weights = None) -> np.ndarray:
    """Mean of I / (U + 1e-6) over the images that truly hold the class: (R, K).

    The micro track's own score of a class: false alarms in other images cost nothing.
    """
    union = counts.predicted + counts.target - counts.intersection
    present = (counts.target > 0).astype(np.float64)
    iou = present * counts.intersection / (union + PROTOCOL_EPSILON)
    if weights is None:
        return _divide(iou, present)
    return _divide(weights @ iou, weights @ present)


def pixel_accuracy(counts: SegmentationCounts, weights: np.ndarray) -> np.ndarray:
    """Pooled share of pixels that are right (aAcc), void left out: (R,)."""
    hits, _, target = _pool(counts, weights)
    return _divide(hits.sum(1), target.sum(1))


def pooled_mean_iou_with_void(counts: SegmentationCounts, weights: np.ndarray) -> np.ndarray:
    """Mean IoU over K + 1 classes with void as one that is never predicted: (R,).

    Void pixels then are false alarms of whatever is predicted there. Only for comparison with
    published "12-class" figures.
    """
    hits, predicted, target = _pool(counts, weights)
    iou = _divide(hits, predicted + weights @ counts.void_predicted + target - hits)
    return np.nansum(iou, axis=1) / (np.isfinite(iou).sum(1) + 1)


def _per_image(score: ClassScore, foreground: bool) -> Statistic:
    """Mean over images of the mean over the classes that have a score in the image."""

    def statistic(counts: SegmentationCounts, weights: np.ndarray) -> np.ndarray:
        table = score(counts, None)
        value = _mean(table[:, counts.foreground] if foreground else table)
        valid = np.isfinite(value)
        return _divide(weights @ np.where(valid, value, 0), weights @ valid.astype(np.float64))

    return statistic


def _over_classes(score: ClassScore, foreground: bool) -> Statistic:
    def statistic(counts: SegmentationCounts, weights: np.ndarray) -> np.ndarray:
        table = score(counts, weights)
        return _mean(table[:, counts.foreground] if foreground else table)

    return statistic


# Name -> score(counts, weights (R, N)) -> (R,).
STATISTICS: dict[str, Statistic] = {
    "pooled_mean_iou": _over_classes(class_iou, False),
    "pooled_mean_iou_foreground": _over_classes(class_iou, True),
    "pooled_mean_accuracy": _over_classes(class_recall, False),
    "pooled_pixel_accuracy": pixel_accuracy,
    "pooled_mean_dice": _over_classes(class_dice, False),
    "pooled_mean_dice_foreground": _over_classes(class_dice, True),
    "pooled_mean_precision_foreground": _over_classes(class_precision, True),
    "pooled_mean_recall_foreground": _over_classes(class_recall, True),
    "pooled_boundary_f1_foreground": _over_classes(class_boundary_f1, True),
    "image_mean_iou": _per_image(class_iou, False),
    "image_mean_iou_foreground": _per_image(class_iou, True),
    "image_mean_dice_foreground": _per_image(class_dice, True),
    "image_boundary_f1_foreground": _per_image(class_boundary_f1, True),
    "micro_protocol_iou": _over_classes(class_protocol_iou, True),
    "pooled_mean_iou_with_void": pooled_mean_iou_with_void,
}
CLASS_SCORES: dict[str, ClassScore] = {
    "pooled_iou": class_iou,
    "pooled_dice": class_dice,
    "pooled_precision": class_precision,
    "pooled_recall": class_recall,
    "pooled_boundary_f1": class_boundary_f1,
    "micro_protocol_iou": class_protocol_iou,
}


def _pool(
    counts: SegmentationCounts, weights: Weights
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if weights is None:
        return counts.intersection, counts.predicted, counts.target
    return weights @ counts.intersection, weights @ counts.predicted, weights @ counts.target


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _mean(table: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not nan; nan where nothing is."""
    valid = np.isfinite(table)
    return _divide(np.where(valid, table, 0).sum(-1), valid.sum(-1))


def _boundary_f1(counts: np.ndarray) -> np.ndarray:
    """F1 from (..., 4) counts; 0 where only one side has a boundary, nan where neither has."""
    precision = np.nan_to_num(_divide(counts[..., 0], counts[..., 1]))
    recall = np.nan_to_num(_divide(counts[..., 2], counts[..., 3]))
    f1 = np.nan_to_num(_divide(2 * precision * recall, precision + recall))
    return np.where(counts[..., 1] + counts[..., 3] > 0, f1, np.nan)
