"""Building blocks of the micro nets: maps (B, C, H, W) → maps of the same or half the size.

Convolutions carry no bias where a BatchNorm follows. Fixed filters are buffers that are rebuilt,
not saved, and cost no parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution ("same" padding), BatchNorm and, unless ``act`` is off, ReLU.

    ``zero_gamma`` starts the norm at zero: a residual branch then begins as the identity
    (Goyal et al. 2017).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
        zero_gamma: bool = False,
    ) -> None:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2 * dilation, size[1] // 2 * dilation)
        conv = nn.Conv2d(
            channels, out_channels, size, stride, padding, dilation, groups, bias=False
        )
        norm = nn.BatchNorm2d(out_channels)
        if zero_gamma:
            nn.init.zeros_(norm.weight)
        super().__init__(conv, norm, *([nn.ReLU(inplace=True)] if act else []))


class DepthwiseSeparableConv(nn.Sequential):
    """A k×k convolution per channel, then a 1×1 across channels (Howard et al. 2017)."""

    def __init__(self, channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(
            ConvNorm(channels, channels, 3, stride=stride, groups=channels, act=False),
            ConvNorm(channels, out_channels),
        )


class MultiDilationSeparableConv2d(nn.Module):
    """Depthwise 3×3 convolutions at several dilations, summed, then one 1×1 across channels.

    With ``shared`` all dilations use one kernel: a larger field for no parameter.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        dilations: Sequence[int] = (1, 2, 4),
        *,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.kernels = nn.ParameterList(
            nn.init.kaiming_normal_(torch.empty(channels, 1, 3, 3), nonlinearity="linear")
            for _ in range(1 if shared else len(self.dilations))
        )
        self.norm = nn.BatchNorm2d(channels)
        self.mix = ConvNorm(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        total: Tensor | None = None
        for index, dilation in enumerate(self.dilations):
            kernel = self.kernels[index % len(self.kernels)]
            y = F.conv2d(x, kernel, padding=dilation, dilation=dilation, groups=x.shape[1])
            total = y if total is None else total + y
        return self.mix(self.norm(total))


def strength(dx: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient's length; the small constant keeps the root differentiable at zero."""
    return (dx.square() + dy.square() + 1e-4).sqrt()


class GradientFeatureModule(nn.Module):
    """Add each channel's own Sobel edge strength, scaled per channel and starting at zero."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
        both = torch.stack([sobel, sobel.t()]).unsqueeze(1)  # they answer 2 on a unit ramp
        self.register_buffer("kernel", both.repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        response = F.conv2d(padded, self.kernel, groups=x.shape[1])
        return x + self.scale * strength(response[:, 0::2], response[:, 1::2])


class DirectionalConv(nn.Module):
    """Depthwise 1×k and k×1 strips and their two diagonals: for cracks and other thin lines.

    The diagonals reuse the strips' weights on the diagonal of a k×k kernel. Starts as the identity.
    """

    mask: Tensor

    def __init__(self, channels: int, kernel: int = 7) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, kernel) / kernel)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)
        line = torch.zeros(4, kernel, kernel, kernel)  # direction × tap → place in the kernel
        for tap in range(kernel):
            line[0, tap, kernel // 2, tap] = 1
            line[1, tap, tap, kernel // 2] = 1
            line[2, tap, tap, tap] = 1
            line[3, tap, tap, kernel - 1 - tap] = 1
        self.register_buffer("mask", line, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W): the strongest direction's answer, added."""
        pad = self.weight.shape[-1] // 2
        answers = [
            F.conv2d(
                x, torch.einsum("cot,tyx->coyx", self.weight, m), padding=pad, groups=x.shape[1]
            )
            for m in self.mask
        ]
        return x + self.norm(torch.stack(answers).amax(0))


class CoordinateAttention(nn.Module):
    """Gate rows and columns by what their own averages say (Hou et al. 2021).

    Unlike the reference, the two gates share one projection when ``shared`` (half the parameters).
    """

    def __init__(self, channels: int, reduction: int = 4, *, shared: bool = False) -> None:
        super().__init__()
        hidden = max(2, channels // reduction)
        self.squeeze = ConvNorm(channels, hidden)
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = None if shared else nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        height = x.shape[-2]
        rows = x.mean(3, keepdim=True)  # (B, C, H, 1)
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # (B, C, W, 1)
        hidden = self.squeeze(torch.cat([rows, columns], 2))
        gate_rows = self.rows(hidden[:, :, :height]).sigmoid()
        columns = (self.columns or self.rows)(hidden[:, :, height:])
        return x * gate_rows * columns.sigmoid().transpose(2, 3)


class AdvancedASPP(nn.Module):
    """Atrous pyramid with depthwise branches, image-level branch and residual (Chen et al. 2017).

    Unlike DeepLab's, branches are summed instead of concatenated, so the mixing 1×1 stays C × C.
    """

    def __init__(self, channels: int, rates: Sequence[int] = (1, 3, 6)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ConvNorm(channels, channels, 3, dilation=rate, groups=channels) for rate in rates
        )
        self.image = nn.Conv2d(channels, channels, 1, groups=_groups(channels))
        self.mix = ConvNorm(channels, channels, act=False, zero_gamma=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        y = self.image(x.mean((2, 3), keepdim=True))
        for branch in self.branches:
            y = y + branch(x)
        return F.relu(x + self.mix(y))


class DatasetAdaptiveModule(nn.Module):
    """Scale and shift channels by the data set that a router guesses from the map.

    The router is one linear layer on the mean of the map; its guess is a soft mixture.
    """

    def __init__(self, channels: int, num_sets: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(channels, num_sets)
        self.scale = nn.Parameter(torch.ones(num_sets, channels))
        self.shift = nn.Parameter(torch.zeros(num_sets, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        share = self.router(x.mean((2, 3))).softmax(1)
        scale, shift = share @ self.scale, share @ self.shift
        return x * scale[..., None, None] + shift[..., None, None]


def _groups(channels: int) -> int:
    """Return 4 or 2 where it divides ``channels``: image-level mixing needs no full matrix."""
    return next(g for g in (4, 2, 1) if channels % g == 0)
