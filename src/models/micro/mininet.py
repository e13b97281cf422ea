"""MiniNet v2 (~0.5 M) and v3 (~16 k): multi-dilation separable convolutions at stride 8.

MiniNet (Alonso et al. 2020) spends its depth at stride 8, where pairs of separable kernels see a
near and a far neighbourhood, and adds a shallow branch for detail. v3 is the same plan, thin.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import ConvNorm, DepthwiseSeparableConv, MultiDilationSeparableConv2d
from src.models.segmenter import MaskNet, resize_to


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
    """Deep branch at stride 8 and shallow branch at stride 4.

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
