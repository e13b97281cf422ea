"""Classification losses (``LOSSES``) of logits (B, K) and hard (B,) or soft (B, K) targets.

All are computed in float32 whatever the precision around them, and all take the same targets, so
that mixup and cutmix work with any of them. ``LABEL_LOSSES`` are those of several labels an image:
targets (B, K) in [0, 1], each for itself. An option declares its bounds in its annotation
(``src/reader.py``), and is set as in ``--loss "focal(gamma=3)"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.reader import build_terms

Loss = Callable[[Tensor, Tensor], Tensor]

_TINY = 1e-30  # above the smallest float32
_FIXED_POINT_STEPS = 40  # with 5 steps row sums are off by up to 14 % at 396 classes and t = 1.5


def build_loss(spec: str, *, label_smoothing: float = 0.0, several: bool = False) -> Loss:
    """Return `loss(logits (B, K), target (B,) or (B, K)) -> scalar`, the mean over the batch.

    Args:
        spec: a name of `LOSSES`, with options as in `focal(gamma=3)`, or a weighted sum of them.
        label_smoothing: mass in [0, 1) spread evenly over all K classes, or over the two states of
            each label; applies to every loss.
        several: whether an image may have several labels: names are those of `LABEL_LOSSES`, and
            targets (B, K).

    Raises:
        UserError: an unknown name or option, or a value outside its range.
    """
    table = LABEL_LOSSES if several else LOSSES
    terms = build_terms("--loss", spec, table, example="focal(gamma=2)")

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        if several:
            soft = target.float() * (1.0 - label_smoothing) + label_smoothing / 2
        else:
            soft = soft_targets(target, logits.shape[1], label_smoothing)
        return torch.stack([weight * term(logits, soft).mean() for _, weight, term in terms]).sum()

    return loss


def check_loss(spec: str) -> None:
    """Refuse a mistake in a spec before it is known how many labels an image has.

    Raises:
        UserError: an unknown name or option, or a value outside its range.
    """
    build_terms("--loss", spec, LABEL_LOSSES | LOSSES, example="focal(gamma=2)")


def soft_targets(target: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return float32 targets (B, K), smoothed: (1 - s) * target + s / K.

    Args:
        target: class numbers (B,) of an integer type, or rows (B, K) that sum to one.
        num_classes: K.
        label_smoothing: s in [0, 1).
    """
    if target.ndim == 1:
        target = F.one_hot(target.long(), num_classes)
    return target.float() * (1.0 - label_smoothing) + label_smoothing / num_classes


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -sum_k y_k log p_k (B,) of logits (B, K) float32 and targets y (B, K)."""
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1)


def focal(
    logits: Tensor, target: Tensor, gamma: Annotated[float, {"least": 0, "most": 100}] = 2.0
) -> Tensor:
    """Return the multi-class focal loss (B,): -sum_k y_k (1 - p_k)^gamma log p_k.

    Args:
        logits: (B, K) float32.
        target: (B, K), rows that sum to one.
        gamma: focusing exponent; 0 is cross entropy.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, softmax in place of the sigmoid.
    """
    if gamma == 0.0:
        return cross_entropy(logits, target)
    log_probs = F.log_softmax(logits, dim=1)
    # 1 - p as -expm1(log p): exact near p = 1, where 1 - exp(log p) is rounding noise; the floor
    # keeps the slope of the power finite for gamma < 1.
    rest = (-torch.expm1(log_probs)).clamp(min=1e-12)
    return -(target * rest**gamma * log_probs).sum(dim=1)


def bi_tempered(
    logits: Tensor,
    target: Tensor,
    t1: Annotated[float, {"least": 0, "most": 1}] = 0.8,
    t2: Annotated[float, {"least": 1, "most": 10}] = 1.2,
) -> Tensor:
    """Return the bi-tempered logistic loss (B,); t1 = t2 = 1 is cross entropy less its minimum.

    It is the Bregman divergence of y and p = exp_t2(a - lambda(a)):
    sum_k y_k (log_t1 y_k - log_t1 p_k) - (y_k^(2 - t1) - p_k^(2 - t1)) / (2 - t1).

    Args:
        logits: activations a (B, K) float32.
        target: y (B, K), rows that sum to one.
        t1: below 1 bounds the loss of an outlier.
        t2: above 1 gives the softmax heavier tails. (Below 1 it would give classes a probability of
            exactly 0, which log loss punishes without end.)

    Source: Amid et al. 2019, https://arxiv.org/abs/1906.03361, equations 1 to 6.
    """
    if t1 == t2 == 1.0:  # the logarithm of a softmax that underflowed has no slope
        log_ratio = target.clamp(min=_TINY).log() - F.log_softmax(logits, dim=1)
        return (target * log_ratio).sum(dim=1)
    probs = tempered_softmax(logits, t2)
    # p may underflow for t2 = 1: the floor bounds log_t1 there.
    log_ratio = _log_t(target.clamp(min=_TINY), t1) - _log_t(probs.clamp(min=_TINY), t1)
    mass = (target ** (2.0 - t1) - probs ** (2.0 - t1)) / (2.0 - t1)
    return (target * log_ratio - mass).sum(dim=1)


# Name in a spec -> loss(logits (B, K) float32, target (B, K), **options) -> (B,).
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "bi_tempered": bi_tempered,
}


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy (B,), a mean over the labels."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


def binary_focal(
    logits: Tensor, target: Tensor, gamma: Annotated[float, {"least": 0, "most": 100}] = 2.0
) -> Tensor:
    """Return the focal loss (B,), a mean over the labels: -(1 - p_t)^gamma log p_t of each.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, without alpha; a soft target weighs
    the terms of both states.
    """
    return asymmetric(logits, target, gamma, gamma, clip=0.0)


def asymmetric(
    logits: Tensor,
    target: Tensor,
    gamma_neg: Annotated[float, {"least": 0, "most": 100}] = 4.0,
    gamma_pos: Annotated[float, {"least": 0, "most": 100}] = 1.0,
    clip: Annotated[float, {"least": 0, "below": 1}] = 0.05,
) -> Tensor:
    """Return the asymmetric loss (B,), a mean over the labels.

    -y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q), q = max(p - clip, 0).

    Source: Ridnik et al. 2021, https://arxiv.org/abs/2009.14119 (there a sum over the labels; timm
    has it as ``AsymmetricLossMultiLabel``). Its probabilities need calibration.
    """
    present, absent = torch.sigmoid(logits), torch.sigmoid(-logits)
    if clip:
        log_absent = (absent + clip).clamp(max=1.0).log()
        wrong = (present - clip).clamp(min=0.0)
    else:
        log_absent, wrong = F.logsigmoid(-logits), present
    # the floors keep the slope of the powers finite below 1
    positive = absent.clamp(min=1e-12) ** gamma_pos * F.logsigmoid(logits)
    negative = wrong.clamp(min=1e-12) ** gamma_neg * log_absent
    return -(target * positive + (1.0 - target) * negative).mean(dim=1)


# The same of several labels an image, targets (B, K) in [0, 1].
LABEL_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": binary_cross_entropy,  # the default of --loss
    "bce": binary_cross_entropy,
    "focal": binary_focal,
    "asymmetric": asymmetric,
}


def tempered_softmax(activations: Tensor, t: float) -> Tensor:
    """Return exp_t(a - lambda(a)) (B, K), with lambda such that every row sums to one.

    Args:
        activations: a (B, K) float32.
        t: the temperature, at least 1; 1 is the softmax, above 1 has heavier tails.
    """
    return F.softmax(activations, dim=1) if t == 1.0 else _TemperedSoftmax.apply(activations, t)


class _TemperedSoftmax(torch.autograd.Function):
    """lambda is found without a graph; its gradient is known in closed form.

    Differentiating sum_k exp_t(a_k - lambda) = 1, with exp_t'(x) = exp_t(x)^t, gives
    dlambda/da_k = q_k with the escort distribution q = p^t / sum(p^t), hence
    dp_k/da_j = p_k^t (1[k = j] - q_j).
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor, t: float) -> Tensor:
        shifted = activations - activations.amax(dim=1, keepdim=True)  # p does not change
        probs = _fixed_point(shifted, t)
        probs = probs / probs.sum(dim=1, keepdim=True)  # what rounding left over
        ctx.save_for_backward(probs)
        ctx.t = t
        return probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (probs,) = ctx.saved_tensors
        slope = probs**ctx.t
        escort = slope / slope.sum(dim=1, keepdim=True)
        weighted = slope * grads[0]
        return weighted - escort * weighted.sum(dim=1, keepdim=True), None


def _fixed_point(shifted: Tensor, t: float) -> Tensor:
    """Normalise (the paper's algorithm 1); the largest activation of a row is 0."""
    scaled = shifted
    for _ in range(_FIXED_POINT_STEPS):
        scaled = shifted * _exp_t(scaled, t).sum(dim=1, keepdim=True) ** (1.0 - t)
    total = _exp_t(scaled, t).sum(dim=1, keepdim=True)
    return _exp_t(shifted + _log_t(1.0 / total, t), t)


def _exp_t(x: Tensor, t: float) -> Tensor:
    return (1.0 + (1.0 - t) * x).clamp(min=0.0) ** (1.0 / (1.0 - t))


def _log_t(x: Tensor, t: float) -> Tensor:
    return x.log() if t == 1.0 else (x ** (1.0 - t) - 1.0) / (1.0 - t)
