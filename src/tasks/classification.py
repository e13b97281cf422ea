"""Classification: one class an image; a batch becomes a loss, logits, and scores.

Legend of the shapes in all tasks: B batch, C channels, K classes, H × W pixels, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.metrics.classification import ClassificationMeter

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Classification:
    """Learn ``target`` from ``image``.

    Attributes:
        num_classes: K.
        criterion: (logits (B, K), target (B,) int64 or (B, K) soft) → mean loss.
    """

    num_classes: int
    criterion: Loss
    monitor: str = "calibrated_log_loss"
    lower_is_better: bool = True
    loss_metric: str = "log_loss"

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
        return ClassificationMeter(self.num_classes)
