"""Multi-label classification: several labels an image, a sigmoid for each.

Scores are those of pairs (``src/labels.py``): ``log_loss`` is the mean binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.labels import STATES, PairedLogits
from src.metrics.classification import ClassificationMeter
from src.tasks.classification import Classification


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
