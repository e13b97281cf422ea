"""HWNet and HWNet-Ultra: half of the channels work at each step, the other half is carried along.

Channel split and shuffle as in Ma et al. 2018 (ShuffleNet V2); the working half is separable and
sees two dilations, so the field grows without a deeper net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    CoordinateAttention,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to


class SplitBlock(nn.Module):
    """Transform one half of the channels, keep the other, interleave them."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        half = channels // 2
        self.work = MultiDilationSeparableConv2d(half, half, (1, dilation), shared=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        kept, used = x.chunk(2, 1)
        return torch.stack([kept, self.work(used)], 2).flatten(1, 2)


class HWNet(MaskNet):
    """Channel-split encoder, one skip, bilinear decoder.

    Args:
        num_classes: K.
        widths: even channels at strides 2, 4, 8.
        depth: split blocks a level.
        attention: coordinate attention on the deepest map.
        pyramid: atrous pyramid on the deepest map.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (16, 32, 48),
        depth: int = 3,
        attention: bool = True,
        pyramid: bool = True,
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = ConvNorm(3, fine, 3, stride=2)
        self.levels = nn.ModuleList(
            nn.Sequential(
                ConvNorm(a, a, 3, stride=2, groups=a, act=False),
                ConvNorm(a, b),
                *(SplitBlock(b, 2 << index) for index in range(depth)),
            )
            for a, b in ((fine, middle), (middle, coarse))
        )
        self.context = nn.Sequential(
            AdvancedASPP(coarse) if pyramid else nn.Identity(),
            CoordinateAttention(coarse) if attention else nn.Identity(),
        )
        self.reduce = nn.ModuleList(
            ConvNorm(a, b, act=False) for a, b in ((coarse, middle), (middle, fine))
        )
        self.mix = ConvNorm(fine, fine, 3, groups=fine)
        self.head = nn.Conv2d(fine, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/2, W/2) and the maps at strides 2, 4 and 8."""
        maps = [self.stem(x)]
        for level in self.levels:
            maps.append(level(maps[-1]))
        maps[-1] = self.context(maps[-1])
        y = maps[-1]
        for reduce, skip in zip(self.reduce, maps[-2::-1], strict=True):
            y = F.relu(skip + resize_to(reduce(y), skip))
        return self.head(self.mix(y)), maps
