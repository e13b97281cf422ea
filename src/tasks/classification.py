"""Classification: one class an image; a batch becomes a loss, logits, and scores.

Legend of the shapes in all tasks: B batch, C channels, K classes, H × W pixels, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from src.classes import STATES, PairedLogits
from src.metrics.classification import Array, ClassificationMeter
from src.metrics.contest import Metric
from src.metrics.decisions import plain_score

Loss = Callable[[Tensor, Tensor], Tensor]

MONITOR = "calibrated_log_loss"  # where the contest counts log loss


@dataclass(frozen=True)
class Classification:
    """Learn ``target`` from ``image``."""

    num_classes: int
    criterion: Loss  # (logits (B, K), target (B,) int64 or (B, K) soft) → mean loss
    # what the contest counts; None = log loss, which is monitored calibrated
    metric: Metric | None = None
    loss_metric: str = "log_loss"

    @property
    def monitor(self) -> str:
        """Name of the score that decides which weights are kept."""
        return self.metric.name if self.metric else MONITOR

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower score is the better one."""
        return not (self.metric and self.metric.greater_is_better)

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
        return ClassificationMeter(self.num_classes, self._scored)

    @property
    def _scored(self) -> dict[str, Callable[[Array, Array], float]]:
        return {self.metric.name: partial(plain_score, self.metric)} if self.metric else {}


class MultiLabel(Classification):
    """Learn ``target`` (B, K) of 0 and 1 from ``image``."""

    def meter(self) -> ClassificationMeter:
        """Return an empty meter."""
        return PairMeter(len(STATES), self._scored)


class PairMeter(ClassificationMeter):
    """Scores pairs of images and labels."""

    def update(self, prediction: Any, batch: Mapping[str, Any]) -> None:
        """Add one batch of logits (B, K) and ``target`` (B, K)."""
        logits = prediction.detach().float().cpu().numpy()
        pairs = PairedLogits(logits[None])[0, slice(None)]
        super().update(pairs, {"target": batch["target"].reshape(-1)})
