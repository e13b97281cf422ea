"""Two U-Nets: the classic one as the baseline to beat, and a separable one under 10,000 parameters.

Reference: Ronneberger et al. 2015. The baseline follows the common variant with BatchNorm, 32 to
512 channels and transposed convolutions: 7,763,041 parameters with one output channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    ConvNorm,
    DepthwiseSeparableConv,
    DirectionalConv,
    GradientFeatureModule,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to


class UNetBaseline(MaskNet):
    """U-Net with two full 3×3 convolutions a level.

    Args:
        num_classes: K.
        width: channels of the first level; each of the four below doubles them.
    """

    def __init__(self, num_classes: int, *, width: int = 32) -> None:
        super().__init__()
        widths = [width << level for level in range(5)]
        self.down = nn.ModuleList(
            _double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        pairs = list(itertools.pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(_double(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv2d(width, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H, W) and the maps of the five levels, fine to coarse."""
        maps = [self.down[0](x)]
        for block in list(self.down)[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        y = maps[-1]
        for level in range(3, -1, -1):
            y = self.up[level](torch.cat([self.grow[level](y), maps[level]], 1))
        return self.head(y), maps


def _double(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(channels, out_channels, 3), ConvNorm(out_channels, out_channels, 3)
    )


class MicroUNet(MaskNet):
    """U-Net of depthwise-separable convolutions, from stride 2 downwards.

    Args:
        num_classes: K.
        widths: channels at strides 2, 4, 8, 16.
        multi_dilation: widen the field at the deepest level with kernels of three dilations.
        gradient: enhance edges at the finest level (small blobs with sharp borders).
        directional: strips in four directions at the finest level (thin lines).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (12, 20, 28, 36),
        multi_dilation: bool = True,
        gradient: bool = False,
        directional: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.stem = ConvNorm(3, widths[0], 3, stride=2)
        self.down = nn.ModuleList(DepthwiseSeparableConv(a, b) for a, b in pairs)
        if multi_dilation:
            self.down[-1] = MultiDilationSeparableConv2d(*pairs[-1], shared=True)
        self.up = nn.ModuleList(DepthwiseSeparableConv(a + b, a) for a, b in pairs)
        self.detail = nn.Sequential(
            GradientFeatureModule(widths[0]) if gradient else nn.Identity(),
            DirectionalConv(widths[0]) if directional else nn.Identity(),
        )
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/2, W/2) and the maps of the levels, fine to coarse."""
        maps = [self.detail(self.stem(x))]
        for block in self.down:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        y = maps[-1]
        for level in range(len(self.up) - 1, -1, -1):
            y = self.up[level](torch.cat([resize_to(y, maps[level]), maps[level]], 1))
        return self.head(y), maps
