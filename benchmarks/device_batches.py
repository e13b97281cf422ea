"""Training batches of masks augmented on the device: for cards beside few cores.

All images lie on the device as uint8, resized once. One affine warp a batch does what
``train_mask_transform`` does with OpenCV: factor, crop or padding at random, left-right flip; then
one affine map of RGB. Differences: image resized bilinearly without a filter, and other draws.
Every draw is a function of (seed, epoch, step).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.dataset import EpochSampler, ImageDataset
from src.data.masks import VOID
from src.data.transforms import LUMA, PAD_COLOR, color_matrix
from src.mask_config import SegmentationConfig


class DeviceBatches:
    """A training loader that needs next to no time of the host.

    Args:
        dataset: (image, mask) samples of one size; read once, without its own augmentation.
        order: rows of every batch.
        config: options of the augmentation, and the seed.
        device: where the images stay.
    """

    collate_fn = None

    def __init__(
        self, dataset: ImageDataset, order: EpochSampler, config: SegmentationConfig, device: Any
    ) -> None:
        self.dataset, self.batch_sampler, self.config = dataset, order, config
        pixels = np.stack([dataset.read(row) for row in range(len(dataset))])
        self.pixels = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches from where the sampler starts."""
        first = self.batch_sampler.step
        for step, keys in enumerate(self.batch_sampler, first):
            rows = torch.tensor([row for _, row in keys])
            key = [3, self.config.seed, keys[0][0], step]
            pixels = self.pixels[rows.to(self.pixels.device, non_blocking=True)]
            image, mask = augment(pixels, self.config, np.random.default_rng(key))
            yield {"image": image, "mask": mask, "index": rows}


def augment(
    pixels: Tensor, config: SegmentationConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return image (B, 3, H, W) and mask (B, H, W), both uint8, of ``pixels`` (B, 4, H, W)."""
    count, _, height, width = pixels.shape
    factor = rng.uniform(config.scale_min, config.scale_max, count)
    place = rng.uniform(-1, 1, (2, count)) * (factor - 1) / factor  # of the crop's middle
    flip = np.where(rng.random(count) < config.hflip, -1, 1)
    zero = np.zeros(count)
    maps = [[flip / factor, zero, place[0]], [zero, 1 / factor, place[1]]]
    theta = upload(np.moveaxis(np.array(maps), 2, 0), pixels.device)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    pad = upload(np.array(PAD_COLOR), pixels.device)[None, :, None, None]
    image = F.grid_sample(pixels[:, :3].float() - pad, grid, align_corners=False) + pad
    labels = pixels[:, 3:].float() - VOID  # what lies outside is 0, hence VOID afterwards
    labels = F.grid_sample(labels, grid, mode="nearest", align_corners=False) + VOID
    image = change_colors(image, config.color, rng) if config.color else image
    return image.round().clamp(0, 255).to(torch.uint8), labels[:, 0].round().to(torch.uint8)


def change_colors(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue as ``ColorMatrix`` does, image by image."""
    count = len(image)
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, (3, count))
    hue = rng.uniform(-1, 1, count) * math.radians(36 * strength)
    matrix = np.stack([color_matrix(s, h) for s, h in zip(saturation, hue, strict=True)])
    matrix *= (brightness * contrast)[:, None, None]
    luma = torch.einsum("bchw,c->b", image, upload(np.array(LUMA), image.device))
    shift = upload(brightness * (1 - contrast), image.device) * luma / image[0, 0].numel()
    turned = torch.einsum("bkc,bchw->bkhw", upload(matrix, image.device), image)
    return turned + shift[:, None, None, None]


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small array to the device as float32 without waiting for it."""
    return torch.from_numpy(array.astype(np.float32)).to(device, non_blocking=True)
