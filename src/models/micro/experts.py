"""Nets of several paths: experts fused by attention, a path or a scale for each data set."""

from __future__ import annotations

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


class InternalEnsembleNet(MaskNet):
    """An edge, a region and a scale expert at strides 2, 4 and 8, fused by attention.

    Each expert proposes a map; a per-pixel softmax over the experts weighs them before one head.

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


DATASETS = ("VOC", "ETIS", "CVPPP", "CFD", "CarDD")


class AdaptiveNet(MaskNet):
    """One trunk and five paths, one for each data set's kind of shape.

    Trunk at strides 2, 4, 8, paths at stride 4: pyramid (VOC: many scales), edge (ETIS: blobs with
    soft borders), region (CVPPP: compact shapes), directional (CFD: thin lines), smooth (CarDD:
    noisy borders). A path is picked by a hint; without one, a linear classifier on the trunk's mean
    mixes the paths by its own guess.

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


class DistillationNet(MaskNet):
    """DistillationNet_10k: the student of a chain, every block in its lightest form.

    Three-level encoder, additive decoder: kernels shared across dilations, coordinate attention
    with one projection for both axes, an atrous pyramid on few channels, a router over data sets
    and per-channel edge enhancement.

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
