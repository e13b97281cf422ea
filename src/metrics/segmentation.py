"""Segmentation meter: every score of predicted against true masks in one pass.

The meter only counts; ``src/metrics/counts.py`` divides. IoU means nothing by itself, so every
name says how it is averaged and ``trivial_`` scores stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from src.metrics.counts import (
    CLASS_SCORES,
    STATISTICS,
    SegmentationCounts,
    count_constant,
)

BOUNDARY_STATISTICS = ("pooled_boundary_f1_foreground", "image_boundary_f1_foreground")
TRIVIAL_STATISTICS = (
    "pooled_mean_iou",
    "pooled_mean_iou_foreground",
    "pooled_pixel_accuracy",
    "image_mean_iou",
    "micro_protocol_iou",
)


class SegmentationMeter:
    """Count pixels per image and class, then score them all.

    Args:
        num_classes: K, void not counted; 2 for a net with one output channel.
        ignore_index: label of void in the targets, None where there is none.
        class_names: K names for the per-class scores; numbers if empty.
        boundary_px: tolerance of the boundary F1 in pixels; 0 leaves it out (it costs about half
            a millisecond for each image and class).
        background: label left out of ``_foreground`` scores, None where no class is one.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        class_names: Sequence[str] = (),
        boundary_px: int = 2,
        *,
        background: int | None = 0,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = tuple(class_names) or tuple(str(k) for k in range(num_classes))
        assert len(self.class_names) == num_classes, "one name for each class"
        self.boundary_px = boundary_px
        self.background = -1 if background is None else background
        self._parts: list[dict[str, np.ndarray]] = []

    def update(self, prediction: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Count a batch.

        Args:
            prediction: logits (B, K, H, W), logits of the foreground (B, 1, H, W), or integer
                labels (B, H, W).
            batch: masks (B, H, W) under "mask" and rows (B,) under "index".
        """
        labels = to_labels(prediction).cpu().numpy()
        target = batch["mask"].cpu().numpy()
        assert labels.shape == target.shape, f"masks {target.shape}, predicted {labels.shape}"
        index = np.asarray(torch.as_tensor(batch["index"]).cpu(), np.int64)
        self._parts.append({"index": index, **self._count(labels, target)})

    def add(self, row: int, labels: np.ndarray, target: np.ndarray) -> None:
        """Count the labels (H, W) that were predicted of the image in ``row``."""
        assert labels.shape == target.shape, f"mask {target.shape}, predicted {labels.shape}"
        counts = self._count(labels.astype(np.int64)[None], target[None])
        self._parts.append({"index": np.array([row], np.int64), **counts})

    def counts(self) -> SegmentationCounts:
        """Hand over the counts of all images so far, ordered by index."""
        K = self.num_classes
        empty = {"index": np.zeros(0, np.int64), "boundary": np.zeros((0, K, 4), np.int64)}
        for name in ("intersection", "predicted", "target", "void_predicted"):
            empty[name] = np.zeros((0, K), np.int64)
        arrays = {
            n: np.concatenate([zero, *(p[n] for p in self._parts)]) for n, zero in empty.items()
        }
        return SegmentationCounts(**arrays, background=np.array(self.background)).sort()

    def state(self) -> list[dict[str, np.ndarray]]:
        """Return what was counted so far, for another process."""
        return self._parts

    def merge_states(self, states: Sequence[list[dict[str, np.ndarray]]]) -> None:
        """Replace the state by those of all processes, by rank."""
        self._parts = [counts for state in states for counts in state]

    def compute(self) -> dict[str, float]:
        """Score all images so far, see :func:`score_counts`."""
        return score_counts(self.counts(), self.class_names)

    def _count(self, labels: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        K, num_images = self.num_classes, len(target)
        true = target.astype(np.int64)
        void = (
            np.zeros(true.shape, bool) if self.ignore_index is None else true == self.ignore_index
        )
        assert true[~void].max(initial=0) < K > labels.max(), "a label lies beyond the classes"
        true[void] = K
        code = (np.arange(num_images)[:, None, None] * (K + 1) + true) * K + labels
        table = np.bincount(code.ravel(), minlength=num_images * (K + 1) * K)
        table = table.reshape(num_images, K + 1, K)
        valid = table[:, :K]
        boundary = np.zeros((num_images, K, 4), np.int64)
        if self.boundary_px:
            for row in range(num_images):
                boundary[row] = count_boundaries(
                    labels[row], target[row], K, self.ignore_index, self.boundary_px
                )
        return {
            "intersection": np.diagonal(valid, axis1=1, axis2=2).copy(),
            "predicted": valid.sum(1),
            "target": valid.sum(2),
            "void_predicted": table[:, K],
            "boundary": boundary,
        }


def to_labels(prediction: Tensor) -> Tensor:
    """Turn logits (B, K, H, W) into labels (B, H, W) int64; labels pass through.

    One channel is the foreground's logit: label 1 where its sigmoid reaches 0.5.
    """
    if prediction.ndim == 3:
        assert not prediction.is_floating_point(), "labels must be integers"
        return prediction.long()
    if prediction.shape[1] == 1:
        return (prediction[:, 0].float().sigmoid() >= 0.5).long()
    return prediction.argmax(1)


def score_counts(counts: SegmentationCounts, class_names: Sequence[str]) -> dict[str, float]:
    """Score ``counts``: means first, then ``name/class``, then ``trivial_`` (all background).

    Scores that do not exist (a class nowhere true nor predicted, no void, no boundaries counted)
    have no entry.
    """
    ones = np.ones((1, len(counts)))
    scores = {name: float(score(counts, ones)[0]) for name, score in STATISTICS.items()}
    if not counts.void_predicted.any():
        del scores["pooled_mean_iou_with_void"]
    if not counts.boundary.any():
        for name in BOUNDARY_STATISTICS:
            del scores[name]
    for name, score in CLASS_SCORES.items():
        if name == "pooled_boundary_f1" and not counts.boundary.any():
            continue
        values = score(counts, ones)[0]
        scores |= {
            f"{name}/{label}": float(v) for label, v in zip(class_names, values, strict=True)
        }
    trivial = count_constant(counts)
    for name in TRIVIAL_STATISTICS:
        scores[f"trivial_{name}"] = float(STATISTICS[name](trivial, ones)[0])
    return {name: value for name, value in scores.items() if np.isfinite(value)}


_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def count_boundaries(
    prediction: np.ndarray,
    target: np.ndarray,
    num_classes: int,
    ignore_index: int | None,
    radius: int,
) -> np.ndarray:
    """Count, for each class, the boundary pixels that lie within ``radius`` of the other map's.

    Args:
        prediction: labels (H, W), integers in 0..K-1.
        target: labels (H, W), integers in 0..K-1 or ``ignore_index``.
        num_classes: K.
        ignore_index: label of void, None where there is none.
        radius: Euclidean tolerance in pixels.

    Returns:
        int64 (K, 4): predicted and matched, predicted, true and matched, true.
    """
    counts = np.zeros((num_classes, 4), np.int64)
    void = np.zeros(target.shape, bool) if ignore_index is None else target == ignore_index
    disk = make_disk(radius)
    areas = [np.bincount(m[~void], minlength=num_classes) for m in (prediction, target)]
    for label in np.flatnonzero(areas[0] + areas[1]).tolist():
        ours, theirs = (find_edge(labels == label, void) for labels in (prediction, target))
        counts[label] = (
            np.count_nonzero(ours & cv2.dilate(theirs, disk)),
            np.count_nonzero(ours),
            np.count_nonzero(theirs & cv2.dilate(ours, disk)),
            np.count_nonzero(theirs),
        )
    return counts


def find_edge(mask: np.ndarray, void: np.ndarray) -> np.ndarray:
    """Mark the pixels of ``mask`` (bool) with a 4-neighbour outside it that is not void: uint8."""
    filled = (mask | void).astype(np.uint8)
    inside = cv2.erode(filled, _CROSS)  # beyond the frame counts as inside
    return (mask & ~void & (inside == 0)).astype(np.uint8)


def make_disk(radius: int) -> np.ndarray:
    """Build the structuring element of all offsets no longer than ``radius``: uint8."""
    steps = np.arange(-radius, radius + 1)
    return (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)
