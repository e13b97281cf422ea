"""Terms of segmentation losses: cross-entropy, Tversky (Dice, IoU), Lovász, boundary, shape.

Every term takes ``log_probs`` (B, K, H, W), ``target`` (B, H, W) labels and ``ignore_index``, the
label of void or None. Means are safe where all is void. ``classes`` of an overlap term:
"foreground" leaves class 0 out, "all" keeps it, "auto" is foreground for two classes and all for
more. A class that is nowhere true in the batch is left out where K > 2 (its gradient would only
push it down); with two classes it stays, for then it is about false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def log_probabilities(logits: Tensor) -> Tensor:
    """Turn logits (B, K, H, W) into log-probabilities, float32, at least two channels.

    One channel is the foreground's logit and becomes (background, foreground).
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
    return F.log_softmax(logits, dim=1)


def valid_pixels(target: Tensor, ignore_index: int | None) -> Tensor:
    """Mark the pixels that are not void: bool, shape of ``target``."""
    return (
        torch.ones_like(target, dtype=torch.bool)
        if ignore_index is None
        else target != ignore_index
    )


def select(log_probs: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    """Pick log p of each pixel's label: (B, H, W); whatever class 0 has where it is void."""
    index = target if ignore_index is None else target.masked_fill(target == ignore_index, 0)
    return log_probs.gather(1, index[:, None])[:, 0]


def one_hot(target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Spread labels (B, H, W) to float32 (B, K, H, W), all zero where void."""
    valid = valid_pixels(target, ignore_index)
    index = target.masked_fill(~valid, 0)[:, None]
    shape = (target.shape[0], num_classes, *target.shape[1:])
    spread = torch.zeros(shape, device=target.device)
    return spread.scatter_(1, index, valid[:, None].float())


def mean_over(value: Tensor, pixels: Tensor) -> Tensor:
    """Mean of ``value`` weighted by ``pixels`` (bool or float); 0 where no pixel counts."""
    pixels = pixels.to(value.dtype)
    total = (value * pixels).sum()
    return total / pixels.sum().clamp_min(torch.finfo(value.dtype).tiny)


def cross_entropy(log_probs: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    """Mean over pixels of -log p(true class); with one logit this is the binary cross-entropy."""
    value = -select(log_probs, target, ignore_index)
    return mean_over(value, valid_pixels(target, ignore_index))


def constants_like(values: Sequence[float], x: Tensor) -> Tensor:
    """Return fixed numbers as a tensor on the device and of the dtype of ``x``, uploaded once."""
    return _constants(tuple(values), x.dtype, x.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # or a validation that comes first would keep it from training
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(dtype).to(device)


PROTOCOL_EPSILON = 1e-6  # of the micro track's own score, as src/metrics/counts.py has it

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

    s is ``smooth``, in pixels; ``per_image`` sums over each image rather than over the batch.
    Dice is alpha = beta = 1/2, soft IoU 1 and 1. beta > alpha is the prior that objects touch or
    hide one another, so that a missed pixel is worse than a false alarm. Salehi et al. 2017,
    https://arxiv.org/abs/1706.05721.
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

    The score is a mean over each class's images, then over the classes, so a ``weight`` (K,) of
    1 / (number of training images that hold the class) weighs as it does.
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
    # contiguous, since MPS sorts in the order of memory: of one image they are a view by class
    errors, order = (truth - probs).abs().contiguous().sort(0, descending=True)
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


Radius = Annotated[int, {"least": 1, "most": 64}]  # px


def boundary_loss(
    log_probs: Tensor, target: Tensor, ignore_index: int | None, radius: Radius = 2
) -> Tensor:
    """1 - soft boundary F1 of the foreground classes that are true in an image.

    An outline is p - erosion(p) by a 3 × 3 pool; a hit lies within ``radius`` (a square) of the
    other outline, in pixels; outlines that near to void are left out. Bokhovkin & Burnaev 2019,
    https://arxiv.org/abs/1905.07852.
    """
    valid = valid_pixels(target, ignore_index)[:, None].float()
    inner = 1 - _dilate(1 - valid, radius)
    truth = one_hot(target, log_probs.shape[1], ignore_index)[:, 1:]
    ours = _outline(log_probs[:, 1:].exp() * valid) * inner
    theirs = _outline(truth) * inner
    hits_ours = (ours * _dilate(theirs, radius)).sum((2, 3))
    hits_theirs = (theirs * _dilate(ours, radius)).sum((2, 3))
    precision = hits_ours / ours.sum((2, 3)).clamp_min(1e-6)
    recall = hits_theirs / theirs.sum((2, 3)).clamp_min(1e-6)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-6)
    return mean_over(1 - f1, theirs.sum((2, 3)) > 0)


def edge_cross_entropy(
    log_probs: Tensor,
    target: Tensor,
    ignore_index: int | None,
    radius: Radius = 2,
    weight_at_edge: Annotated[float, {"above": 0, "most": 1000}] = 5.0,
) -> Tensor:
    """Cross-entropy in which pixels within ``radius`` of another label weigh more.

    The idea of U-Net's border weights (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597)
    without their distance maps: a square pool finds the edges on the device.
    """
    valid = valid_pixels(target, ignore_index)
    truth = one_hot(target, log_probs.shape[1], ignore_index)
    near = (_dilate(truth, radius) > 0).sum(1) > 1  # two labels within reach
    weights = valid * (1 + (weight_at_edge - 1) * near)
    return mean_over(-select(log_probs, target, ignore_index), weights)


def shape_loss(log_probs: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    """Relative error of the area and of the outline's length, mean over true foreground classes.

    A prior on size and compactness: holes and frayed leaves cost outline, lost leaves cost area,
    wherever they lie. Each error is |p - t| / (p + t), in 0..1.
    """
    valid = valid_pixels(target, ignore_index)[:, None].float()
    probs = log_probs[:, 1:].exp() * valid
    truth = one_hot(target, log_probs.shape[1], ignore_index)[:, 1:]
    errors = torch.stack(
        [_relative_error(measure(probs), measure(truth)) for measure in (_area, _length)]
    )
    present = _area(truth) > 0
    return mean_over(errors.mean(0), present)


def _area(maps: Tensor) -> Tensor:
    return maps.sum((2, 3))


def _length(maps: Tensor) -> Tensor:
    """Total variation (anisotropic): the outline's length in pixel edges, inside the frame."""
    down = (maps[:, :, 1:] - maps[:, :, :-1]).abs().sum((2, 3))
    across = (maps[..., 1:] - maps[..., :-1]).abs().sum((2, 3))
    return down + across


def _relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).abs() / (ours + theirs).clamp_min(1e-6)


def _dilate(maps: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius)


def _outline(maps: Tensor) -> Tensor:
    """P minus its erosion; beyond the frame nothing erodes."""
    return maps + F.max_pool2d(-maps, 3, stride=1, padding=1)
