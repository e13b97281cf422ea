"""Multi-level features: mean and GeM of the maps of a backbone's middle stages.

The last map of a pretrained net names what ImageNet has names for; textures and parts stand in the
maps before it. A linear probe of both starts fine-tuning nearer to where it ends, most of all on
photographs unlike ImageNet's (docs/experiments.md). Pooled maps of several layers under one linear
head: Hariharan et al. 2015, https://arxiv.org/abs/1411.5752 (there for every pixel).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NUM_STAGES = 3
LEAST_SPREAD = 0.2  # of the median channel's: what hardly varies yet may vary once it is trained


def choose_stages(backbone: Any) -> list[int]:
    """Return the indices of the stages whose maps are pooled, by timm's `feature_info`.

    The last three before the last map itself, or quarters of the depth where all have one width.
    """
    info = getattr(backbone.feature_info, "info", backbone.feature_info)
    count = len(info)
    if count > 2 * NUM_STAGES and len({stage["num_chs"] for stage in info}) == 1:
        return [count * (i + 1) // (NUM_STAGES + 1) - 1 for i in range(NUM_STAGES)]
    last = count - (info[-1]["num_chs"] == backbone.num_features)
    return list(range(max(last - NUM_STAGES, 0), last))


class StagePools(nn.Module):
    """Mean and GeM of several maps, side by side, scaled to a length that a linear head can learn.

    ``level_widths`` are the columns of each level in what :meth:`forward` returns: the pretrained
    head's, then each stage's.
    """

    scale: Tensor  # (D,) factors; ones until :meth:`set_scale`

    def __init__(
        self,
        indices: Sequence[int],
        widths: Sequence[int],
        head_width: int,
        make_pool: Callable[[], nn.Module],
    ) -> None:
        """Make a pooling for each of the stages, whose maps have ``widths`` channels."""
        super().__init__()
        self.indices = list(indices)
        self.level_widths = [head_width, *(2 * width for width in widths)]
        self.pools = nn.ModuleList(make_pool() for _ in widths)
        self.register_buffer("scale", torch.ones(sum(self.level_widths)))

    def forward(self, head: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, D) float32 of the pretrained head's (B, D0) and maps (B, C, h, w)."""
        levels = [head.float()]
        for pool, features in zip(self.pools, maps, strict=True):
            levels += [features.float().mean((2, 3)), pool(features, (2, 3)).flatten(1)]
        return torch.cat(levels, dim=1) * self.scale

    @torch.no_grad()
    def set_scale(self, features: Tensor) -> Tensor:
        """Scale each level to the same variance, all to the length of the head's own; return it so.

        ``features`` (N, D) are those of :meth:`forward` with a scale of ones.

        Raises:
            ValueError: fewer than two rows, or features that are not finite.
        """
        if len(features) < 2 or not bool(torch.isfinite(features).all()):
            raise ValueError("levels are scaled by two rows or more, of finite features")
        spread = features.std(0)
        length = features[:, : self.level_widths[0]].square().sum(1).mean().sqrt()
        widths = self.level_widths
        share = torch.tensor([1 / width / len(widths) for width in widths]).sqrt()
        even = share.repeat_interleave(torch.tensor(widths)).to(features)
        self.scale.copy_(length * even / floor_spread(spread, widths))
        return features * self.scale.to(features)


def floor_spread(spread: Tensor, level_widths: Sequence[int]) -> Tensor:
    """Return standard deviations (D,), none far below the median of its level."""
    parts = [torch.maximum(s, LEAST_SPREAD * s.median()) for s in spread.split(list(level_widths))]
    return torch.cat(parts).clamp_min(1e-6)
