"""Segmentation losses: a table of terms (``TERMS``) and their weighted sum, void-safe.

Every term takes log-probabilities (B, K, H, W) from :func:`log_probabilities`, so that one logit
of the foreground and K logits of a softmax go the same way, and labels (B, H, W); void pixels count
for nothing, and a batch of void alone gives 0 with a zero gradient rather than nan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from src.losses.fused import fused_values
from src.losses.outline import boundary_loss, edge_cross_entropy, shape_loss
from src.losses.overlap import lovasz_loss, protocol_loss, tversky_loss
from src.losses.pixels import (
    cross_entropy,
    log_probabilities,
    mean_over,
    select,
    valid_pixels,
)
from src.spec import build_terms

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
    """A weighted sum of terms; made by :func:`build_segmentation_loss`.

    Attributes:
        terms: (name, weight, term) each.
        ignore_index: label of void, or None.
    """

    terms: tuple[tuple[str, float, Term], ...]
    ignore_index: int | None

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
