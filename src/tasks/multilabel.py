"""Multi-label classification: several labels an image, a sigmoid for each.

Scores are those of pairs (``src/labels.py``): ``log_loss`` is the mean binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from src.labels import STATES, PairedLogits
from src.metrics.classification import ClassificationMeter
from src.metrics.contest import Metric
from src.metrics.decisions import plain_score
from src.tasks.classification import MONITOR, Loss


@dataclass(frozen=True)
class MultiLabel:
    """Learn ``target`` (B, K) of 0 and 1 from ``image``.

    Attributes:
        num_labels: K.
        criterion: (logits (B, K), target (B, K) in [0, 1]) → mean loss.
        metric: what the contest counts; for log loss the calibrated one is monitored.
    """

    num_labels: int
    criterion: Loss
    metric: Metric
    loss_metric: str = "log_loss"

    @property
    def monitor(self) -> str:
        """Name of the score that decides which weights are kept."""
        return self.metric.name if self.metric.greater_is_better else MONITOR

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower score is the better one."""
        return not self.metric.greater_is_better

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean loss of the batch."""
        logits = model(batch["image"])
        with torch.autocast(logits.device.type, enabled=False):
            return {"loss": self.criterion(logits.float(), batch["target"])}

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return logits (B, K)."""
        return model(batch["image"])

    def meter(self) -> ClassificationMeter:
        """Return an empty meter."""
        scored = {self.metric.name: partial(plain_score, self.metric)}
        return PairMeter(len(STATES), scored if self.metric.greater_is_better else {})


class PairMeter(ClassificationMeter):
    """Scores pairs of images and labels."""

    def update(self, prediction: Any, batch: Mapping[str, Any]) -> None:
        """Add one batch of logits (B, K) and ``target`` (B, K)."""
        logits = prediction.detach().float().cpu().numpy()
        pairs = PairedLogits(logits[None])[0, slice(None)]
        super().update(pairs, {"target": batch["target"].reshape(-1)})
