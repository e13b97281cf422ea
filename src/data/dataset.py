"""Canonical pixels in, samples out, transformed by a pure function of (seed, epoch, row).

``dataset[(epoch, row)]`` is a dict of tensors: ``image`` (3, H, W) uint8 RGB, ``index`` the row,
and what the kind of task adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.canonical import Source, read
from src.data.transforms import Transform


class ImageDataset(Dataset):
    """Classification samples: ``image``, ``index`` and, where known, ``target``."""

    def __init__(
        self,
        source: Source,
        targets: Sequence[int] | np.ndarray | None,
        transform: Transform,
        *,
        seed: int = 0,
    ):
        """Join a source with ``targets`` (N,), class indices, or None for test images."""
        assert targets is None or len(targets) == len(source)
        self.source = source
        self.targets = None if targets is None else np.array(targets, np.int64)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """Return the sample of (epoch, row).

        Raises:
            UserError: the file cannot be decoded; names it.
        """
        epoch, row = key
        pixels = read(self.source, row)
        image = self.transform((self.seed, epoch, row), image=pixels)["image"]
        sample = {"image": to_tensor(image), "index": torch.tensor(row)}
        if self.targets is not None:
            sample["target"] = torch.tensor(self.targets[row])
        return sample


class MaskDataset(Dataset):
    """Segmentation samples: ``image``, ``index``, ``size`` and, where known, ``mask``.

    ``mask`` is (H, W) uint8 class indices; ``size`` (2,) is the height and width before the
    transform, by which a padded prediction is cut back.
    """

    def __init__(self, source: Source, transform: Transform, *, seed: int = 0):
        """Join a source, as :class:`MaskSource`, with a transform of image and mask."""
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """Return the sample of (epoch, row).

        Raises:
            UserError: a file cannot be decoded, or mask and image differ in size; names it.
        """
        epoch, row = key
        pixels = read(self.source, row)
        arrays = {"image": np.ascontiguousarray(pixels[..., :3])}
        if pixels.shape[2] == 4:
            arrays["mask"] = np.ascontiguousarray(pixels[..., 3])
        arrays = self.transform((self.seed, epoch, row), **arrays)
        size = torch.tensor(pixels.shape[:2])
        sample = {"image": to_tensor(arrays["image"]), "index": torch.tensor(row), "size": size}
        if "mask" in arrays:
            sample["mask"] = torch.from_numpy(np.ascontiguousarray(arrays["mask"]))
        return sample


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn (H, W, 3) uint8 into a contiguous (3, H, W) uint8 tensor."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # a quarter of the time of a strided copy
    return torch.from_numpy(planes)
