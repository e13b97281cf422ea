"""Cross-entropy and the micro track's soft score together, with their gradient in closed form.

With 21 classes a training step of a net of 10,000 parameters is memory traffic on a CPU: every map
(B, K, H, W) is written and read once more for each term and each step back through it. Here one
map, exp(logits), is kept and one, the gradient, is written, image by image and in the layout of
the logits; sums over classes or pixels are matrix products, which read either layout at full speed.

With p the softmax, y the label, h and u hits and union of an image and class, w its share of the
mean and void pixels left out, the gradient of the soft score's loss by p of class k is
g = w h / (u + ε)² where y ≠ k and -w / (u + ε) where y = k; by the logit it is p (g - Σ p g).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.losses.overlap import PROTOCOL_EPSILON, protocol_loss
from src.losses.pixels import constants_like, cross_entropy

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
