"""MicroNet: factorised 1×1 convolutions, so that channels stay wide where parameters are few.

A 1×1 convolution across C channels becomes two grouped ones with a shuffle between them
(micro-factorised convolution, Li et al. 2021): 2·C²/G parameters with G groups.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import AdvancedASPP, ConvNorm, CoordinateAttention
from src.models.segmenter import MaskNet, resize_to


class FactorisedBlock(nn.Module):
    """Depthwise 3×3, two grouped 1×1 with a shuffle between, residual."""

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
            ConvNorm(fine, fine, 3, stride=2, groups=fine, act=False),
            ConvNorm(fine, middle),
            FactorisedBlock(middle, groups),
        )
        self.down8 = nn.Sequential(
            ConvNorm(middle, middle, 3, stride=2, groups=middle, act=False),
            ConvNorm(middle, width),
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
