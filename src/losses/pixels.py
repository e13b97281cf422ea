"""Per-pixel log-probabilities, cross-entropy and means that are safe where all is void."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
    """Mean over pixels of -log p(true class); with one logit this is the binary cross-entropy.

    Args:
        log_probs: (B, K, H, W).
        target: (B, H, W) labels.
        ignore_index: label of void, or None.
    """
    value = -select(log_probs, target, ignore_index)
    return mean_over(value, valid_pixels(target, ignore_index))


def constants_like(values: Sequence[float], x: Tensor) -> Tensor:
    """Return fixed numbers as a tensor on the device and of the dtype of ``x``, uploaded once."""
    return _constants(tuple(values), x.dtype, x.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # or a validation that comes first would keep it from training
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(dtype).to(device)
