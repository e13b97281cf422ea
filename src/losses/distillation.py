"""Knowledge-distillation losses: KL, attention, similarity, channel-wise, feature mimicking.

Every term is free of resolution and batch size, so that one weight serves all crops. Where the
maps differ in size the teacher's are brought to the student's. Teachers arrive detached; a
projector that matches channels is part of the model, the terms only get tensors.

Reference weights of the papers stand beside each term but mean little here: divide every term by
its own running size (:func:`running_size`), then weights of 0.1 to 1 are shares. Nothing here makes
the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from src.losses.terms import mean_over

TERMS = ("kl", "attention", "similarity", "channel", "feature")


def kl_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, valid: Tensor | None = None
) -> Tensor:
    """T² × KL(softmax(t / T) ‖ softmax(s / T)), mean over pixels, or over rows without pixels.

    One channel is the foreground's logit and stands for two classes. Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531.

    Args:
        student: logits (B, K, H, W) or (B, K).
        teacher: logits likewise; resized to the student's H × W.
        temperature: T; the factor T² keeps the gradient's size.
        valid: bool (B, H', W'), False where void; resized (nearest).
    """
    student, teacher = student.float(), teacher.float().detach()
    if student.ndim == 4:
        teacher = _resize(teacher, student)
    if student.shape[1] == 1:  # a sigmoid of x is a softmax of (0, x)
        student, teacher = (torch.cat([x * 0, x], dim=1) for x in (student, teacher))
    logs = F.log_softmax(student / temperature, dim=1)
    soft = F.log_softmax(teacher / temperature, dim=1)
    value = (soft.exp() * (soft - logs)).sum(1) * temperature**2
    pixels = torch.ones_like(value, dtype=torch.bool)
    if valid is not None and student.ndim == 4:
        pixels = F.interpolate(valid[:, None].float(), value.shape[-2:])[:, 0] > 0
    return mean_over(value, pixels)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over pixels of (A_s - A_t)², mean over the batch; in 0..2, whatever the resolution.

    A(f) is the mean of f² over channels, scaled to unit length per sample. The reference takes the
    *mean* over pixels, with a weight of 1000. Zagoruyko & Komodakis 2017,
    https://arxiv.org/abs/1612.03928.

    Args:
        student: features (B, C, H, W).
        teacher: features (B, C', H', W').
    """
    ours, theirs = (
        F.normalize(x.float().pow(2).mean(1).flatten(1), dim=1)
        for x in (student, _resize(teacher.detach().float(), student))
    )
    return (ours - theirs).pow(2).sum(1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the row-normalised B × B similarity matrices.

    A matrix of a small batch says little; B >= 2 is needed for it to say anything. Reference
    weight 3000 at batch 64. Tung & Mori 2019, https://arxiv.org/abs/1907.09682.

    Args:
        student: features (B, ...).
        teacher: features (B, ...) of any other shape.
    """
    ours, theirs = (_similarity(x.float()) for x in (student, teacher.detach()))
    return (ours - theirs).pow(2).mean()


def channel_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² × KL between the channels' softmaxes over H × W, mean over batch and channels (CWD).

    Shu et al. 2021, https://arxiv.org/abs/2011.13256; 3 on logits and 50 on features there.

    Args:
        student: logits or features (B, C, H, W).
        teacher: (B, C, H', W'), the same channels (through a projector if they differ).
        temperature: T.
    """
    _check_channels(student, teacher)
    teacher = _resize(teacher.detach().float(), student)
    logs, soft = (
        F.log_softmax(x.float().flatten(2) / temperature, dim=2) for x in (student, teacher)
    )
    return (soft.exp() * (soft - logs)).sum(2).mean() * temperature**2


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of features in units of the teacher's own variance.

    1 is what predicting the teacher's mean would cost, so the value reads as unexplained variance.
    Romero et al. 2015 (FitNets), https://arxiv.org/abs/1412.6550, without their scale.

    Args:
        student: projected features (B, C, H, W).
        teacher: features (B, C, H', W').
    """
    _check_channels(student, teacher)
    teacher = _resize(teacher.detach().float(), student)
    variance = teacher.var(unbiased=False).clamp_min(1e-6)
    return (student.float() - teacher).pow(2).mean() / variance


def running_size(known: Tensor, value: Tensor, momentum: float = 0.99) -> Tensor:
    """Return a term's running size, moved by its new value, on the value's device.

    A term's first value is its first size; one that is not finite does not enter it.

    Args:
        known: scalar, the size so far; below 0 = none.
        value: scalar, the term.
        momentum: share of the old size kept.
    """
    size = value.detach().abs().to(known.dtype)
    moved = torch.where(known < 0, size, momentum * known + (1 - momentum) * size)
    return torch.where(torch.isfinite(size), moved, known)


def divide_by_size(value: Tensor, size: Tensor) -> Tensor:
    """Return ``value`` / ``size``, as it is where that is not known (below 0)."""
    return value / torch.where(size < 0, 1.0, size.clamp_min(1e-12)).to(value.dtype)


def gradient_shares(terms: Mapping[str, Tensor], inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Measure how much each (weighted) term pulls: its share of the summed gradient norms.

    Costs one backward pass a term and keeps the graph: for a log every so many steps.

    Args:
        terms: weighted scalars of one step.
        inputs: what they are differentiated by, such as the student's logits or last weights.

    Returns:
        {name: share in 0..1, a scalar}; they sum to 1 unless every gradient is zero.
    """
    inputs = [x for x in inputs if x.requires_grad]
    norms = []
    for value in terms.values():
        found: tuple[Tensor | None, ...] = (None,)
        if value.requires_grad and inputs:
            found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        squares = [g.float().pow(2).sum() for g in found if g is not None]
        norms.append(torch.stack([value.new_zeros(()).float(), *squares]).sum().sqrt())
    shares = torch.stack(norms)
    shares = shares / shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)
    return dict(zip(terms, shares.unbind(), strict=True))


def _resize(teacher: Tensor, student: Tensor) -> Tensor:
    """Bring the teacher's maps to the student's size: averaged when they shrink."""
    size, wanted = teacher.shape[-2:], student.shape[-2:]
    if size == wanted:
        return teacher
    if size[0] >= wanted[0] and size[1] >= wanted[1]:
        even = size[0] % wanted[0] == size[1] % wanted[1] == 0
        # MPS refuses other sizes (PyTorch #96056)
        there = teacher if even or teacher.device.type != "mps" else teacher.cpu()
        return F.adaptive_avg_pool2d(there, (wanted[0], wanted[1])).to(teacher.device)
    return F.interpolate(teacher, wanted, mode="bilinear")


def _similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def _check_channels(student: Tensor, teacher: Tensor) -> None:
    assert student.shape[:2] == teacher.shape[:2], (
        f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in channels: "
        "the student needs a projector"
    )
