"""Base class of nets for masks: normalisation inside, logits at the image's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ImageNet's per-channel statistics on the 0..255 scale: any photograph is roughly whitened by them.
MEAN = torch.tensor((123.675, 116.28, 103.53))
STD = torch.tensor((58.395, 57.12, 57.375))


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize ``x`` (B, C, h, w) bilinearly to the height and width of ``like``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")


class MaskNet(nn.Module):
    """Base of the nets for masks.

    A net implements ``compute(x) -> (logits, features)`` for normalised pixels whose sides are
    multiples of ``stride``; logits may come at any resolution. The last convolution of
    ``head`` has the prior of the classes as its bias.
    """

    stride = 32
    head: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor = MEAN, std: Tensor = STD) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1).clone(), persistent=False)

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
        # bfloat16 is too coarse for logits: at 10 its step is 1/16.
        return resize_to(logits.float(), x)[..., :height, :width], features

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits at any resolution and intermediate maps for normalised pixels ``x``."""
        raise NotImplementedError

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start the head at the classes' log-frequencies, so that no step is spent on finding them.

        Args:
            frequency: share of pixels of each class (K,); one logit takes the last.
        """
        last = [layer for layer in self.head.modules() if isinstance(layer, nn.Conv2d)][-1]
        assert last.bias is not None
        share = frequency[-1:] if len(last.bias) == 1 else frequency
        p = share.clamp(1e-4, 1 - 1e-4).to(last.bias)
        last.bias.copy_(p.log() if len(p) > 1 else p.logit())
