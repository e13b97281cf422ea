"""AdaptiveNet: one trunk and five paths, one for each data set's kind of shape.

Paths: pyramid (VOC: many scales), edge (ETIS: blobs with soft borders), region (CVPPP: compact
shapes), directional (CFD: thin lines), smooth (CarDD: noisy borders). A path is picked by a hint;
without one, a linear classifier on the trunk's mean mixes the paths by its own guess.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    DepthwiseSeparableConv,
    DirectionalConv,
    GradientFeatureModule,
    MultiDilationSeparableConv2d,
)
from src.models.segmenter import MaskNet, resize_to

DATASETS = ("VOC", "ETIS", "CVPPP", "CFD", "CarDD")


class AdaptiveNet(MaskNet):
    """Trunk at strides 2, 4, 8, paths at stride 4.

    Args:
        num_classes: K.
        width: channels at stride 4; half at stride 2, half as much again at stride 8.
        dataset: hint given once for every image; None lets the net decide image by image.
        adaptive: the paths; without them only the trunk is left.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 24,
        dataset: str | None = None,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        assert dataset is None or dataset in DATASETS, f"unknown data set {dataset}"
        self.hint = None if dataset is None else DATASETS.index(dataset)
        fine, deep = width // 2, width * 3 // 2
        self.stem = ConvNorm(3, fine, 3, stride=2)
        self.level4 = DepthwiseSeparableConv(fine, width)
        self.level8 = MultiDilationSeparableConv2d(width, deep, (1, 2, 4), shared=True)
        self.reduce8 = ConvNorm(deep, width, act=False)
        self.paths = nn.ModuleList(_paths(width) if adaptive else [])
        self.classify = nn.Linear(deep, len(self.paths)) if adaptive else None
        if adaptive and self.hint is not None:  # what the hint passes by learns nothing
            for path in self.paths[: self.hint] + self.paths[self.hint + 1 :]:
                path.requires_grad_(False)
            self.classify.requires_grad_(False)  # type: ignore[union-attr]
        self.mix4 = DepthwiseSeparableConv(width, width)
        self.reduce4 = ConvNorm(width, fine, act=False)
        self.head = nn.Conv2d(fine, num_classes, 1)

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H/2, W/2) and the maps at strides 2, 4 and 8."""
        fine = self.stem(x)
        middle = self.level4(F.max_pool2d(fine, 2))
        coarse = self.level8(F.max_pool2d(middle, 2))
        y = F.relu(middle + resize_to(self.reduce8(coarse), middle))
        y = self.mix4(self._follow(y, coarse))
        y = F.relu(fine + resize_to(self.reduce4(y), fine))
        return self.head(y), [fine, middle, coarse]

    def _follow(self, y: Tensor, coarse: Tensor) -> Tensor:
        if self.classify is None:
            return y
        if self.hint is not None:
            return self.paths[self.hint](y)
        share = self.classify(coarse.mean((2, 3))).softmax(1)
        answers = torch.stack([path(y) for path in self.paths], 1)
        return (share[:, :, None, None, None] * answers).sum(1)


def _paths(channels: int) -> list[nn.Module]:
    """Return one block for each of ``DATASETS``, in their order."""
    return [
        AdvancedASPP(channels, (2, 4)),
        GradientFeatureModule(channels),
        ConvNorm(channels, channels, 5, groups=channels),
        DirectionalConv(channels),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ]
