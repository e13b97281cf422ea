"""Distillation: what a task learns, plus what a frozen teacher says of the same batch.

Every term is divided by its own running size and multiplied by the task loss's, so a weight is the
term's share of the task's loss, however small the term is by nature and however far training is.
Each term's size and its share of the gradient are logged beside the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.losses.distillation import (
    TERMS,
    RunningNorm,
    attention_loss,
    channel_loss,
    feature_loss,
    gradient_shares,
    kl_loss,
    similarity_loss,
)
from src.tasks.classification import Classification
from src.tasks.segmentation import Segmentation

NAMES = ("task", *TERMS)  # the order of the student's buffers
ShowFeatures = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Distillation:
    """Learn what ``inner`` learns, with a teacher.

    The model is a :class:`src.models.distilled.Student`.

    Attributes:
        inner: the task itself.
        teacher: frozen net on the device of the batches.
        show_features: (teacher, image) → logits, deepest map (B, C, h, w).
        weights: share of each term in ``TERMS``; absent or 0 = not computed.
        temperature: T of the soft labels and of the channels' places.
        share_every: steps between two measurements of the gradient shares, one backward pass a
            term.
    """

    inner: Segmentation | Classification
    teacher: nn.Module
    show_features: ShowFeatures
    weights: Mapping[str, float]
    temperature: float = 4.0
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
        logits = logits.float()
        task = self._task_loss(logits, batch)
        values = {name: self._term(name, logits, soft, deepest, projected, hint, batch)
                  for name in self.active}  # fmt: skip
        student: Any = getattr(model, "module", model)
        norm = RunningNorm()
        norm.load_state_dict(_known(student.sizes))
        norm("task", task)
        scale = norm.sizes.get("task", 1.0)
        weighted = {name: self.weights[name] * scale * norm(name, value)
                    for name, value in values.items()}  # fmt: skip
        total = torch.stack([task, *weighted.values()]).sum()
        if torch.is_grad_enabled():
            _remember(student, norm)
            if int(student.steps) % self.share_every == 1 % self.share_every:
                shares = gradient_shares({"task": task, **weighted}, [deepest])
                for name, share in shares.items():
                    student.shares[NAMES.index(name)] = share
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

    def meter(self) -> Any:
        """Return an empty meter of the inner task."""
        return self.inner.meter()

    def _task_loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if isinstance(self.inner, Segmentation):
            return self.inner.criterion(logits, batch["mask"])["loss"]
        return self.inner.criterion(logits, batch["target"])

    def _term(
        self,
        name: str,
        logits: Tensor,
        soft: Tensor,
        deepest: Tensor,
        projected: Tensor,
        hint: Tensor,
        batch: dict[str, Tensor],
    ) -> Tensor:
        if name == "kl":
            valid = None
            if isinstance(self.inner, Segmentation):
                valid = batch["mask"] != self.inner.ignore_index
            return kl_loss(logits, soft, self.temperature, valid)
        if name == "channel":
            return channel_loss(logits, soft, self.temperature)
        if name == "feature":
            return feature_loss(projected, hint)
        return {"attention": attention_loss, "similarity": similarity_loss}[name](deepest, hint)


def _known(sizes: Tensor) -> dict[str, float]:
    """Read the buffer: {name: size} of the terms met before."""
    values = zip(NAMES, sizes.tolist(), strict=True)
    return {name: size for name, size in values if size >= 0}


@torch.no_grad()
def _remember(student: Any, norm: RunningNorm) -> None:
    """Write the sizes back into the student's buffer and count the step."""
    for name, size in norm.sizes.items():
        student.sizes[NAMES.index(name)] = size
    student.steps += 1
