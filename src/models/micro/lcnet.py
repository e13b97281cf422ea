"""LCNet: context from three branches at every step, at stride 8 and 4 only.

Each block transforms a part of the channels with a local, a dilated and an image-level branch and
passes the rest on unchanged; the decoder fuses two levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import ConvNorm, DirectionalConv
from src.models.segmenter import MaskNet, resize_to


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
            ConvNorm(width // 2, width // 2, 3, stride=2, groups=width // 2, act=False),
            ConvNorm(width // 2, width),
            ContextBlock(width, 2, image_level=image_level),
            DirectionalConv(width) if directional else nn.Identity(),
        )
        self.down8 = nn.Sequential(
            ConvNorm(width, width, 3, stride=2, groups=width, act=False),
            ConvNorm(width, deep),
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
