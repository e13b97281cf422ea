"""Base class of the micro nets: normalisation inside, logits at the image's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ImageNet's per-channel statistics on the 0..255 scale: any photograph is roughly whitened by them.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize ``x`` (B, C, h, w) bilinearly to the height and width of ``like``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")


class MaskNet(nn.Module):
    """Base of the micro nets.

    A family implements ``compute(x) -> (logits, features)`` for normalised pixels whose sides are
    multiples of ``stride``; logits may come at any resolution. ``head`` is the layer whose bias is
    the prior of the classes.
    """

    stride = 32
    head: nn.Conv2d
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for ``image`` (B, 3, H, W), uint8 or float in [0, 255]."""
        return self.forward_features(image)[0]

    def forward_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H, W) and intermediate maps, for distillation.

        The maps cover the padded image: sides are first filled up to multiples of ``stride`` at
        the bottom and right with the border's own pixels.
        """
        height, width = image.shape[-2:]
        x = (image.to(self.mean.dtype) - self.mean) / self.std
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        logits, features = self.compute(x)
        return resize_to(logits.float(), x)[..., :height, :width], features

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits at any resolution and intermediate maps for normalised pixels ``x``."""
        raise NotImplementedError

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start the head at the classes' log-frequencies, so that no step is spent on finding them.

        Args:
            frequency: share of pixels of each class (K,), or of the foreground (1,) for one logit.
        """
        assert self.head.bias is not None
        p = frequency.clamp(1e-4, 1 - 1e-4).to(self.head.bias)
        self.head.bias.copy_(p.log() if len(p) > 1 else p.logit())
