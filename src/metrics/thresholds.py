"""Threshold sweep: the foreground threshold with the best IoU on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from src.metrics.counts import PROTOCOL_EPSILON


class ThresholdSweep:
    """Score every threshold j / num_bins in one pass, from per-image histograms.

    Args:
        ignore_index: label of void, None where there is none; label 1 is the foreground.
        num_bins: resolution of the thresholds.
    """

    def __init__(self, ignore_index: int | None = 255, num_bins: int = 100) -> None:
        self.ignore_index = ignore_index
        self.num_bins = num_bins
        self._histograms: list[np.ndarray] = []

    def update(self, probs: Tensor, batch: Mapping[str, Any] | Tensor) -> None:
        """Count a batch.

        Args:
            probs: foreground (B, H, W) in [0, 1].
            batch: masks (B, H, W) under "mask", or the masks alone.
        """
        masks = (batch if isinstance(batch, Tensor) else batch["mask"]).cpu().numpy()
        values = (probs.float().cpu().numpy() * self.num_bins).astype(np.int64)
        values = values.clip(0, self.num_bins - 1)
        for value, mask in zip(values, masks, strict=True):
            valid = np.ones(mask.shape, bool)
            if self.ignore_index is not None:
                valid = mask != self.ignore_index
            code = (mask[valid] == 1) * self.num_bins + value[valid]
            table = np.bincount(code, minlength=2 * self.num_bins)
            self._histograms.append(table.reshape(2, self.num_bins))

    def counted(self) -> list[np.ndarray]:
        """Return what was counted, for another process."""
        return self._histograms

    def join(self, parts: Sequence[list[np.ndarray]]) -> None:
        """Hold what all processes counted instead, by rank."""
        self._histograms = [table for part in parts for table in part]

    def scores(self, statistic: str = "pooled_iou") -> np.ndarray:
        """Score each threshold j / num_bins: (num_bins,).

        Args:
            statistic: "pooled_iou" of the foreground, or "micro_protocol_iou" (mean over the
                images that hold foreground).
        """
        assert statistic in {"pooled_iou", "micro_protocol_iou"}, statistic
        table = np.stack(self._histograms)
        above = table[..., ::-1].cumsum(-1)[..., ::-1]  # pixels at or above each threshold
        hits, target = above[:, 1], table[:, 1].sum(-1, keepdims=True)
        union = above[:, 0] + target
        if statistic == "pooled_iou":
            return hits.sum(0) / np.maximum(union.sum(0), 1)
        present = target[:, 0] > 0
        if not present.any():
            return np.zeros(self.num_bins)
        return (hits[present] / (union[present] + PROTOCOL_EPSILON)).mean(0)

    def best(self, statistic: str = "pooled_iou") -> tuple[float, float]:
        """Find (threshold, its score); of equals the one nearest 0.5."""
        scores = self.scores(statistic)
        thresholds = np.arange(self.num_bins) / self.num_bins
        tied = thresholds[scores >= scores.max() - 1e-12]
        threshold = float(tied[np.abs(tied - 0.5).argmin()])
        return threshold, float(scores.max())
