"""DistillationNet_10k: the student of a distillation chain, every block in its lightest form.

Kernels shared across dilations, coordinate attention with one projection for both axes, an atrous
pyramid on few channels, a router over data sets and per-channel edge enhancement.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    CoordinateAttention,
    DatasetAdaptiveModule,
    GradientFeatureModule,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to


class DistillationNet(MaskNet):
    """Three-level encoder, additive decoder.

    Args:
        num_classes: K.
        width: channels at stride 8; two thirds at stride 4, a third at stride 2.
        pyramid: compact atrous pyramid at stride 8.
        attention: micro coordinate attention at stride 8.
        adaptive: data-set router at stride 8.
        gradient: mini edge enhancer at stride 2.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 36,
        pyramid: bool = True,
        attention: bool = True,
        adaptive: bool = True,
        gradient: bool = True,
    ) -> None:
        super().__init__()
        fine, middle = width // 3, width * 2 // 3
        self.stem = nn.Sequential(
            ConvNorm(3, fine, 3, stride=2),
            GradientFeatureModule(fine) if gradient else nn.Identity(),
        )
        self.level4 = MultiDilationSeparableConv2d(fine, middle, (1, 2), shared=True)
        self.level8 = nn.Sequential(
            MultiDilationSeparableConv2d(middle, width, (1, 2, 4), shared=True),
            AdvancedASPP(width, (2, 6)) if pyramid else nn.Identity(),
            CoordinateAttention(width, 8, shared=True) if attention else nn.Identity(),
            DatasetAdaptiveModule(width) if adaptive else nn.Identity(),
        )
        self.reduce8 = ConvNorm(width, middle, act=False)
        self.mix4 = ConvNorm(middle, middle, 3, groups=middle)
        self.reduce4 = ConvNorm(middle, fine, act=False)
        self.mix2 = ConvNorm(fine, fine, 3, groups=fine)
        self.head = nn.Conv2d(fine, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/2, W/2) and the maps at strides 2, 4 and 8."""
        fine = self.stem(x)
        middle = self.level4(F.max_pool2d(fine, 2))
        coarse = self.level8(F.max_pool2d(middle, 2))
        y = self.mix4(F.relu(middle + resize_to(self.reduce8(coarse), middle)))
        y = self.mix2(F.relu(fine + resize_to(self.reduce4(y), fine)))
        return self.head(y), [fine, middle, coarse]
