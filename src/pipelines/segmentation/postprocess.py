"""Post-processing of binary masks (morphology, small components), adopted by cross-validation.

Morphology and the removal of small components look good on single pictures. Whether they help is
decided by cross-validation over images (groups of them): the setting is chosen on some, scored on
the others, and kept only if the gain in pooled IoU is beyond noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from src.metrics.bootstrap import Difference, assign_parts, bootstrap_difference

NUM_PARTS = 5


@dataclass(frozen=True)
class Cleaning:
    """What is done to a mask."""

    # ``none``, ``open`` (drops what is thinner than the disc) or ``close`` (fills gaps)
    shape: str = "none"
    radius: int = 0  # of the disc, px
    min_area: int = 0  # components of fewer pixels are dropped; diagonal neighbours touch

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Tidy the foreground of labels (H, W) in {0, 1}, uint8."""
        if self.shape != "none":
            size = (2 * self.radius + 1,) * 2
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size)
            kind = cv2.MORPH_OPEN if self.shape == "open" else cv2.MORPH_CLOSE
            mask = cv2.morphologyEx(mask, kind, disc)
        if self.min_area:
            _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            large = stats[:, cv2.CC_STAT_AREA] >= self.min_area
            large[0] = False  # the background
            mask = large[labels].astype(np.uint8)
        return mask

    def __str__(self) -> str:
        parts = [f"{self.shape} {self.radius} px"] if self.shape != "none" else []
        parts += [f"drop below {self.min_area} px"] if self.min_area else []
        return ", ".join(parts) or "nothing"


CANDIDATES = tuple(
    Cleaning(shape, radius, area)
    for (shape, radius), area in product(
        [("none", 0), ("open", 1), ("close", 1), ("close", 2), ("close", 4)], [0, 32, 128, 512]
    )
)


@dataclass(frozen=True)
class Verdict:
    """The best cleaning, and what cross-validation says of choosing it."""

    cleaning: Cleaning
    gain: Difference

    @property
    def kept(self) -> bool:
        """Whether the gain is beyond noise, on enough images to tell."""
        return self.gain.low > 0 and self.gain.num_units >= NUM_PARTS

    def __str__(self) -> str:
        word = "kept" if self.kept else "refused"
        return f"post-processing {word} ({self.cleaning}): {self.gain}"


def count_cleaned(mask: np.ndarray, target: np.ndarray, void: int) -> np.ndarray:
    """Count every candidate: (C, 2) intersection and union of the foreground, void left out."""
    valid, true = target != void, target == 1
    counts = np.empty((len(CANDIDATES), 2), np.int64)
    for row, clean in enumerate(CANDIDATES):
        found = (clean(mask) == 1) & valid
        counts[row] = (found & true).sum(), (found | true).sum()
    return counts


def judge_cleaning(counts: np.ndarray, groups: Sequence[str] | None = None) -> Verdict:
    """Cross-validate the choice of a cleaning.

    ``counts`` (N, C, 2) come from :func:`count_cleaned`; candidate 0 does nothing. Images of one of
    the ``groups`` (N,) stay together, "" alone.
    """
    num_images = len(counts)
    names = list(groups or [""] * num_images)
    part = assign_parts(names, NUM_PARTS)
    chosen = np.empty((num_images, 2), np.int64)
    for number in range(NUM_PARTS):
        inside = part == number
        best = int(_iou(counts[~inside].sum(0)).argmax()) if (~inside).any() else 0
        chosen[inside] = counts[inside, best]

    gain = bootstrap_difference(
        "cross-validated pooled IoU",
        lambda weights: _iou(weights @ counts[:, 0]),
        lambda weights: _iou(weights @ chosen),
        num_images,
        groups=names,
    )
    return Verdict(CANDIDATES[int(_iou(counts.sum(0)).argmax())], gain)


def _iou(counts: np.ndarray) -> np.ndarray:
    return counts[..., 0] / np.maximum(counts[..., 1], 1)
