"""Mean probabilities of the first n views in, the score and the best threshold for each n out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from src.metrics.thresholds import ThresholdSweep
from src.tasks.segmentation import Segmentation, background_label
from src.tracks.maps import to_mask


def class_thresholds(task: Segmentation) -> tuple[float, ...]:
    """Return the thresholds worth trying for K > 2 classes.

    Only the micro track's score, which no false alarm in an absent class lowers, wants more
    foreground than the plain maximum gives: 0 to 6 nats in its favour.
    """
    if task.statistic != "micro_protocol_iou" or background_label(task.class_names) != 0:
        return (0.5,)
    return tuple(1 / (1 + math.exp(nats / 2)) for nats in range(13))


class ViewsScore:
    """Score the mean of the first n views, for every n and threshold at once."""

    def __init__(self, task: Segmentation, num_views: int) -> None:
        self.task = task
        self.thresholds = class_thresholds(task)
        self.sweeps = [ThresholdSweep(task.ignore_index) for _ in range(num_views)]
        self.meters = [[task.full_meter() for _ in self.thresholds] for _ in range(num_views)]

    def update(self, num_views: int, probs: Tensor, mask: np.ndarray) -> None:
        """Count the mean probabilities (1 or K, H, W) of the first ``num_views`` views."""
        target = torch.from_numpy(mask)[None]
        if self.task.num_outputs == 1:
            self.sweeps[num_views - 1].update(probs, target)
            return
        for threshold, meter in zip(self.thresholds, self.meters[num_views - 1], strict=True):
            labels = torch.from_numpy(to_mask(probs, threshold).astype(np.int64))[None]
            meter.update(labels, target)

    def table(self) -> list[dict[str, float]]:
        """Return {views, score, threshold} for each n; ``plain`` is the score at 0.5."""
        rows = []
        for number, (sweep, meters) in enumerate(zip(self.sweeps, self.meters, strict=True), 1):
            if self.task.num_outputs == 1:
                threshold, score = sweep.best(self.task.statistic)
                plain = float(sweep.scores(self.task.statistic)[sweep.num_bins // 2])
            else:
                scores = [meter.compute()[self.task.monitor] for meter in meters]
                best = int(np.argmax(scores))
                threshold, score, plain = self.thresholds[best], scores[best], scores[0]
            rows.append({"views": number, "score": score, "threshold": threshold, "plain": plain})
        return rows
