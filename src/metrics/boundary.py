"""Boundary F1 of two label maps, as counts of matched boundary pixels.

Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?",
https://doi.org/10.5244/C.27.32. What differs: the frame of the image and the rim of void regions
are no boundaries, because nobody could have marked them.
"""

from __future__ import annotations

import cv2
import numpy as np

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
