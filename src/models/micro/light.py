"""Light encoders after published ones: HWNet, LCNet, MicroNet and MiniNet, at strides 2 to 8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    CoordinateAttention,
    DepthwiseSeparableConv,
    DirectionalConv,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to


class SplitBlock(nn.Module):
    """Transform one half of the channels, keep the other, interleave them.

    Channel split and shuffle as in Ma et al. 2018 (ShuffleNet V2); the working half is separable
    and sees two dilations, so the field grows without a deeper net.
    """

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
                *DepthwiseSeparableConv(a, b, stride=2),
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


class ContextBlock(nn.Module):
    """Local 3×3, dilated 3×3 and image mean on three quarters of the channels, mixed by a 1×1."""

    def __init__(self, channels: int, dilation: int, *, image_level: bool = True) -> None:
        super().__init__()
        self.used = channels * 3 // 4
        self.near = ConvNorm(self.used, self.used, 3, groups=self.used, act=False)
        self.far = ConvNorm(self.used, self.used, 3, dilation=dilation, groups=self.used, act=False)
        self.scale = nn.Parameter(torch.zeros(self.used, 1, 1)) if image_level else None
        self.mix = ConvNorm(self.used, self.used, act=False, zero_gamma=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        used, kept = x[:, : self.used], x[:, self.used :]
        y = self.near(used) + self.far(used)
        if self.scale is not None:
            y = y + self.scale * used.mean((2, 3), keepdim=True)
        # The carried quarter moves to the front, so that every channel works in turn.
        return torch.cat([kept, F.relu(used + self.mix(F.relu(y)))], 1)


class LCNet(MaskNet):
    """Stem at stride 4, context blocks at strides 4 and 8, two-level fusion.

    Args:
        num_classes: K.
        width: channels at stride 4; half as much again at stride 8.
        depth: context blocks at stride 8; dilations grow by two.
        image_level: the blocks' image-mean branch.
        directional: strips in four directions at stride 4 (thin lines).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 24,
        depth: int = 3,
        image_level: bool = True,
        directional: bool = False,
    ) -> None:
        super().__init__()
        deep = width * 3 // 2
        self.stem = nn.Sequential(
            ConvNorm(3, width // 2, 3, stride=2),
            ConvNorm(width // 2, width // 2, 3, groups=width // 2),
        )
        self.down4 = nn.Sequential(
            *DepthwiseSeparableConv(width // 2, width, stride=2),
            ContextBlock(width, 2, image_level=image_level),
            DirectionalConv(width) if directional else nn.Identity(),
        )
        self.down8 = nn.Sequential(
            *DepthwiseSeparableConv(width, deep, stride=2),
            *(ContextBlock(deep, 2 + 2 * i, image_level=image_level) for i in range(depth)),
        )
        self.reduce = ConvNorm(deep, width, act=False)
        self.head = nn.Conv2d(width, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/4, W/4) and the maps at strides 2, 4 and 8."""
        fine = self.stem(x)
        middle = self.down4(fine)
        coarse = self.down8(middle)
        y = F.relu(middle + resize_to(self.reduce(coarse), middle))
        return self.head(y), [fine, middle, coarse]


class FactorisedBlock(nn.Module):
    """Depthwise 3×3, two grouped 1×1 with a shuffle between, residual.

    Micro-factorised convolution (Li et al. 2021): 2·C²/G parameters with G groups in place of C²,
    so that channels stay wide.
    """

    def __init__(self, channels: int, groups: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.depthwise = ConvNorm(channels, channels, 3, dilation=dilation, groups=channels)
        self.first = ConvNorm(channels, channels, groups=groups)
        self.second = ConvNorm(channels, channels, groups=groups, act=False, zero_gamma=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        y = self.first(self.depthwise(x))
        y = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return F.relu(x + self.second(y))


class MicroNet(MaskNet):
    """Two-level encoder of factorised blocks with a wide deepest map.

    Args:
        num_classes: K.
        width: channels at stride 8, a multiple of 8; half at stride 4, a quarter at stride 2.
        depth: blocks at stride 8, at dilations 1, 2, 4, …
        groups: groups of the factorised 1×1.
        pyramid: atrous pyramid on the deepest map.
        attention: coordinate attention on the deepest map.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 40,
        depth: int = 3,
        groups: int = 4,
        pyramid: bool = False,
        attention: bool = True,
    ) -> None:
        super().__init__()
        fine, middle = width // 4, width // 2
        self.stem = ConvNorm(3, fine, 3, stride=2)
        self.down4 = nn.Sequential(
            *DepthwiseSeparableConv(fine, middle, stride=2),
            FactorisedBlock(middle, groups),
        )
        self.down8 = nn.Sequential(
            *DepthwiseSeparableConv(middle, width, stride=2),
            *(FactorisedBlock(width, groups, dilation=1 << index) for index in range(depth)),
            AdvancedASPP(width) if pyramid else nn.Identity(),
            CoordinateAttention(width, 8, shared=True) if attention else nn.Identity(),
        )
        self.reduce8 = ConvNorm(width, middle, act=False)
        self.reduce4 = ConvNorm(middle, fine, act=False)
        self.mix = ConvNorm(fine, fine, 3, groups=fine)
        self.head = nn.Conv2d(fine, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/2, W/2) and the maps at strides 2, 4 and 8."""
        fine = self.stem(x)
        middle = self.down4(fine)
        coarse = self.down8(middle)
        y = F.relu(middle + resize_to(self.reduce8(coarse), middle))
        y = F.relu(fine + resize_to(self.reduce4(y), fine))
        return self.head(self.mix(y)), [fine, middle, coarse]


class ResidualMultiDilation(nn.Module):
    """A near and a far depthwise kernel, mixed by a 1×1, added to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.work = MultiDilationSeparableConv2d(channels, channels, (1, dilation))
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return F.relu(x + self.norm(self.work(x)))


class MiniNet(MaskNet):
    """MiniNet v2 (~0.5 M) and, thin, v3 (~16 k): a deep branch at stride 8, a shallow one at 4.

    As Alonso et al. 2020: the depth lies where pairs of separable kernels see a near and a far
    neighbourhood; the shallow branch adds detail.

    Args:
        num_classes: K.
        widths: channels at strides 2, 4 and 8.
        middle: separable blocks at stride 4.
        dilations: far dilation of each block at stride 8.
        detail: the shallow branch; without it the logits come from stride 8.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (24, 64, 128),
        middle: int = 8,
        dilations: Sequence[int] = (*(1, 2, 1, 4, 1, 8, 1, 16) * 2, 1, 2, 1, 4, 8, 16),
        detail: bool = True,
    ) -> None:
        super().__init__()
        fine, half, deep = widths
        self.stem = ConvNorm(3, fine, 3, stride=2)
        self.down4 = nn.Sequential(
            DepthwiseSeparableConv(fine, half, stride=2),
            *(ResidualMultiDilation(half, 1) for _ in range(middle)),
        )
        self.down8 = nn.Sequential(
            DepthwiseSeparableConv(half, deep, stride=2),
            *(ResidualMultiDilation(deep, dilation) for dilation in dilations),
        )
        self.reduce = ConvNorm(deep, half, act=False)
        self.detail = DepthwiseSeparableConv(half, half) if detail else None
        self.head = nn.Conv2d(half, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/4, W/4) and the maps at strides 2, 4 and 8."""
        fine = self.stem(x)
        middle = self.down4(fine)
        coarse = self.down8(middle)
        y = self.reduce(coarse)
        if self.detail is not None:
            y = resize_to(y, middle) + self.detail(middle)
        return self.head(F.relu(y)), [fine, middle, coarse]
