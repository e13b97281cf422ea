"""TwoHeadUNet: what it is at stride 8, where it ends at full resolution; ours, two sizes.

A separable U-Net whose class logits come from a coarse head, where the maps are widest, while a
narrow branch at full resolution draws borders and lines one pixel wide. Fixed edge and blob filters
join the pixels for free. Only the coarse head carries the classes' prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.base import MaskNet, resize_to
from src.models.micro.blocks import (
    ConvNorm,
    DepthwiseSeparableConv,
    FixedFilters,
    MultiDilationSeparableConv2d,
)


class TwoHeadUNet(MaskNet):
    """Separable U-Net with a coarse and a fine head.

    Args:
        num_classes: K.
        widths: channels at strides 2, 4, 8, 16.
        fine_width: channels of the full-resolution branch.
        filters: fixed edge and blob filters beside the pixels.
        fine: the full-resolution branch; without it the fine head reads the map at stride 2.
        context: dilations of one shared kernel at the deepest level.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (12, 20, 28, 36),
        fine_width: int = 8,
        filters: bool = True,
        fine: bool = True,
        context: bool = True,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.filters = FixedFilters() if filters else None
        channels = 3 + (FixedFilters.out_channels if filters else 0)
        self.stem = ConvNorm(channels, widths[0], 3, stride=2)
        self.down = nn.ModuleList(_separable(a, b) for a, b in pairs)
        if context:
            self.down[-1] = MultiDilationSeparableConv2d(*pairs[-1], (1, 2, 4), shared=True)
        self.up = nn.ModuleList(_separable(a + b, a) for a, b in pairs)
        self.head = nn.Conv2d(widths[2], num_classes, 1)
        if fine:
            self.pixels = ConvNorm(channels, fine_width, 3)
            self.lift = ConvNorm(widths[0], fine_width, act=False)
            self.draw = ConvNorm(fine_width, fine_width, 3, groups=fine_width)
        self.fine = fine
        self.fine_head = nn.Conv2d(fine_width if fine else widths[0], num_classes, 1, bias=False)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits at full resolution (at stride 2 without ``fine``) and the levels' maps."""
        if self.filters is not None:
            x = torch.cat([x, self.filters(x)], 1)
        maps = [self.stem(x)]
        for block in self.down:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        y = maps[-1]
        coarse = y
        for level in range(len(self.up) - 1, -1, -1):
            y = self.up[level](torch.cat([resize_to(y, maps[level]), maps[level]], 1))
            if level == 2:
                coarse = y
        if self.fine:
            y = self.draw(F.relu(self.pixels(x) + resize_to(self.lift(y), x)))
        return resize_to(self.head(coarse), y) + self.fine_head(y), maps


def _separable(channels: int, out_channels: int) -> nn.Module:
    return DepthwiseSeparableConv(channels, out_channels)
