"""Mixup and CutMix of a batch, with soft targets (B, K).

mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) blends whole images, CutMix (Yun et al.
2019, https://arxiv.org/abs/1905.04899) pastes one rectangle. Drawn from (seed, step) on the CPU, so
that no device and no earlier step changes the draw; odd batches are fine (timm's version asserts).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_STREAM = 3  # keeps these draws apart from the order's and the augmentation's


def mix(
    image: Tensor,
    target: Tensor,
    *,
    num_classes: int,
    seed: int,
    step: int,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    prob: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mix an effective batch by mixup or CutMix; where both are on, each takes half of the batches.

    Args:
        image: (B, C, H, W) uint8 or float in [0, 255], on any device; left as it is.
        target: (B,) int64 class indices, or (B, K) of 0 and 1.
        num_classes: K.
        seed: seed of the run (of the process, where several hold parts of a batch).
        step: optimizer step.
        mixup_alpha: λ ~ Beta(α, α) of mixup; 0 = none.
        cutmix_alpha: λ ~ Beta(α, α) of CutMix; 0 = none.
        prob: probability that this batch is mixed at all.

    Returns:
        The image (uint8 stays uint8 unless blended, which gives float32 in [0, 255]) and the
        target as (B, K) float32 rows; of class indices they sum to 1.
    """
    generator = np.random.default_rng([_STREAM, seed, step])
    soft = (target if target.ndim == 2 else F.one_hot(target, num_classes)).float()
    wanted = mixup_alpha > 0 or cutmix_alpha > 0
    if not wanted or len(image) < 2 or generator.random() >= prob:
        return image, soft
    cuts = cutmix_alpha > 0 and (mixup_alpha <= 0 or generator.random() < 0.5)
    alpha = cutmix_alpha if cuts else mixup_alpha
    share = float(generator.beta(alpha, alpha))
    # A turn of a random order: each image meets another one, never itself.
    order = generator.permutation(len(image))
    partner_of = np.empty_like(order)
    partner_of[order] = np.roll(order, 1)
    partner = torch.from_numpy(partner_of).to(image.device, non_blocking=True)
    if cuts:
        top, bottom, left, right = draw_box(generator, image.shape[-2], image.shape[-1], 1 - share)
        mixed = image.clone()
        mixed[..., top:bottom, left:right] = image[partner, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (image.shape[-2] * image.shape[-1])
    else:
        mixed = image.float()
        mixed = torch.lerp(mixed[partner], mixed, share)
    return mixed, torch.lerp(soft[partner], soft, share)


def draw_box(
    generator: np.random.Generator, height: int, width: int, area: float
) -> tuple[int, int, int, int]:
    """Draw (top, bottom, left, right) of ``area`` of the image, cut off at its edges.

    The centre is uniform over the image, as in the paper; the caller must correct λ by what is
    left of the box.
    """
    side = math.sqrt(area)
    box_height, box_width = round(height * side), round(width * side)
    top = int(generator.integers(height)) - box_height // 2
    left = int(generator.integers(width)) - box_width // 2
    bottom, right = min(height, top + box_height), min(width, left + box_width)
    return max(0, top), bottom, max(0, left), right
