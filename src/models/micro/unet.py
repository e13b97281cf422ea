"""U-Nets: the classic baseline, separable ones under 10,000 parameters, their large teacher."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    CoordinateAttention,
    DatasetAdaptiveModule,
    DepthwiseSeparableConv,
    DirectionalConv,
    GradientFeatureModule,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to


class UNetBaseline(MaskNet):
    """U-Net with two full 3×3 convolutions a level: the baseline to beat.

    The common variant of Ronneberger et al. 2015 with BatchNorm, 32 to 512 channels and transposed
    convolutions: 7,763,041 parameters with one output channel.

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
        """Return logits (B, K, H, W) and the maps of the levels, fine to coarse."""
        maps = descend(self.down[0](x), self.down[1:])
        y = maps[-1]
        for level in range(3, -1, -1):
            y = self.up[level](torch.cat([self.grow[level](y), maps[level]], 1))
        return self.head(y), maps


def descend(x: Tensor, blocks: Iterable[nn.Module]) -> list[Tensor]:
    """Return ``x`` and what each block makes of the halved map before it, fine to coarse."""
    maps = [x]
    for block in blocks:
        maps.append(block(F.max_pool2d(maps[-1], 2)))
    return maps


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
        maps = descend(self.detail(self.stem(x)), self.down)
        y = maps[-1]
        for level in range(len(self.up) - 1, -1, -1):
            y = self.up[level](torch.cat([resize_to(y, maps[level]), maps[level]], 1))
        return self.head(y), maps


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
    """Separable U-Net on the halved image, two detail branches, two heads (ours).

    Nearly all parameters sit in the trunk at strides 4 to 32, where the field of view is widest for
    the same kernels and a step costs a quarter. Two narrow branches, at strides 2 and 1, bring back
    what is one pixel wide. Class logits come from both: the coarse head carries the classes'
    prior, the fine head corrects.

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
        pairs = list(itertools.pairwise(widths))
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
        maps = descend(self.stem(F.avg_pool2d(x, 2)), self.down)
        coarse = fine = maps[-1]
        for skip, block in zip(maps[-2::-1], reversed(self.up), strict=True):
            coarse, fine = fine, block(torch.cat([resize_to(fine, skip), skip], 1))
        for branch in self.branches:
            fine = branch(x, fine)
        return resize_to(self.head(coarse), fine) + self.fine_head(fine), maps


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
    """Residual separable U-Net from stride 1 on: with everything on the teacher, ~460,000.

    Smaller ``widths`` make the middle nets of a distillation chain; without what is at the bottom,
    four levels, the net of 10,000 for thin lines. Two residual blocks a level, an atrous pyramid
    and coordinate attention at the bottom, edge enhancement at the finest level.

    Args:
        num_classes: K.
        widths: channels at strides 1, 2, 4, …, a level each.
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
        """Return logits (B, K, H, W) and the maps of the levels, fine to coarse."""
        maps = descend(self.stem(x), self.down)
        maps[-1] = self.bottom(maps[-1])
        y = maps[-1]
        for level in range(len(self.up) - 1, -1, -1):
            y = resize_to(self.reduce[level](y), maps[level])
            y = self.up[level](torch.cat([y, maps[level]], 1))
        return self.head(y), maps
