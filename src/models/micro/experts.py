"""InternalEnsembleNet: an edge, a region and a scale expert on one stem, fused by attention.

Each expert proposes a map; a per-pixel softmax over the experts weighs them before one head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    DepthwiseSeparableConv,
    GradientFeatureModule,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to


class InternalEnsembleNet(MaskNet):
    """Three experts at strides 2, 4 and 8.

    Args:
        num_classes: K.
        width: channels of the stem and of every expert's answer, a multiple of 4.
        edge: the expert at stride 2, with Sobel enhancement.
        region: the expert at stride 4, with shared-kernel dilations.
        scale: the expert at stride 8, with an atrous pyramid.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 20,
        edge: bool = True,
        region: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__()
        assert edge or region or scale, "an ensemble needs an expert"
        self.stem = ConvNorm(3, width, 3, stride=2)
        self.experts = nn.ModuleDict()
        if edge:
            self.experts["edge"] = nn.Sequential(
                GradientFeatureModule(width), DepthwiseSeparableConv(width, width)
            )
        if region:
            self.experts["region"] = nn.Sequential(
                nn.MaxPool2d(2),
                MultiDilationSeparableConv2d(width, 2 * width, (1, 2, 4), shared=True),
                DepthwiseSeparableConv(2 * width, width),
            )
        if scale:
            self.experts["scale"] = nn.Sequential(
                nn.MaxPool2d(4),
                DepthwiseSeparableConv(width, 2 * width),
                AdvancedASPP(2 * width, (1, 2, 4)),
                ConvNorm(2 * width, width, act=False),
            )
        self.attention = nn.Conv2d(len(self.experts) * width, len(self.experts), 1)
        self.head = nn.Conv2d(width, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/2, W/2) and the stem's and the experts' maps at stride 2."""
        stem = self.stem(x)
        answers = [resize_to(expert(stem), stem) for expert in self.experts.values()]
        share = self.attention(torch.cat(answers, 1)).softmax(1)
        y = sum(share[:, i : i + 1] * answer for i, answer in enumerate(answers))
        return self.head(F.relu(stem + y)), [stem, *answers]
