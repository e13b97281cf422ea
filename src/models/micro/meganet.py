"""MegaNetV1: the ~460,000-parameter teacher, a separable U-Net with everything switched on.

Two residual separable blocks a level, an atrous pyramid with coordinate attention at the bottom and
edge enhancement at the finest level.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    CoordinateAttention,
    DatasetAdaptiveModule,
    DepthwiseSeparableConv,
    GradientFeatureModule,
)
from src.models.segmenter import MaskNet, resize_to


class ResidualSeparable(nn.Module):
    """Two separable convolutions added to a (projected) input."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.work = nn.Sequential(
            DepthwiseSeparableConv(channels, out_channels),
            ConvNorm(out_channels, out_channels, 3, groups=out_channels, act=False),
            ConvNorm(out_channels, out_channels, act=False, zero_gamma=True),
        )
        self.skip = (
            nn.Identity()
            if channels == out_channels
            else ConvNorm(channels, out_channels, act=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        return F.relu(self.skip(x) + self.work(x))


class MegaNetV1(MaskNet):
    """Residual separable U-Net; scale ``widths`` down for the middle nets of a distillation chain.

    Args:
        num_classes: K.
        widths: channels at strides 1, 2, 4, 8, 16.
        pyramid: atrous pyramid at the bottom.
        attention: coordinate attention at the bottom.
        gradient: edge enhancement at stride 1.
        adaptive: channels scaled by the data set the router guesses.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (24, 48, 96, 136, 200),
        pyramid: bool = True,
        attention: bool = True,
        gradient: bool = True,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Sequential(
            ConvNorm(3, widths[0], 3),
            GradientFeatureModule(widths[0]) if gradient else nn.Identity(),
        )
        self.down = nn.ModuleList(ResidualSeparable(a, b) for a, b in pairs)
        self.bottom = nn.Sequential(
            AdvancedASPP(widths[-1]) if pyramid else nn.Identity(),
            CoordinateAttention(widths[-1], 8) if attention else nn.Identity(),
            DatasetAdaptiveModule(widths[-1]) if adaptive else nn.Identity(),
        )
        self.reduce = nn.ModuleList(ConvNorm(b, a, act=False) for a, b in pairs)
        self.up = nn.ModuleList(ResidualSeparable(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H, W) and the maps of the five levels, fine to coarse."""
        maps = [self.stem(x)]
        for block in self.down:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        maps[-1] = self.bottom(maps[-1])
        y = maps[-1]
        for level in range(len(self.up) - 1, -1, -1):
            y = resize_to(self.reduce[level](y), maps[level])
            y = self.up[level](torch.cat([y, maps[level]], 1))
        return self.head(y), maps
