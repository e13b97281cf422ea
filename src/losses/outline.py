"""Boundary and shape losses of segmentation."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from src.losses.pixels import mean_over, one_hot, select, valid_pixels

Radius = Annotated[int, {"least": 1, "most": 64}]  # px


def boundary_loss(
    log_probs: Tensor, target: Tensor, ignore_index: int | None, radius: Radius = 2
) -> Tensor:
    """1 - soft boundary F1 of the foreground classes that are true in an image.

    An outline is p - erosion(p) by a 3 × 3 pool; a hit lies within ``radius`` (a square) of the
    other outline. Bokhovkin & Burnaev 2019, https://arxiv.org/abs/1905.07852.

    Args:
        log_probs: (B, K, H, W).
        target: (B, H, W) labels.
        ignore_index: label of void, or None; outlines within ``radius`` of void are left out.
        radius: tolerance in pixels.
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
