"""GeM and average pooling of a feature map to a map of one cell (`--pool gem`, `--pool avg`).

Maps are NCHW, NHWC (Swin) or NLC behind prefix tokens (ViT); the result keeps the layout, so that
the pretrained head of the backbone can go on with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.script import UserError


class GeM(nn.Module):
    """Generalised mean (mean x^p)^(1/p) over the positions of a map, with a learned exponent p.

    On maps without negative values this is the paper's GeM. It would throw away the negative half
    of a signed map (ConvNeXt, Swin, ViT, SiLU nets), so there each channel is measured from its
    least value in the image: z = x - min x, pooled = min x + (mean z^p)^(1/p). At p = 1 both forms
    are the plain mean, large p tends to the maximum, and the result lies between the two.

    p = 1 + softplus(`sharpness`) is learned, above 1 by construction. Everything is float32 and
    in the logarithm of z, so that no power over- or underflows, under autocast too.

    Source: Radenović et al. 2018, https://arxiv.org/abs/1711.02512, equation 3; the form for
    signed maps is our own.
    """

    def __init__(self, p: float = 3.0, *, signed: bool = False) -> None:
        super().__init__()
        if not p > 1.0:
            raise UserError(f"--gem_p {p:g}: must be above 1 (1 is --pool avg)")
        self.signed = signed
        # The inverse of softplus at p - 1; (1,) rather than a scalar, which FSDP cannot shard.
        self.sharpness = nn.Parameter(torch.tensor([p - 1.0 + math.log(-math.expm1(1.0 - p))]))

    @property
    def p(self) -> Tensor:
        """The exponent (1,), above 1."""
        return 1.0 + F.softplus(self.sharpness.float())

    def forward(self, features: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Pool `features` over `dims`, keeping them with size one; float32."""
        with torch.autocast(features.device.type, enabled=False):
            x = features.float()
            least = x.amin(dim=dims, keepdim=True) if self.signed else x.new_zeros(())
            log_z = (x - least).clamp(min=1e-6).log()
            count = math.prod([x.shape[dim] for dim in dims])  # a generator would split a graph
            total = torch.logsumexp(self.p * log_z, dim=dims, keepdim=True)
            return least + ((total - math.log(count)) / self.p).exp()


class MeanPool(nn.Module):
    """The plain mean over the positions of a map, in float32."""

    def forward(self, features: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Pool `features` over `dims`, keeping them with size one."""
        return features.float().mean(dim=dims, keepdim=True)


def as_map(backbone: nn.Module, features: Tensor) -> Tensor:
    """Return a backbone's features (B, H, W, C), (B, N, C) or (B, C, H, W) as (B, C, H, W)."""
    if features.ndim == 4:
        nhwc = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if nhwc else features
    tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    side = math.isqrt(tokens.shape[1])
    size = grid if grid and math.prod(grid) == tokens.shape[1] else (side, side)
    assert math.prod(size) == tokens.shape[1], "tokens of a square image"
    return tokens.transpose(1, 2).unflatten(2, size)


def pool_to_one_cell(backbone: nn.Module, features: Tensor, pool: nn.Module) -> Tensor:
    """Pool a map to one cell in the same layout.

    Args:
        backbone: the timm model the map is of; says its layout and its number of prefix tokens.
        features: (B, C, H, W), (B, H, W, C) or (B, prefix + L, C).
        pool: a `GeM` or `MeanPool`; prefix tokens are not pooled.

    Returns:
        (B, C, 1, 1), (B, 1, 1, C) or (B, prefix + 1, C); all tokens are the cell, since a head may
        read the class token as well as the mean of the others.
    """
    if features.ndim == 4:
        dims = (1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else (2, 3)
        return pool(features, dims)
    num_prefix = getattr(backbone, "num_prefix_tokens", 0)
    return pool(features[:, num_prefix:], (1,)).expand(-1, 1 + num_prefix, -1)
