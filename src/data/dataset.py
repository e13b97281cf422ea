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


class _SourceDataset(Dataset):
    """What the two kinds share: files are read first, which threads may do, then transformed."""

    def __init__(self, source: Source, transform: Transform, seed: int):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        return self.source.name(row)

    def read(self, row: int) -> np.ndarray:
        """Return the canonical pixels of a row; safe in several threads at once.

        Raises:
            UserError: a file cannot be decoded; names it.
        """
        return read(self.source, row)

    def sample(self, key: tuple[int, int], pixels: np.ndarray) -> dict[str, Tensor]:
        """Transform pixels that were read into the sample of (epoch, row)."""
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return self.sample(key, self.read(key[1]))


class ImageDataset(_SourceDataset):
    """Classification samples: ``image``, ``index`` and, where known, ``target`` (int64)."""

    def __init__(
        self,
        source: Source,
        targets: Sequence[int] | np.ndarray | None,
        transform: Transform,
        *,
        seed: int = 0,
    ):
        """Join a source with ``targets`` (N,), class indices, or None for test images."""
        super().__init__(source, transform, seed)
        assert targets is None or len(targets) == len(source)
        self.targets = None if targets is None else np.array(targets, np.int64)

    def sample(self, key: tuple[int, int], pixels: np.ndarray) -> dict[str, Tensor]:
        """Transform (S, S, 3) pixels into the sample of (epoch, row)."""
        row = key[1]
        image = self.transform((self.seed, *key), image=pixels)["image"]
        sample = {"image": to_tensor(image), "index": torch.tensor(row)}
        if self.targets is not None:
            sample["target"] = torch.tensor(self.targets[row])
        return sample


class MaskDataset(_SourceDataset):
    """Segmentation samples: ``image``, ``index``, ``size`` and, where known, ``mask``.

    ``mask`` is (H, W) uint8 class indices; ``size`` (2,) is the height and width before the
    transform, by which a padded prediction is cut back.
    """

    def __init__(self, source: Source, transform: Transform, *, seed: int = 0):
        """Join a source, as :class:`src.data.canonical.MaskSource`, with a transform of both."""
        super().__init__(source, transform, seed)

    def sample(self, key: tuple[int, int], pixels: np.ndarray) -> dict[str, Tensor]:
        """Transform (H, W, 3 or 4) pixels into the sample of (epoch, row)."""
        arrays = {"image": np.ascontiguousarray(pixels[..., :3])}
        if pixels.shape[2] == 4:
            arrays["mask"] = np.ascontiguousarray(pixels[..., 3])
        arrays = self.transform((self.seed, *key), **arrays)
        sample = {
            "image": to_tensor(arrays["image"]),
            "index": torch.tensor(key[1]),
            "size": torch.tensor(pixels.shape[:2]),
        }
        if "mask" in arrays:
            sample["mask"] = torch.from_numpy(np.ascontiguousarray(arrays["mask"]))
        return sample


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn (H, W, 3) uint8 into a contiguous (3, H, W) uint8 tensor."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # a quarter of the time of a strided copy
    return torch.from_numpy(planes)
