"""Segmentation nets: image (B, 3, H, W) on the 0..255 scale → logits (B, K, H, W).

The encoder and decoder come from segmentation_models_pytorch; what is added here is what a trainer
needs around them: pixels are normalised inside, any H and W is accepted, the backbone is told apart
from the head, and weights come from a local file only (no hub is ever asked). ``MaskNet`` is also
the base of the micro nets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.convolutions import widen_gradients
from src.models.pretrained import MIN_SHARE, read_state, strip_prefix
from src.script import UserError, nearest

# ImageNet's per-channel statistics on the 0..255 scale: any photograph is roughly whitened by them.
MEAN = torch.tensor((123.675, 116.28, 103.53))
STD = torch.tensor((58.395, 57.12, 57.375))


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize ``x`` (B, C, h, w) bilinearly to the height and width of ``like``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")


class MaskNet(nn.Module):
    """Base of the nets for masks.

    A net implements ``compute(x) -> (logits, features)`` for normalised pixels whose sides are
    multiples of ``stride``; logits may come at any resolution. The last convolution of
    ``head`` has the prior of the classes as its bias.
    """

    stride = 32
    head: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor = MEAN, std: Tensor = STD) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1).clone(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for ``image`` (B, 3, H, W), uint8 or float in [0, 255]."""
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K, H, W) and intermediate maps, for distillation.

        The maps cover the padded image: sides are first filled up to multiples of ``stride`` at
        the bottom and right with the border's own pixels.
        """
        height, width = image.shape[-2:]
        x = (image.to(self.mean.dtype) - self.mean) / self.std
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        logits, features = self.compute(x)
        # bfloat16 is too coarse for logits: at 10 its step is 1/16.
        return resize_to(logits.float(), x)[..., :height, :width], features

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits at any resolution and intermediate maps for normalised pixels ``x``."""
        raise NotImplementedError

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start the head at the classes' log-frequencies, so that no step is spent on finding them.

        ``frequency`` (K,) is the share of pixels of each class; one logit takes the last.
        """
        last = [layer for layer in self.head.modules() if isinstance(layer, nn.Conv2d)][-1]
        assert last.bias is not None
        share = frequency[-1:] if len(last.bias) == 1 else frequency
        p = share.clamp(1e-4, 1 - 1e-4).to(last.bias)
        last.bias.copy_(p.log() if len(p) > 1 else p.logit())


class PooledNorm(nn.BatchNorm2d):
    """BatchNorm of maps of one cell; a batch of one is normalised by the running statistics.

    A single value per channel has no variance: torch refuses it, and with it every micro-batch of
    one. Such a batch leaves the running statistics as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` (B, C, 1, 1)."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


# ``smp``: the package, imported where a net is built; ``same``: classes, and no weights.
def _deeplab(smp: ModuleType, encoder: str, width: int | None, **same: Any) -> nn.Module:
    # Output stride 16 keeps the decoder's skip at stride 4: the "+" of Chen et al. 2018.
    size: dict[str, Any] = {"decoder_channels": width or 256, "encoder_output_stride": 16}
    net = smp.DeepLabV3Plus(encoder, upsampling=1, **size, **same)
    pooling = net.decoder.aspp[0].convs[-1]  # pool to one cell, convolve, normalise
    pooling[2] = PooledNorm(pooling[2].num_features)
    return net


def _segformer(smp: ModuleType, encoder: str, width: int | None, **same: Any) -> nn.Module:
    # Xie et al. 2021: B0 and B1 decode with 256 channels, B2 to B5 with 768.
    large = encoder.startswith("mit_") and encoder not in ("mit_b0", "mit_b1")
    width = width or (768 if large else 256)
    return smp.Segformer(encoder, decoder_segmentation_channels=width, upsampling=1, **same)


def _unet(smp: ModuleType, encoder: str, width: int | None, **same: Any) -> nn.Module:
    channels = [max(1, (width or 256) >> level) for level in range(5)]
    return smp.Unet(encoder, decoder_channels=channels, **same)


def _fpn(smp: ModuleType, encoder: str, width: int | None, **same: Any) -> nn.Module:
    if width and width % 64:
        raise UserError(f"decoder width {width}: fpn takes multiples of 64")
    size: dict[str, Any] = {"decoder_pyramid_channels": width or 256}
    size["decoder_segmentation_channels"] = max(1, (width or 256) // 2)
    return smp.FPN(encoder, upsampling=1, **size, **same)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "deeplabv3plus": _deeplab,
    "segformer": _segformer,
    "unet": _unet,
    "fpn": _fpn,
}


def keep_contiguous(x: Tensor) -> Tensor:
    """Return ``x`` contiguous, as its gradient will be.

    That from a SegFormer's decoder is laid out as channels_last, and MPS computes the gradients of
    activations wrongly from it (PyTorch #107214, #175188).
    """
    x = x.contiguous()
    if x.requires_grad:
        x.register_hook(torch.Tensor.contiguous)
    return x


class Segmenter(MaskNet):
    """An smp net that takes raw pixels of any size; its encoder halves them at most five times.

    Everything below ``backbone`` is the encoder; every other parameter belongs to the head.

    Args:
        net: smp model whose segmentation head does not upsample.
        mean: per-channel mean of the encoder's training pixels, on the 0..1 scale.
        std: per-channel standard deviation, same scale.
    """

    def __init__(self, net: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(255 * torch.tensor(mean), 255 * torch.tensor(std))
        self.backbone: nn.Module = net.encoder
        self.decoder: nn.Module = net.decoder
        self.head: nn.Module = net.segmentation_head
        self.pretrained_share = 0.0  # of the backbone's parameters, from a weights file

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits and the encoder's maps, fine to coarse, for normalised pixels ``x``."""
        features = self.backbone(x)
        if x.device.type == "mps":
            features = [keep_contiguous(feature) for feature in features]
        # smp lists the image itself first, and an empty map where a transformer skips stride 2.
        maps = [feature for feature in features[1:] if feature.shape[1]]
        return self.head(self.decoder(features)), maps

    def tune_for_cpu(self) -> None:
        """Widen the gradients of depthwise convolutions (see `engine/cpu`)."""
        widen_gradients(self)


def check_encoder(encoder: str) -> None:
    """Refuse a name that is no encoder of smp and no timm backbone, before anything is built.

    Raises:
        UserError: with the nearest name.
    """
    import segmentation_models_pytorch as smp
    import timm

    known = smp.encoders.get_encoder_names()
    if encoder in known or encoder.startswith("timm-"):  # smp's older names
        return
    if encoder.startswith("tu-") and timm.is_model(encoder[3:]):
        return
    names = [*known, *(f"tu-{name}" for name in timm.list_models())]
    near = f" (did you mean tu-{encoder}?)" if timm.is_model(encoder) else nearest(encoder, names)
    raise UserError(f"encoder {encoder} is unknown{near}: any timm backbone is tu-NAME")


def build_segmenter(
    arch: str,
    encoder: str,
    num_outputs: int,
    *,
    weights: Path | str | None = None,
    decoder_width: int | None = None,
) -> Segmenter:
    """Build a segmentation net without touching the network.

    Args:
        arch: one of ``ARCHITECTURES``.
        encoder: smp encoder name; ``tu-NAME`` takes any timm backbone.
        num_outputs: channels of the logits: K, or 1 of the foreground alone.
        weights: local .safetensors or .pth file with the encoder's classification weights.
        decoder_width: channels of the decoder (of its widest level in U-Net and FPN, where FPN
            needs a multiple of 64); None takes the architecture's published width.

    Raises:
        UserError: unknown names, an encoder the architecture cannot take, an unfit file.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"--arch {arch} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    import segmentation_models_pytorch as smp

    try:
        same = {"encoder_weights": None, "classes": num_outputs}
        net = ARCHITECTURES[arch](smp, encoder, decoder_width, **same)
    except (KeyError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise UserError(
            f"--encoder {encoder} does not work with --arch {arch}: {reason[:200]}"
        ) from error
    segmenter = Segmenter(net, *_statistics(encoder))
    if weights is not None:
        segmenter.pretrained_share = load_encoder(segmenter.backbone, weights)
    return segmenter


def _statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std the encoder was trained with; smp's own encoders used ImageNet's."""
    if encoder.startswith("tu-"):
        import timm

        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        if config is not None:
            return tuple(config.mean), tuple(config.std)
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def load_encoder(encoder: nn.Module, path: Path | str) -> float:
    """Load classification weights into an smp encoder; return the share of parameters filled.

    timm's feature extractors flatten the first level of names (``stages.0`` → ``stages_0``) and smp
    nests them below ``model``; both spellings are tried. Classifier weights are left over.

    Raises:
        UserError: no such file, not a state dict, or one of another architecture.
    """
    own = encoder.state_dict()
    names = {_spelling(name.removeprefix("model.")): name for name in own}
    spelled = {_spelling(key): value for key, value in read_state(path).items()}
    found = {}
    for key, value in strip_prefix(spelled, names).items():
        name = names.get(key)
        if name is not None and own[name].shape == value.shape:
            found[name] = value
    parameters = dict(encoder.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    share = sum(p.numel() for name, p in parameters.items() if name in found) / total
    if share < MIN_SHARE:
        raise UserError(
            f"{path} fills only {share:.0%} of the encoder; name the encoder it belongs to"
        )
    # Not the encoder's own method: smp's overrides drop keys and refuse `strict`.
    nn.Module.load_state_dict(encoder, found, strict=False)
    return share


def _spelling(name: str) -> str:
    return name.replace("_", ".")
