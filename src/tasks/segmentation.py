"""Segmentation: one class a pixel; a batch becomes a loss, logits of every pixel, and scores.

Legend of the shapes as in ``classification.py``. Void pixels carry ``ignore_index`` in every mask.
With two classes the net may give one logit, the foreground's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from src.metrics.segmentation import SegmentationMeter
from src.metrics.thresholds import ThresholdSweep

Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]

# Neighbouring windows share at least this part of their side; with half, as nnU-Net has it, they
# would be 1.8 times as many.
OVERLAP = 1 / 3
# What a validation reports of all the meter counts; per-class scores of two classes are added.
REPORTED = (
    "pooled_mean_iou",
    "pooled_mean_accuracy",
    "pooled_pixel_accuracy",
    "pooled_mean_iou_with_void",
    "micro_protocol_iou",
)
OF_FOREGROUND = ("pooled_iou", "pooled_dice", "pooled_precision", "pooled_recall")


@dataclass(frozen=True)
class Segmentation:
    """Learn ``mask`` (B, H, W) from ``image``."""

    class_names: tuple[str, ...]  # K names; K is their number
    criterion: Loss  # (logits, mask) → ``loss`` and its terms
    ignore_index: int = 255  # label of void pixels
    # what chooses the best weights, ``pooled_iou`` or ``micro_protocol_iou``: of the
    # foreground at its best threshold where there is one logit, else a mean over classes
    statistic: str = "pooled_iou"
    # (height, width) that a larger image is predicted by; None = whole images
    window: tuple[int, int] | None = None
    lower_is_better: bool = False
    loss_metric: str = ""

    @property
    def num_classes(self) -> int:
        """K, void not counted."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: 1 for two classes."""
        return 1 if self.num_classes == 2 else self.num_classes

    def full_meter(self, boundary_px: int = 0) -> SegmentationMeter:
        """Return an empty meter of everything, for labels or logits."""
        names, void = self.class_names, self.ignore_index
        background = background_label(names)
        return SegmentationMeter(len(names), void, names, boundary_px, background=background)

    @property
    def monitor(self) -> str:
        """Name of the score that chooses the best weights."""
        if self.num_outputs == 1:
            return f"best_threshold_{self.statistic}"
        return "pooled_mean_iou" if self.statistic == "pooled_iou" else self.statistic

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean loss of the batch and its terms."""
        logits = model(batch["image"])
        with torch.autocast(logits.device.type, enabled=False):  # sums over pixels overflow fp16
            return self.criterion(logits.float(), batch["mask"])

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return logits (B, 1 or K, H, W)."""
        if self.window is None:
            return model(batch["image"])
        return predict_windows(model, batch["image"], self.window)

    def meter(self) -> MaskMeter:
        """Return an empty meter."""
        return MaskMeter(self)


class MaskMeter:
    """Score what a validation looks at; the full report is made once, from the best weights."""

    def __init__(self, task: Segmentation) -> None:
        self.task = task
        self.counts = task.full_meter()
        self.sweep = ThresholdSweep(task.ignore_index) if task.num_outputs == 1 else None

    def update(self, prediction: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Count a batch of logits."""
        self.counts.update(prediction, batch)
        if self.sweep is not None:
            self.sweep.update(prediction[:, 0].float().sigmoid(), batch)

    def state(self) -> tuple[Any, Any]:
        """Return what was counted so far, for another process."""
        return self.counts.state(), self.sweep.state() if self.sweep else []

    def merge_states(self, states: Sequence[tuple[Any, Any]]) -> None:
        """Replace the state by those of all processes, by rank."""
        self.counts.merge_states([counts for counts, _ in states])
        if self.sweep is not None:
            self.sweep.merge_states([tables for _, tables in states])

    def compute(self) -> dict[str, float]:
        """Return the scores, the monitored one among them; a two-class net's are at 0.5."""
        names = self.task.class_names
        wanted = [f"{score}/{names[1]}" for score in OF_FOREGROUND] if len(names) == 2 else []
        found = self.counts.compute()
        scores = {name: found[name] for name in (*wanted, *REPORTED) if name in found}
        if self.sweep is not None:
            threshold, score = self.sweep.best(self.task.statistic)
            scores = {self.task.monitor: score, "best_threshold": threshold} | scores
        return {self.task.monitor: 0.0} | scores  # it has no value where nothing of it is true


def background_label(class_names: Sequence[str]) -> int | None:
    """Return the label that is no thing of its own: 0 of two classes, or where it is so named."""
    named = class_names[0].lower() in ("background", "bg")
    return 0 if named or len(class_names) == 2 else None


def predict_windows(model: nn.Module, image: Tensor, window: tuple[int, int]) -> Tensor:
    """Return logits (B, K, H, W) as the weighted mean over overlapping windows.

    Windows are spread evenly and weigh less towards their borders, in the same way from every side,
    so that a flipped image has the flipped prediction. A window turns with the image. An image no
    larger than ``window`` (height, width) is predicted whole.
    """
    H, W = image.shape[-2:]
    if (H - W) * (window[0] - window[1]) < 0:
        window = window[::-1]
    h, w = min(window[0], H), min(window[1], W)
    if (h, w) == (H, W):
        return model(image)
    weight = torch.outer(_ramp(h, image.device), _ramp(w, image.device))
    total = mass = torch.zeros((), device=image.device)
    for top, left in product(spread(H, h), spread(W, w)):
        logits = model(image[..., top : top + h, left : left + w]).float()
        if total.ndim == 0:
            total = logits.new_zeros((*logits.shape[:2], H, W))
            mass = logits.new_zeros((H, W))
        total[..., top : top + h, left : left + w].addcmul_(logits, weight)
        mass[top : top + h, left : left + w] += weight
    return total.div_(mass)


def spread(size: int, window: int) -> Iterator[int]:
    """Yield where windows begin so that they cover ``size`` evenly, symmetrically, overlapping."""
    free = size - window
    gaps = max(0, -(-free // max(1, int(window * (1 - OVERLAP)))))
    if free % 2 and gaps % 2 == 0:
        gaps += 1  # an odd rest has no middle start
    for number in range(gaps + 1):
        # rounded from the nearer end, or the two ends would differ
        mirrored = 2 * number > gaps
        start = round(free * (gaps - number if mirrored else number) / max(1, gaps))
        yield free - start if mirrored else start


def _ramp(length: int, device: torch.device) -> Tensor:
    """Return weights (length,) that fall linearly from the middle to the ends, never to 0."""
    steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    return torch.minimum(steps, steps.flip(0)) / ((length + 1) // 2)
