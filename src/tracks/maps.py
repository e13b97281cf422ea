"""Logits of views in, class probabilities at an image's own size out, and labels of those."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_probs(logits: Tensor) -> Tensor:
    """Turn logits (B, 1 or K, H, W) into float32 probabilities of the same shape."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def mean_probs(outputs: Sequence[Tensor]) -> Tensor:
    """Average the probabilities of views, each turned back already: (B, 1 or K, H, W)."""
    return torch.stack([to_probs(logits) for logits in outputs]).mean(0)


def fit_size(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (1 or K, h, w) to ``size`` bilinearly, antialiased where it shrinks."""
    if tuple(probs.shape[-2:]) == tuple(size):
        return probs
    shrinks = size[0] < probs.shape[-2] or size[1] < probs.shape[-1]
    return F.interpolate(probs[None], size=tuple(size), mode="bilinear", antialias=shrinks)[0]


def to_mask(probs: Tensor, threshold: float) -> np.ndarray:
    """Turn probabilities (1 or K, H, W) into labels (H, W) uint8.

    Of K classes the best but the first is taken where it holds ``threshold`` of what it and the
    first, the background, share; 0.5 is the plain maximum.
    """
    if len(probs) == 1:
        labels = probs[0] >= threshold
    elif threshold == 0.5:
        labels = probs.argmax(0)
    else:
        best, label = probs[1:].max(0)
        labels = (label + 1) * (best * (1 - threshold) >= probs[0] * threshold)
    return labels.to(torch.uint8).cpu().numpy()


def true_probs(probs: Tensor, mask: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Return the probability of the true class at pixels ``flat`` (P,): float32 (P,).

    Args:
        probs: (1 or K, H, W); a single map is the foreground's.
        mask: labels (H, W).
        flat: pixel numbers, row by row, none of them void.
    """
    labels = torch.from_numpy(mask.ravel()[flat].astype(np.int64))
    values = probs.cpu().flatten(1)[:, torch.from_numpy(flat)]
    if len(values) == 1:
        return torch.where(labels == 1, values[0], 1 - values[0]).numpy()
    return values.gather(0, labels[None])[0].numpy()


def sample_pixels(name: str, mask: np.ndarray, void: int, count: int = 1024) -> np.ndarray:
    """Draw ``count`` pixel numbers that are not void, the same ones for a name in every run."""
    known = np.flatnonzero(mask.ravel() != void)
    seed = int.from_bytes(name.encode()[-16:], "little")
    if not len(known):
        return known
    return known[np.random.default_rng(seed).integers(len(known), size=count)]
