"""Decoded images at a common size: uint8 pixels that depend on the files alone.

``source[row]`` is what augmentation starts from; ``source.shape`` is its shape where all rows share
one (only then can :mod:`src.data.cache` keep it), else None.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from src.data.decode import decode_image, decode_mask
from src.data.sources.masks import refuse_size
from src.files import is_of_the_system
from src.script import MachineError, UserError, say_system

CANONICAL_VERSION = 1  # raise it when the pixels below change: caches on disk are then rebuilt


class Source(Protocol):
    """Canonical pixels by row."""

    shape: tuple[int, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray: ...

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        ...


class ImageSource:
    """Images by row, (H, W, 3) uint8 RGB: squashed to one size, or each at its own.

    The paths, relative to ``root``, are kept in one flat array: a list of strings would be copied,
    page by page, into every forked loader process.
    """

    shape: tuple[int, ...] | None

    def __init__(self, root: Path | str, images: Iterable[str], size: int | tuple[int, int] | None):
        """Take paths relative to ``root``; ``size`` is (height, width), a side, or None."""
        self.root, self.images = str(root), pack(images)
        self.size = (size, size) if isinstance(size, int) else size
        self.shape = (*self.size, 3) if self.size else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        return os.path.join(self.root, os.fsdecode(self.images[row]))  # noqa: PTH118

    def __getitem__(self, row: int) -> np.ndarray:
        image = decode_image(self.name(row), short_side=max(self.size) if self.size else None)
        return resize_image(image, self.size) if self.size else image

    def fingerprint(self) -> str:
        """Hash what the pixels depend on: files (name, size, time), size and version."""
        names = (self.name(row) for row in range(len(self)))
        return fingerprint(names, f"image {self.shape}")


class MaskSource(ImageSource):
    """Images with their masks: ``source[row]`` is (H, W, 4) uint8, RGB and the class index."""

    def __init__(
        self,
        root: Path | str,
        images: Iterable[str],
        masks: Iterable[str],
        *,
        size: tuple[int, int] | None = None,
        read_mask: Callable[[str], np.ndarray] = decode_mask,
    ):
        """Take paths relative to ``root``.

        ``size`` (height, width) None keeps each at its native size; ``read_mask``, path → (H, W)
        class indices 0..255, must be picklable.
        """
        super().__init__(root, images, size)
        self.shape = (*size, 4) if size else None
        self.masks, self.read_mask = pack(masks), read_mask

    def mask_name(self, row: int) -> str:
        """Return the path of a row's mask."""
        return os.path.join(self.root, os.fsdecode(self.masks[row]))  # noqa: PTH118

    def __getitem__(self, row: int) -> np.ndarray:
        pixels = decode_image(self.name(row))
        mask = self.read_mask(self.mask_name(row))
        if mask.shape != pixels.shape[:2]:
            refuse_size(mask.shape, pixels.shape[:2], self.mask_name(row), self.name(row))
        if mask.dtype != np.uint8 and (mask.min() < 0 or mask.max() > 255):
            raise UserError(f"mask {self.mask_name(row)} has labels outside 0..255: renumber them")
        mask = mask.astype(np.uint8, copy=False)
        if self.size and mask.shape != self.size:
            pixels = resize_image(pixels, self.size)
            mask = cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return np.dstack([pixels, mask])

    def fingerprint(self) -> str:
        """Hash what the pixels depend on: files (name, size, time), size, reader, version."""
        rows = range(len(self))
        names = [*map(self.name, rows), *map(self.mask_name, rows)]
        return fingerprint(names, f"mask {self.shape} {describe_reader(self.read_mask)}")


def canonical_side(image_size: int) -> int:
    """Return the side training images are decoded to: 1.15 × the network's, a multiple of 8.

    Room for random crops, about as much as the customary 256 px leave for 224.
    """
    return max(8, round(1.15 * image_size / 8) * 8)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Squash (H, W, 3) uint8 to (height, width), bilinear with antialiasing, as Pillow does.

    torch's vectorised kernel takes a quarter of the time of OpenCV's INTER_AREA, which would cost
    as much as decoding; OpenCV's bilinear does not antialias.
    """
    if image.shape[:2] == tuple(size):
        return image
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # channels last: no copy, no unpack
    resized = F.interpolate(batch, size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].contiguous().numpy()


def read(source: Source, row: int) -> np.ndarray:
    """Read one row; whatever goes wrong, the message names the file."""
    try:
        return source[row]
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_of_the_system(error):
            # torch would raise it again without its number, from a loader process
            place = error.filename or source.name(row)
            raise MachineError(say_system(error, place)) from error
        if isinstance(error, MemoryError):
            raise
        raise RuntimeError(f"{source.name(row)}: {error}") from error


def pack(names: Iterable[str]) -> np.ndarray:
    """Put strings into one flat array of UTF-8 bytes."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def fingerprint(names: Iterable[str], salt: str) -> str:
    """Hash paths, sizes and modification times, so that a changed file is noticed.

    A file may be gone, for it may be quarantined; whoever reads it says so.
    """
    digest = hashlib.sha256(f"{CANONICAL_VERSION} {cv2.__version__} {salt}".encode())
    for name in names:  # annotation.json#17 is a part of annotation.json
        try:
            path = name if os.path.exists(name) else name.rpartition("#")[0]  # noqa: PTH110
            status = os.stat(path)  # noqa: PTH116
            mark = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError as error:
            if is_of_the_system(error):
                raise
            mark = "gone"
        digest.update(f"{name}\0{mark}\0".encode(errors="replace"))
    return digest.hexdigest()


def describe_reader(function: Callable) -> str:
    """Say what a reader's results depend on besides the file it is given."""
    if isinstance(function, partial):
        return f"{describe_reader(function.func)}{function.args}{sorted(function.keywords.items())}"
    described = getattr(function, "describe", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return described() if described else f"{function.__module__}.{name}"
