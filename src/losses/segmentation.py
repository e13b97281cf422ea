"""Segmentation losses: a table of terms (``TERMS``) and their weighted sum, void-safe.

Every term takes log-probabilities (B, K, H, W) from :func:`log_probabilities`, so that one logit
of the foreground and K logits of a softmax go the same way, and labels (B, H, W); void pixels count
for nothing, and a batch of void alone gives 0 with a zero gradient rather than nan.

Cross-entropy and the micro track's soft score together have their gradient in closed form, on a
CPU. With 21 classes a training step of a net of 10,000 parameters is memory traffic there: every
map (B, K, H, W) is written and read once more for each term and each step back through it. Here one
map, exp(logits), is kept and one, the gradient, is written, image by image and in the layout of
the logits; sums over classes or pixels are matrix products, which read either layout at full speed.
With p the softmax, y the label, h and u hits and union of an image and class, w its share of the
mean and void pixels left out, the gradient of the soft score's loss by p of class k is
g = w h / (u + ε)² where y ≠ k and -w / (u + ε) where y = k; by the logit it is p (g - Σ p g).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from src.losses.terms import (
    PROTOCOL_EPSILON,
    boundary_loss,
    constants_like,
    cross_entropy,
    edge_cross_entropy,
    log_probabilities,
    lovasz_loss,
    mean_over,
    protocol_loss,
    select,
    shape_loss,
    tversky_loss,
    valid_pixels,
)
from src.reader import build_terms

LIMIT = 60.0  # logits between ∓ this: neither their exponentials nor their sums leave float32
TINY = torch.finfo(torch.float32).tiny


def fused_values(
    terms: Sequence[tuple[str, float, Any]], logits: Tensor, target: Tensor, void: int | None
) -> dict[str, Tensor] | None:
    """Return the value of each term, or None where they are not these two or cannot be fused.

    Args:
        terms: (name, weight in the sum, ``partial`` of the term's function).
        logits: (B, K, H, W).
        target: (B, H, W) int64 labels.
        void: label of void, or None.
    """
    found = {term.func: (name, term.keywords) for name, _, term in terms}
    if len(terms) != 2 or found.keys() != {cross_entropy, protocol_loss}:
        return None
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.shape[1] < 3:
        return None
    stored = logits.detach()  # in the order of memory, or aminmax makes a copy
    low, high = torch.aminmax(stored if stored.is_contiguous() else stored.movedim(1, -1))
    if not (low > -LIMIT and high < LIMIT):  # nor where one is nan
        return None
    (entropy, _), (protocol, options) = found[cross_entropy], found[protocol_loss]
    rarity = options.get("weight")
    weight = None if rarity is None else constants_like(rarity, logits)
    values = CrossEntropyProtocol.apply(logits, target, void, weight)
    return dict(zip((entropy, protocol), values, strict=True))


class CrossEntropyProtocol(torch.autograd.Function):
    """(logits, target, void label, weights of the classes) → both losses, scalars.

    Logits (B, K, H, W) float32 within ``LIMIT``, target (B, H, W) int64, weights (K,) or None.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, void: int | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the soft score's loss."""
        batch, num_classes = logits.shape[:2]
        label = target.flatten(1)
        valid = torch.ones_like(label, dtype=logits.dtype)
        if void is not None:
            valid = (label != void).to(logits.dtype)
            label = label.masked_fill(label == void, 0)  # counts as background: left out below
        kept = torch.empty_like(logits)  # exp(logits)
        maps, powers = logits.flatten(2), kept.flatten(2)
        scale = torch.empty_like(valid)  # 1 / their sum: p = kept * scale
        found = logits.new_empty(batch, num_classes)
        ones = logits.new_ones(1, num_classes)
        for image in range(batch):  # one image's map stays in the cache
            torch.exp(maps[image], out=powers[image])
            torch.reciprocal((ones @ powers[image])[0], out=scale[image])
            weights = (scale[image] * valid[image])[None]
            found[image] = (weights @ powers[image].T)[0]
        true_log = maps.gather(1, label[:, None])[:, 0] + scale.log()
        num_pixels = valid.sum().clamp_min(TINY)
        entropy = -(true_log * valid).sum() / num_pixels
        zeros = valid.new_zeros(batch, num_classes)
        hits = zeros.scatter_add(1, label, true_log.exp() * valid)[:, 1:]
        size = zeros.scatter_add(1, label, valid)[:, 1:]
        union = found[:, 1:] + size - hits + PROTOCOL_EPSILON
        share = (size > 0).to(hits.dtype)
        if weight is not None:
            share = share * weight[1:]
        share = share / share.sum().clamp_min(TINY)
        ctx.save_for_backward(kept, scale, label, valid, hits, union, share, num_pixels)
        return entropy, ((1 - hits / union) * share).sum()

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, by_entropy: Tensor, by_protocol: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, in their layout."""
        kept, scale, label, valid, hits, union, share, num_pixels = ctx.saved_tensors
        alarm, extra = (torch.zeros_like(kept[:, :, 0, 0]) for _ in range(2))
        alarm[:, 1:] = by_protocol * share * hits / union**2
        extra[:, 1:] = -by_protocol * share / union - alarm[:, 1:]  # of the true class, beyond
        powers = kept.flatten(2)
        true = powers.gather(1, label[:, None])[:, 0] * scale * valid
        extra = extra.gather(1, label) * true
        each = by_entropy / num_pixels * valid
        gradient = torch.empty_like(kept)
        parts, scale = gradient.flatten(2), scale * valid
        for image, row in enumerate(alarm):
            mean = (row[None] @ powers[image])[0] * scale[image] + extra[image]
            pixels = torch.stack([scale[image], (each[image] - mean) * scale[image]])
            classes = torch.stack([row, torch.ones_like(row)])
            if parts.stride(1) == 1:  # channels last
                torch.mm(pixels.T, classes, out=parts[image].T)
            else:
                torch.mm(classes.T, pixels, out=parts[image])
            parts[image].mul_(powers[image])
        parts.scatter_add_(1, label[:, None], (extra - each)[:, None])
        return gradient, None, None, None


Term = Callable[[Tensor, Tensor, int | None], Tensor]


def focal_loss(
    log_probs: Tensor,
    target: Tensor,
    ignore_index: int | None,
    gamma: Annotated[float, {"least": 0, "most": 100}] = 2.0,
) -> Tensor:
    """Mean over pixels of -(1 - p)^gamma log p of the true class.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, without alpha.
    """
    value = select(log_probs, target, ignore_index)
    focus = (-torch.expm1(value)).clamp_min(1e-12) ** gamma  # the clamp keeps 0 ** gamma smooth
    return mean_over(-focus * value, valid_pixels(target, ignore_index))


def hard_cross_entropy(
    log_probs: Tensor,
    target: Tensor,
    ignore_index: int | None,
    share: Annotated[float, {"above": 0, "most": 1}] = 0.25,
) -> Tensor:
    """Mean of the cross-entropy over the hardest ``share`` of the pixels that are not void.

    Online hard example mining, Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540.
    """
    valid = valid_pixels(target, ignore_index)
    value = -select(log_probs, target, ignore_index)
    order = value.detach().masked_fill(~valid, -1.0).flatten().sort(descending=True).indices
    wanted = (share * valid.sum()).floor().clamp_min(1)
    hardest = torch.arange(len(order), device=order.device) < wanted.minimum(valid.sum())
    return mean_over(value.flatten()[order], hardest)


def generalised_cross_entropy(
    log_probs: Tensor,
    target: Tensor,
    ignore_index: int | None,
    q: Annotated[float, {"above": 0, "most": 1}] = 0.7,
) -> Tensor:
    """Mean over pixels of (1 - p^q) / q: near 0 cross-entropy, at 1 mean absolute error.

    Bounded, so a wrong label cannot dominate. Zhang & Sabuncu 2018,
    https://arxiv.org/abs/1805.07836.
    """
    value = select(log_probs, target, ignore_index)
    return mean_over(-torch.expm1(q * value) / q, valid_pixels(target, ignore_index))


# Name in a spec -> term(log_probs, target, ignore_index, **options).
TERMS: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "bce": cross_entropy,  # one logit: the same thing
    "ohem": hard_cross_entropy,
    "focal": focal_loss,
    "dice": partial(tversky_loss, alpha=0.5, beta=0.5),
    "iou": partial(tversky_loss, alpha=1.0, beta=1.0),
    "tversky": partial(tversky_loss, alpha=0.3, beta=0.7),
    "protocol": protocol_loss,
    "lovasz": lovasz_loss,
    "boundary": boundary_loss,
    "edge_ce": edge_cross_entropy,
    "shape": shape_loss,
    "gce": generalised_cross_entropy,
}


@dataclass(frozen=True)
class SegmentationLoss:
    """A weighted sum of terms; made by :func:`build_segmentation_loss`."""

    terms: tuple[tuple[str, float, Term], ...]  # (name, weight, term) each
    ignore_index: int | None  # label of void, or None

    def __call__(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return "loss" (the sum, float32 scalar) and each unweighted term, detached.

        Args:
            logits: (B, K, H, W), or (B, 1, H, W) of the foreground; resized to the labels'
                size (bilinear) if smaller.
            target: (B, H, W) integer labels.
        """
        if logits.shape[-2:] != target.shape[-2:]:
            logits = F.interpolate(logits.float(), target.shape[-2:], mode="bilinear")
        target = target.long()
        values = fused_values(self.terms, logits, target, self.ignore_index)
        if values is None:
            log_probs = log_probabilities(logits)
            values = {n: term(log_probs, target, self.ignore_index) for n, _, term in self.terms}
        total = torch.stack([weight * values[name] for name, weight, _ in self.terms]).sum()
        return {"loss": total, **{name: value.detach() for name, value in values.items()}}


def build_segmentation_loss(
    spec: str,
    *,
    ignore_index: int | None = 255,
    rarity: Sequence[float] | None = None,
) -> SegmentationLoss:
    """Build a loss from its description.

    Args:
        spec: "bce + iou", with weights and options "ce + 0.5 focal(gamma=3)"; names as in
            ``TERMS``.
        ignore_index: label of void, or None.
        rarity: K numbers for "protocol".

    Raises:
        UserError: an unknown term or option, a value out of its bounds, nothing at all.
    """
    terms = build_terms("--loss", spec, TERMS, example="ce + 0.5 dice")
    weights = {} if rarity is None else {"protocol": {"weight": tuple(rarity)}}
    return SegmentationLoss(
        tuple((name, w, partial(term, **weights.get(name, {}))) for name, w, term in terms),
        ignore_index,
    )
