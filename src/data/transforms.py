"""Augmentation of an image (H, W, 3) uint8, mixup and CutMix of a batch, repeatable from a key.

Everything stays uint8 (H, W, 3) RGB until the device. Flips, rotation, colour, crops and erasing
have options of their own; ``--augment "0.2 blur(limit=5) + 0.1 gray"`` adds from the table
``AUGMENTATIONS``, each with its probability. albumentations composes; the colour change is ours:
brightness, contrast, saturation and hue are affine in RGB, so that one 3x4 matrix and one pass over
the pixels (18 times cheaper than four passes) stand for all of them.

mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) blends whole images, CutMix (Yun et al.
2019, https://arxiv.org/abs/1905.04899) pastes one rectangle. Drawn from (seed, step) on the CPU, so
that no device and no earlier step changes the draw; odd batches are fine (timm's version asserts).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network at import

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.augmentations.geometric import functional as geometric
from torch import Tensor
from torch.nn import functional as F

from src.reader import build_terms

cv2.setNumThreads(1)  # processes share the cores; threads inside each would only fight for them

LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as in JPEG
PAD_COLOR = (124, 116, 104)  # mean of ImageNet, near zero after normalisation
_STREAM, _MIX_STREAM = 1, 3  # keep draws apart from each other and from the order's
ROTATE_SHARE = 0.5  # of the images are rotated: the warp costs more than all else together


@dataclass(frozen=True)
class Transform:
    """A composition whose randomness is a pure function of a key."""

    compose: A.Compose
    random: bool = True

    def __call__(self, key: Sequence[int], **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Transform ``image`` (H, W, 3) uint8 and, where given, ``mask`` (H, W) alongside.

        ``key`` are non-negative integers, for instance (seed, epoch, row); the same key repeats.
        """
        if self.random:
            generator = np.random.default_rng([_STREAM, *key])
            state = int(generator.integers(2**63))
            self.compose.set_random_state(generator, random.Random(state))
        return self.compose(**arrays)


class RandomScale(A.RandomScale):
    """Resize by a random factor, averaging areas where that shrinks the image.

    What ``area_for_downscale="image"`` does since albumentations 2.0.6.
    """

    def apply(self, img: np.ndarray, scale: float, **params: object) -> np.ndarray:
        """Return ``img`` (H, W, 3) resized by ``scale``."""
        return geometric.scale(img, scale, cv2.INTER_AREA if scale < 1 else self.interpolation)


class ColorMatrix(A.ImageOnlyTransform):
    """Change brightness, contrast, saturation and hue by one affine map of RGB.

    Brightness, contrast and saturation factors are uniform in 1 ± ``strength``; hue turns about
    the grey axis by up to ±36° · ``strength``. As in torchvision, contrast keeps the mean luma of
    the image and saturation each pixel's luma; values are clipped once, at the end.
    """

    def __init__(self, strength: float = 0.2, p: float = 1.0):
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> dict[str, Any]:
        """Draw (brightness, contrast, saturation, hue in radians)."""
        low, high = 1 - self.strength, 1 + self.strength
        turn = math.radians(36 * self.strength)
        draw = self.py_random.uniform
        return {"change": (draw(low, high), draw(low, high), draw(low, high), draw(-turn, turn))}

    def apply(
        self, img: np.ndarray, change: tuple[float, float, float, float], **_: object
    ) -> np.ndarray:
        """Apply a drawn change to (H, W, 3) uint8."""
        brightness, contrast, saturation, hue = change
        matrix = np.empty((3, 4))
        matrix[:, :3] = color_matrix(saturation, hue)
        mean = float(np.dot(LUMA, cv2.mean(img)[:3]))
        matrix[:, 3] = (1 - contrast) * mean
        matrix[:, :3] *= contrast
        return cv2.transform(img, matrix * brightness)


def color_matrix(saturation: float, hue: float) -> np.ndarray:
    """Return the (3, 3) map of RGB that scales saturation and turns hue (radians)."""
    turn = math.cos(hue) * np.eye(3) + (1 - math.cos(hue)) / 3  # Rodrigues, axis (1, 1, 1)/√3
    turn += math.sin(hue) / math.sqrt(3) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return (saturation * np.eye(3) + (1 - saturation) * np.array([LUMA] * 3)) @ turn


class QuickAffine(A.Affine):
    """albumentations' transform to the last pixel; OpenCV warps four channels faster than three."""

    def apply(
        self, img: np.ndarray, matrix: np.ndarray, output_shape: tuple[int, int], **_: object
    ) -> np.ndarray:
        """Warp (H, W, 3) uint8."""
        warped = cv2.warpAffine(
            cv2.cvtColor(img, cv2.COLOR_RGB2RGBA),
            matrix[:2],
            output_shape[::-1],
            flags=self.interpolation,
            borderMode=self.border_mode,
            borderValue=self.fill,
        )
        return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def blur(p: float, limit: Annotated[int, {"least": 3, "most": 63}] = 7) -> A.BasicTransform:
    """Blur with a Gaussian kernel of an odd size from 3 to ``limit`` px."""
    return A.GaussianBlur(blur_limit=(3, limit // 2 * 2 + 1), p=p)


def noise(p: float, std: Annotated[float, {"above": 0, "most": 1}] = 0.1) -> A.BasicTransform:
    """Add Gaussian noise of a standard deviation up to ``std``, as a share of 255."""
    return A.GaussNoise(std_range=(0, std), p=p)


def jpeg(p: float, quality: Annotated[int, {"least": 1, "most": 100}] = 40) -> A.BasicTransform:
    """Compress as JPEG at a quality from ``quality`` to 100."""
    return A.ImageCompression(quality_range=(quality, 100), p=p)


def gray(p: float) -> A.BasicTransform:
    """Drop the colours."""
    return A.ToGray(p=p)


def sharpen(
    p: float, strength: Annotated[float, {"above": 0, "most": 1}] = 0.5
) -> A.BasicTransform:
    """Blend up to ``strength`` of the sharpened image in."""
    return A.Sharpen(alpha=(0, strength), p=p)


def clahe(p: float, limit: Annotated[float, {"least": 1, "most": 100}] = 4.0) -> A.BasicTransform:
    """Equalise the histogram of 8 x 8 tiles, contrast limited to at most ``limit``."""
    return A.CLAHE(clip_limit=(1, limit), p=p)


# Name in --augment -> transform(p, **options); images alone change, masks stay as they are.
AUGMENTATIONS: dict[str, Callable[..., A.BasicTransform]] = {
    make.__name__: make for make in (blur, noise, jpeg, gray, sharpen, clahe)
}


def build_augmentations(spec: str) -> list[A.BasicTransform]:
    """Return the transforms of ``--augment``, none for an empty ``spec``.

    Raises:
        UserError: an unknown name or option, or a value out of its bounds.
    """
    if not spec:
        return []
    terms = build_terms("--augment", spec, AUGMENTATIONS, example="0.2 blur + 0.1 gray", most=1)
    return [make(probability) for _, probability, make in terms]


def train_transform(
    image_size: int,
    *,
    scale_min: float = 0.5,
    hflip: float = 0.5,
    vflip: float = 0.0,
    rotate: float = 10.0,
    color: float = 0.2,
    erase: float = 0.0,
    augment: str = "",
) -> Transform:
    """Build the random transform of classification: canonical square → (image_size, image_size).

    Args:
        image_size: side of the result, px.
        scale_min: smallest share of the area that a crop keeps, in (0, 1]; 1 = no crop.
        hflip: probability of a left-right flip.
        vflip: probability of an up-down flip.
        rotate: largest rotation, degrees; half of the images are rotated. 0 = none.
        color: strength of brightness, contrast, saturation (and a little hue); 0 = none.
        erase: probability that a random rectangle is filled with noise.
        augment: more of them, as in "0.2 blur + 0.1 gray"; names as in ``AUGMENTATIONS``.
    """
    size = (image_size, image_size)
    steps: list[A.BasicTransform] = []
    if scale_min < 1:
        steps.append(A.RandomResizedCrop(size=size, scale=(scale_min, 1.0), ratio=(3 / 4, 4 / 3)))
    else:
        steps.append(A.Resize(*size, interpolation=cv2.INTER_AREA))
    mirrored = {"border_mode": cv2.BORDER_REFLECT_101}
    steps += _shared_steps(hflip, vflip, rotate, color, augment, mirrored)
    if erase > 0:
        steps.append(A.Erasing(scale=(0.02, 0.25), fill="random", p=erase))
    return Transform(A.Compose(steps))


def eval_transform(image_size: int | None = None) -> Transform:
    """Build the plain transform: a canonical square to that size, None = images and masks stay."""
    steps = [A.Resize(image_size, image_size)] if image_size else []
    return Transform(A.Compose(steps), random=False)


def train_mask_transform(
    crop_size: tuple[int, int],
    *,
    ignore_index: int = 255,
    scale_min: float = 0.5,
    scale_max: float = 2.0,
    hflip: float = 0.5,
    vflip: float = 0.0,
    rotate: float = 0.0,
    color: float = 0.2,
    augment: str = "",
) -> Transform:
    """Build the random transform of segmentation: any size → ``crop_size`` (height, width).

    The image is resized by a factor in ``scale_min`` .. ``scale_max``, cropped at random and
    padded where it is too small; what lies outside the photograph is ``ignore_index`` in the mask.
    The other options are those of :func:`train_transform`.
    """
    outside = {"fill": PAD_COLOR, "fill_mask": ignore_index, "border_mode": cv2.BORDER_CONSTANT}
    steps: list[A.BasicTransform] = []
    if (scale_min, scale_max) != (1, 1):
        limits = (scale_min - 1, scale_max - 1)
        steps.append(RandomScale(limits, p=1.0))
    padding = {"pad_if_needed": True, "pad_position": "random", **outside}
    steps.append(A.RandomCrop(*crop_size, **padding))
    steps += _shared_steps(hflip, vflip, rotate, color, augment, outside)
    return Transform(A.Compose(steps))


def _shared_steps(
    hflip: float, vflip: float, rotate: float, color: float, augment: str, outside: dict[str, Any]
) -> list[A.BasicTransform]:
    """Return what images and masks share; ``outside`` says what a rotation lets in."""
    steps: list[A.BasicTransform] = [A.HorizontalFlip(p=hflip)] if hflip > 0 else []
    if vflip > 0:
        steps.append(A.VerticalFlip(p=vflip))
    if rotate > 0:
        steps.append(QuickAffine(rotate=(-rotate, rotate), **outside, p=ROTATE_SHARE))
    if color > 0:
        steps.append(ColorMatrix(color))
    return steps + build_augmentations(augment)


def mix(
    image: Tensor,
    target: Tensor,
    *,
    num_classes: int,
    seed: int,
    step: int,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    prob: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mix an effective batch by mixup or CutMix; where both are on, each takes half of the batches.

    Args:
        image: (B, C, H, W) uint8 or float in [0, 255], on any device; left as it is.
        target: (B,) int64 class indices, or (B, K) of 0 and 1.
        num_classes: K.
        seed: of the run; several processes draw the same, each for its rows of the batch.
        step: optimizer step.
        mixup_alpha: λ ~ Beta(α, α) of mixup; 0 = none.
        cutmix_alpha: λ ~ Beta(α, α) of CutMix; 0 = none.
        prob: probability that this batch is mixed at all.

    Returns:
        The image (uint8 stays uint8 unless blended, which gives float32 in [0, 255]) and the
        target as (B, K) float32 rows; of class indices they sum to 1.
    """
    generator = np.random.default_rng([_MIX_STREAM, seed, step])
    soft = (target if target.ndim == 2 else F.one_hot(target, num_classes)).float()
    wanted = mixup_alpha > 0 or cutmix_alpha > 0
    if not wanted or len(image) < 2 or generator.random() >= prob:
        return image, soft
    cuts = cutmix_alpha > 0 and (mixup_alpha <= 0 or generator.random() < 0.5)
    alpha = cutmix_alpha if cuts else mixup_alpha
    share = float(generator.beta(alpha, alpha))
    # A turn of a random order: each image meets another one, never itself.
    order = generator.permutation(len(image))
    partner_of = np.empty_like(order)
    partner_of[order] = np.roll(order, 1)
    # on MPS a copy that is not waited for may read the host's memory after it is freed
    wait = image.device.type != "cuda"
    partner = torch.from_numpy(partner_of).to(image.device, non_blocking=not wait)
    if cuts:
        top, bottom, left, right = draw_box(generator, image.shape[-2], image.shape[-1], 1 - share)
        mixed = image.clone()
        mixed[..., top:bottom, left:right] = image[partner, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (image.shape[-2] * image.shape[-1])
    else:
        mixed = image.float()
        mixed = torch.lerp(mixed[partner], mixed, share)
    return mixed, torch.lerp(soft[partner], soft, share)


def draw_box(
    generator: np.random.Generator, height: int, width: int, area: float
) -> tuple[int, int, int, int]:
    """Draw (top, bottom, left, right) of ``area`` of the image, cut off at its edges.

    The centre is uniform over the image, as in the paper; the caller must correct λ by what is
    left of the box.
    """
    side = math.sqrt(area)
    box_height, box_width = round(height * side), round(width * side)
    top = int(generator.integers(height)) - box_height // 2
    left = int(generator.integers(width)) - box_width // 2
    bottom, right = min(height, top + box_height), min(width, left + box_width)
    return max(0, top), bottom, max(0, left), right
