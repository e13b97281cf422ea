"""Image classifier: timm backbone, GeM pooling, linear head; images (B, 3, H, W) → logits (B, K).

The pretrained head of a timm model is more than its pooling: ConvNeXt has a LayerNorm after it,
MobileNetV3 a convolution. So `--pool gem` changes the pooling alone: it pools the feature map to
a map of one cell, and hands that to the pretrained head, whose own pooling of one cell is the
identity. `--pool native` hands over the whole map. `--pool stages` puts mean and GeM of earlier
maps beside that of the last one (:mod:`src.models.stages`).

Where the pretrained head reads a token rather than a mean (ViT), the pooled patches stand beside
what it reads, (B, 2 D): nothing of pretraining is lost, and a linear head sees a superset.

Feature maps are NCHW, NHWC (Swin) or NLC behind prefix tokens (ViT); pooling keeps the layout.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from src.models.convolutions import hold_norms, widen_gradients
from src.models.pretrained import find_data_config, load_pretrained
from src.models.stages import StagePools, choose_stages
from src.script import UserError, says_short_memory


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


POOLS = ("gem", "avg", "native", "stages")
STAGE_P = 3.0  # where the exponents of earlier maps start: nobody was trained on their means
# Signed maps end pretraining before a mean (and mostly a norm after it): GeM starts next to that.
NEAR_MEAN = 1.05


class Classifier(nn.Module):
    """timm backbone, pooling, dropout, linear head; the normalisation is inside, as buffers.

    `pretrained_share` says how much of the backbone came from a file, in [0, 1]. With
    `frozen_norms` BatchNorm uses its running statistics in training, too, and leaves them alone.
    `trial_side` is that of a square image the backbone can take, px.

    Parameters under `backbone` are the pretrained ones, to be grouped by
    `backbone.group_matcher()`; every other parameter belongs to the head.
    """

    backbone: Any
    pretrained_share: float = 0.0
    frozen_norms: bool = False
    trial_side: int = 128
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        pool: nn.Module | None,
        beside_token: bool = False,
        stages: StagePools | None = None,
        drop_rate: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Put the parts together.

        Args:
            backbone: a timm model built with `num_classes=0`.
            num_classes: K.
            pool: a `GeM`, a `MeanPool`, or None for the backbone's own.
            beside_token: put the pooled patches beside what the pretrained head reads.
            stages: pools earlier maps, to be put beside that.
            drop_rate: dropout before the head, in [0, 1).
            mean: per channel, of values scaled to [0, 1].
            std: likewise.
        """
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.beside_token = beside_token
        self.drop = nn.Dropout(drop_rate)
        self.stages = stages
        self.head = nn.Linear(sum(self.level_widths), num_classes)
        # Small weights: the first predictions are near the prior, the first gradients small.
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, -1, 1, 1))

    @property
    def level_widths(self) -> list[int]:
        """Widths of the levels that the head takes, side by side."""
        if self.stages is not None:
            return self.stages.level_widths
        return [self.backbone.head_hidden_size * (1 + self.beside_token)]

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 logits (B, K) of `image` (B, 3, H, W), uint8 or float in [0, 255]."""
        return self.classify(self.embed(self.forward_features(image)))

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Return the backbone's last features, in timm's own layout, of `image` (B, 3, H, W).

        Behind them the maps (B, C, h, w) of earlier stages, where those are pooled too.
        """
        image = (image - self.mean) / self.std
        if self.stages is None:
            return [self.backbone.forward_features(image)]
        last, maps = self.backbone.forward_intermediates(image, indices=self.stages.indices)
        return [last, *maps]

    def embed(self, features: Sequence[Tensor]) -> Tensor:
        """Pool what :meth:`forward_features` returns to what the head takes, (B, D)."""
        pooled = self._embed_last(features[0])
        return pooled if self.stages is None else self.stages(pooled, features[1:])

    def _embed_last(self, features: Tensor) -> Tensor:
        if self.pool is None:
            return self.backbone.forward_head(features, pre_logits=True)
        cell = pool_to_one_cell(self.backbone, features, self.pool)
        pooled = self.backbone.forward_head(cell, pre_logits=True)
        if not self.beside_token:
            return pooled
        token = self.backbone.forward_head(features, pre_logits=True)
        return torch.cat([token.to(pooled.dtype), pooled], dim=1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return float32 logits (B, K) of `embedding` (B, D)."""
        embedding = self.drop(embedding)
        # bfloat16 has 8 bits: a logit of 10 would be rounded to 1/16, which log loss notices.
        with torch.autocast(embedding.device.type, enabled=False):
            return self.head(embedding.to(self.head.weight.dtype))

    def train(self, mode: bool = True) -> Classifier:
        """Set training or evaluation mode; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.frozen_norms:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def tune_for_cpu(self) -> None:
        """Let convolutions apply frozen norms, and widen depthwise gradients (see `engine/cpu`)."""
        if self.frozen_norms:
            hold_norms(self, self.trial_side)
        widen_gradients(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the backbone's activations in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)


# What a backbone or a pretrained head raises at a size or pooling that it cannot take.
_CANNOT = (RuntimeError, TypeError, AttributeError, AssertionError, IndexError, ValueError)


def build_classifier(
    timm_id: str,
    num_classes: int,
    *,
    image_size: int,
    pool: str = "native",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    weights: Path | None = None,
    gem_p: float = 0.0,
    frozen_norms: bool = False,
) -> Classifier:
    """Build a classifier on a timm backbone.

    Args:
        timm_id: with or without its tag, which decides mean and std.
        num_classes: K.
        image_size: side in pixels; models of a fixed size are built for it.
        pool: gem, avg, native or stages.
        drop_rate: dropout before the head, in [0, 1).
        drop_path_rate: stochastic depth of the backbone, in [0, 1).
        weights: file of pretrained weights, None for random ones.
        gem_p: where the learned exponent starts, above 1; 0 = 3 on maps without negative values
            (after a ReLU), `NEAR_MEAN` on signed ones.
        frozen_norms: keep pretrained BatchNorm at its running statistics; random ones never are.

    Raises:
        UserError: unknown model, a size or pooling it cannot take, weights that do not fit it.
    """
    if pool not in POOLS:
        raise UserError(f"--pool {pool}: unknown, choose one of {', '.join(POOLS)}")
    config = find_data_config(timm_id)
    options: dict[str, Any] = {}
    if config.fixed_size:
        options["img_size"] = image_size
    if drop_path_rate > 0.0:  # not every model knows the word
        options["drop_path_rate"] = drop_path_rate
    backbone = _build_backbone(timm_id, options)
    last_pool = "gem" if pool == "stages" else pool
    share = 0.0 if weights is None else load_pretrained(backbone, weights)
    pooling: nn.Module | None = None
    resized = config.fixed_size and image_size != config.image_size
    # A flexible model is tried at a small size: the answer is the same.
    side = image_size if config.fixed_size else min(image_size, 128)
    if pool != "native" or resized or not config.fixed_size:
        try:
            pooling = _try_pool(backbone, last_pool, gem_p, side)
        except _CANNOT as error:
            if says_short_memory(error):
                raise
            remedy = f"--image_size {config.image_size}"
            with contextlib.suppress(*_CANNOT):
                if pool != "native" and not resized:
                    _try_pool(backbone, "native", gem_p, side)
                    remedy = "--pool native"
            raise UserError(
                f"model {timm_id}: no --pool {pool} at {side} px; take {remedy}"
            ) from error
    # A pretrained head that reads a token (or an attention pool) gets the mean beside it.
    read = getattr(backbone, "global_pool", "avg")
    beside_token = pooling is not None and read in ("token", "map", "tok")
    head_width = backbone.head_hidden_size * (1 + beside_token)
    stages = _try_stages(timm_id, backbone, head_width, side) if pool == "stages" else None
    model = Classifier(
        backbone, num_classes, pool=pooling, beside_token=beside_token, stages=stages,
        drop_rate=drop_rate, mean=config.mean, std=config.std,
    )  # fmt: skip
    model.pretrained_share = share
    model.frozen_norms = frozen_norms and share > 0
    model.trial_side = side
    return model


def _build_backbone(timm_id: str, options: dict[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(timm_id, pretrained=False, num_classes=0, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model {timm_id} cannot be built with {given}: {reason}") from error


def takes_stages(model: Classifier) -> bool:
    """Tell whether `--pool stages` can have the backbone of ``model``; older timm lacks some."""
    try:
        _try_stages("", model.backbone, 1, model.trial_side)
    except UserError:
        return False
    return True


def _try_stages(timm_id: str, backbone: nn.Module, head_width: int, side: int) -> StagePools:
    """Build the pooling of earlier maps, after one image through them."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            device = next(backbone.parameters()).device
            image = torch.zeros(1, 3, side, side, device=device)
            indices = choose_stages(backbone)
            _, maps = backbone.forward_intermediates(image, indices=indices)  # type: ignore[operator]
        widths = [features.shape[1] for features in maps]
        return StagePools(indices, widths, head_width, lambda: GeM(STAGE_P, signed=True))
    except _CANNOT as error:
        if says_short_memory(error):
            raise
        raise UserError(f"model {timm_id}: no --pool stages; take --pool gem") from error
    finally:
        backbone.train(was_training)


def _try_pool(backbone: Any, name: str, gem_p: float, side: int) -> nn.Module | None:
    """Build the pooling called `name`, after one image through backbone and pretrained head.

    The image is there because neither the sign of a map nor what a head can take is written
    anywhere; after a ReLU, no weights whatever give a negative value.
    """
    was_training = backbone.training
    backbone.eval()  # BatchNorm refuses a single cell in training
    image = torch.sin(torch.arange(3.0 * side * side)).view(1, 3, side, side)
    pool: nn.Module | None = None
    with torch.no_grad():
        features = backbone.forward_features(image)
        if name != "native":
            signed = bool(features.min() < 0) or not features.any()
            p = gem_p or (NEAR_MEAN if signed else 3.0)
            pool = GeM(p, signed=signed) if name == "gem" else MeanPool()
            features = pool_to_one_cell(backbone, features, pool)
        backbone.forward_head(features, pre_logits=True)
    backbone.train(was_training)
    return pool
