"""TwoHeadUNet (ours, two sizes): a coarse head for classes, a full-resolution head for borders.

Nearly all parameters sit in a separable U-Net at strides 4 to 32, where the field of view is widest
for the same kernels and a step costs a quarter. Two narrow branches, at strides 2 and 1, bring back
what is one pixel wide. Class logits come from both: the coarse head carries the classes' prior, the
fine head corrects.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import ConvNorm, DepthwiseSeparableConv
from src.models.segmenter import MaskNet, resize_to


class Detail(nn.Module):
    """Draw a coarse map again at the resolution of the pixels, or of half of them."""

    def __init__(self, channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.pixels = ConvNorm(3, out_channels, 3, stride=stride)
        self.lift = ConvNorm(channels, out_channels, act=False)
        # At stride 1 a mixing 1×1 would cost more time than the whole trunk.
        self.draw = (
            DepthwiseSeparableConv(out_channels, out_channels)
            if stride > 1
            else ConvNorm(out_channels, out_channels, 3, groups=out_channels)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, out_channels, H/stride, W/stride) of pixels ``x`` and a coarse map ``y``."""
        pixels = self.pixels(x)
        return self.draw(F.relu(pixels + resize_to(self.lift(y), pixels)))


class TwoHeadUNet(MaskNet):
    """Separable U-Net on the halved image, two detail branches, two heads.

    Args:
        num_classes: K.
        widths: channels of the trunk at strides 4, 8, 16, 32.
        detail: channels at strides 2 and 1.
        stride2: the branch at stride 2.
        stride1: the branch at stride 1.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (12, 20, 28, 36),
        detail: tuple[int, int] = (10, 8),
        stride2: bool = True,
        stride1: bool = True,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = ConvNorm(3, widths[0], 3, stride=2)
        self.down = nn.ModuleList(DepthwiseSeparableConv(a, b) for a, b in pairs)
        self.up = nn.ModuleList(DepthwiseSeparableConv(a + b, a) for a, b in pairs)
        self.head = nn.Conv2d(widths[1], num_classes, 1)
        self.branches = nn.ModuleList()
        channels = widths[0]
        for stride, wanted in ((2, stride2), (1, stride1)):
            if wanted:
                width = detail[2 - stride]
                self.branches.append(Detail(channels, width, stride=stride))
                channels = width
        self.fine_head = nn.Conv2d(channels, num_classes, 1, bias=False)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits at the finest branch's resolution and the trunk's maps, fine to coarse."""
        maps = [self.stem(F.avg_pool2d(x, 2))]
        for block in self.down:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        coarse = fine = maps[-1]
        for skip, block in zip(maps[-2::-1], reversed(self.up), strict=True):
            coarse, fine = fine, block(torch.cat([resize_to(fine, skip), skip], 1))
        for branch in self.branches:
            fine = branch(x, fine)
        return resize_to(self.head(coarse), fine) + self.fine_head(fine), maps
