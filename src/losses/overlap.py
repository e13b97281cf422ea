"""Overlap losses of segmentation: Tversky (Dice, IoU), Lovász, and the micro track's score.

``classes`` of each: "foreground" leaves class 0 out, "all" keeps it, "auto" is foreground for two
classes and all for more. A class that is nowhere true in the batch is left out where K > 2 (its
gradient would only push it down); with two classes it stays, for then it is about false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from src.losses.pixels import constants_like, one_hot, select, valid_pixels

PROTOCOL_EPSILON = 1e-6  # of the micro track's own score

Classes = Literal["auto", "all", "foreground"]


def tversky_loss(
    log_probs: Tensor,
    target: Tensor,
    ignore_index: int | None,
    alpha: Annotated[float, {"least": 0, "most": 100}] = 0.5,
    beta: Annotated[float, {"least": 0, "most": 100}] = 0.5,
    *,
    classes: Classes = "auto",
    per_image: bool = False,
    smooth: Annotated[float, {"least": 0, "most": 1_000_000}] = 1.0,
) -> Tensor:
    """1 - (I + s) / (I + alpha × false alarms + beta × misses + s), mean over classes.

    Dice is alpha = beta = 1/2, soft IoU 1 and 1. beta > alpha is the prior that objects touch or
    hide one another, so that a missed pixel is worse than a false alarm. Salehi et al. 2017,
    https://arxiv.org/abs/1706.05721.

    Args:
        log_probs: (B, K, H, W).
        target: (B, H, W) labels.
        ignore_index: label of void, or None.
        alpha: price of a false alarm.
        beta: price of a miss.
        classes: see the top of the file.
        per_image: sum pixels over each image rather than over the batch.
        smooth: s, in pixels.
    """
    valid = valid_pixels(target, ignore_index)[:, None]
    probs = log_probs.exp() * valid
    truth = one_hot(target, probs.shape[1], ignore_index)
    dims = (2, 3) if per_image else (0, 2, 3)
    hits = (probs * truth).sum(dims)
    alarms, misses = probs.sum(dims) - hits, truth.sum(dims) - hits
    smooth = max(smooth, 1e-6)  # nothing true and nothing found is 0 / 0
    value = 1 - (hits + smooth) / (hits + alpha * alarms + beta * misses + smooth)
    return _mean_over_classes(value, truth.sum(dims) > 0, classes)


def protocol_loss(
    log_probs: Tensor,
    target: Tensor,
    ignore_index: int | None,
    weight: Sequence[float] | None = None,
) -> Tensor:
    """1 - soft I/U, averaged as the micro track scores: per image and foreground class true in it.

    Args:
        log_probs: (B, K, H, W).
        target: (B, H, W) labels.
        ignore_index: label of void, or None.
        weight: K of the classes. The score is a mean over each class's images, then over the
            classes, so 1 / (number of training images that hold the class) weighs as it does.
    """
    # One (B, K, H, W) map, the probabilities: with 21 classes each more is a tenth of the step
    batch, num_classes = log_probs.shape[:2]
    valid = valid_pixels(target, ignore_index).to(log_probs.dtype).flatten(1)
    true_prob = select(log_probs, target, ignore_index).exp().flatten(1)
    label = target.flatten(1).long().where(valid > 0, 0)  # void counts as background: left out
    zeros = valid.new_zeros(batch, num_classes)
    hits = zeros.scatter_add(1, label, true_prob)[:, 1:]
    size = zeros.scatter_add(1, label, valid)[:, 1:]
    found = (log_probs.exp().flatten(2) @ valid[:, :, None])[:, 1:, 0]
    union = found + size - hits
    pairs = (size > 0).to(hits.dtype)
    if weight is not None:
        pairs = pairs * constants_like(weight[1:], hits)
    value = 1 - hits / (union + PROTOCOL_EPSILON)
    return (value * pairs).sum() / pairs.sum().clamp_min(torch.finfo(pairs.dtype).tiny)


def lovasz_loss(
    log_probs: Tensor, target: Tensor, ignore_index: int | None, *, classes: Classes = "auto"
) -> Tensor:
    """Lovász-Softmax: the convex extension of each class's IoU loss over the batch.

    Berman et al. 2018, https://arxiv.org/abs/1705.08790. Sorts all pixels of every class: slow.
    """
    # void pixels stay, with an error of 0: the host would have to count those it picks out
    valid = valid_pixels(target, ignore_index).flatten()[:, None]
    probs = log_probs.exp().movedim(1, -1).flatten(0, -2) * valid  # (P, K)
    truth = one_hot(target, probs.shape[1], ignore_index).movedim(1, -1).flatten(0, -2)
    errors, order = (truth - probs).abs().sort(0, descending=True)
    truth_sorted = truth.gather(0, order)
    total = truth.sum(0)
    hits_left = total - truth_sorted.cumsum(0)
    union = total + (1 - truth_sorted).cumsum(0)
    jaccard = 1 - hits_left / union
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return _mean_over_classes((errors * steps).sum(0), total > 0, classes)


def _mean_over_classes(value: Tensor, present: Tensor, classes: Classes) -> Tensor:
    """Average (..., K) over the classes that count."""
    num_classes = value.shape[-1]
    keep = present.float() if num_classes > 2 else torch.ones_like(value)
    if classes == "foreground" or (classes == "auto" and num_classes == 2):
        keep = keep * (torch.arange(num_classes, device=value.device) > 0)
    return (value * keep).sum() / keep.sum().clamp_min(1)
