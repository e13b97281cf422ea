"""Distillation task: an inner task's loss, and terms towards a frozen teacher's outputs.

Every term is divided by its own running size and multiplied by the task loss's, so a weight is the
term's share of the task's loss, however small the term is by nature and however far training is.
Each term's size and its share of the gradient are logged beside the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.losses.distillation import (
    TERMS,
    attention_loss,
    channel_loss,
    divide_by_size,
    feature_loss,
    gradient_shares,
    kl_loss,
    running_size,
    similarity_loss,
)
from src.tasks.classification import Classification
from src.tasks.protocols import Meter
from src.tasks.segmentation import Segmentation

NAMES = ("task", *TERMS)  # the order of the student's buffers
ShowFeatures = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


class Seen(NamedTuple):
    """Logits and deepest map of student and teacher (soft, hint), the projected map, the batch."""

    logits: Tensor
    soft: Tensor
    deepest: Tensor
    projected: Tensor
    hint: Tensor
    batch: dict[str, Tensor]


@dataclass(frozen=True)
class Distillation:
    """Learn what ``inner`` learns, with a teacher.

    The model is a :class:`src.models.distilled.Student`.
    """

    inner: Segmentation | Classification
    teacher: nn.Module  # frozen net on the device of the batches
    show_features: ShowFeatures  # (teacher, image) → logits, deepest map (B, C, h, w)
    weights: Mapping[str, float]  # share of each term in ``TERMS``; absent or 0 = not computed
    temperature: float = 4.0  # T of the soft labels and of the channels' places
    # steps between two measurements of the gradient shares, one backward pass a term
    share_every: int = 50

    @property
    def monitor(self) -> str:
        """Name of the score that chooses the best weights."""
        return self.inner.monitor

    @property
    def lower_is_better(self) -> bool:
        """Direction of the score."""
        return self.inner.lower_is_better

    @property
    def loss_metric(self) -> str:
        """Name of the validation's loss."""
        return self.inner.loss_metric

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return tuple(name for name in TERMS if self.weights.get(name, 0) > 0)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``loss``, the task's own ``task``, and each term's size and gradient share."""
        logits, deepest, projected = model(batch["image"], features=True)
        with torch.no_grad():
            soft, hint = self.show_features(self.teacher, batch["image"])
        with torch.autocast(logits.device.type, enabled=False):  # sums pass what fp16 can hold
            seen = Seen(logits.float(), soft, deepest, projected, hint, batch)
            return self._combine(model, seen)

    def _combine(self, model: nn.Module, seen: Seen) -> dict[str, Tensor]:
        """Weigh the terms by their running sizes, without a look at any number on the host."""
        task = self._task_loss(seen.logits, seen.batch)
        values = {name: self._term(name, seen) for name in self.active}
        student: Any = getattr(model, "module", model)
        exact = torch.float32 if seen.logits.device.type == "mps" else torch.float64
        known = dict(zip(NAMES, student.sizes.to(exact), strict=True))
        sizes = {name: running_size(known[name], value)
                 for name, value in {"task": task, **values}.items()}  # fmt: skip
        scale = torch.where(sizes["task"] < 0, 1.0, sizes["task"])
        weighted = {
            name: (self.weights[name] * scale).to(value.dtype) * divide_by_size(value, sizes[name])
            for name, value in values.items()
        }
        total = torch.stack([task, *weighted.values()]).sum()
        if torch.is_grad_enabled():
            if student.count_step(self.share_every):
                shares = gradient_shares({"task": task, **weighted}, [seen.deepest])
                _write(student.shares, shares)
            _write(student.sizes, sizes)
        logged = {"task": task.detach()}
        logged |= {f"{name}_size": value.detach() for name, value in values.items()}
        logged |= {
            f"{name}_share": student.shares[NAMES.index(name)].clone()
            for name in ("task", *self.active)
        }
        return {"loss": total, **logged}

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the student's logits."""
        return self.inner.predict(model, batch)

    def meter(self) -> Meter:
        """Return an empty meter of the inner task."""
        return self.inner.meter()

    def _task_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if isinstance(self.inner, Segmentation):
            return self.inner.criterion(logits, batch["mask"])["loss"]
        return self.inner.criterion(logits, batch["target"])

    def _term(self, name: str, seen: Seen) -> Tensor:
        if name == "kl":
            valid = None
            if isinstance(self.inner, Segmentation):
                valid = seen.batch["mask"] != self.inner.ignore_index
            return kl_loss(seen.logits, seen.soft, self.temperature, valid)
        if name == "channel":
            return channel_loss(seen.logits, seen.soft, self.temperature)
        if name == "feature":
            return feature_loss(seen.projected, seen.hint)
        term = {"attention": attention_loss, "similarity": similarity_loss}[name]
        return term(seen.deepest, seen.hint)


@torch.no_grad()
def _write(buffer: Tensor, values: Mapping[str, Tensor]) -> None:
    """Put scalars into the places of their terms."""
    for name, value in values.items():
        buffer[NAMES.index(name)] = value
