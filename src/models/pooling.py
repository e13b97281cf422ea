"""A feature map in, a map of one cell out: what `--pool gem` and `--pool avg` put in place.

Maps are NCHW, NHWC (Swin) or NLC behind prefix tokens (ViT); the result keeps the layout, so that
the pretrained head of the backbone can go on with it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.script import UserError


class GeM(nn.Module):
    """Generalised mean f⁻¹(mean f(x)) over the positions of a map, with f(x) = g(x)^p.

    On maps without negative values g(x) = max(x, eps), which is the paper's GeM. That would throw
    away the negative half of a signed map (ConvNeXt, Swin, ViT, SiLU nets), so there g = softplus:
    the result still lies between the least and the greatest value, a constant map keeps its value
    and its sign, large p tends to the maximum, and the norm behind sees the scale it knows.

    p = 1 + softplus(`sharpness`) is learned, above 1 by construction. Everything is float32 and
    in the logarithm of g, so that no power over- or underflows, under autocast too.

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
            log_g = _log_softplus(x) if self.signed else x.clamp(min=1e-6).log()
            count = math.prod(features.shape[dim] for dim in dims)
            total = torch.logsumexp(self.p * log_g, dim=dims, keepdim=True)
            pooled = (total - math.log(count)) / self.p
            return _inverse_log_softplus(pooled) if self.signed else pooled.exp()


class MeanPool(nn.Module):
    """The plain mean over the positions of a map, in float32."""

    def forward(self, features: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Pool `features` over `dims`, keeping them with size one."""
        return features.float().mean(dim=dims, keepdim=True)


def pool_to_one_cell(backbone: Any, features: Tensor, pool: nn.Module) -> Tensor:
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


def _log_softplus(x: Tensor) -> Tensor:
    """Return log(softplus(x)), which is x where softplus(x) is exp(x) to float32."""
    return torch.where(x < -15.0, x, F.softplus(x.clamp(min=-15.0)).log())


def _inverse_log_softplus(y: Tensor) -> Tensor:
    """Return the x with log(softplus(x)) = y."""
    g = y.clamp(min=-15.0).exp()
    return torch.where(y < -15.0, y, g + (-torch.expm1(-g)).log())
