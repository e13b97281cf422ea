"""Rows of a mask index in, a dataset of (image, mask) samples of one size out, behind a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data.cache import open_cache
from src.data.canonical import MaskSource
from src.data.dataset import MaskDataset
from src.data.mask_split import VoidReader
from src.data.sources.masks import MaskIndex
from src.data.transforms import Transform
from src.script import UserError

ROTATED = range(5, 9)  # EXIF orientations that exchange width and height
_EXIF_ORIENTATION = 274


def mask_dataset(
    index: MaskIndex,
    rows: Sequence[int] | np.ndarray,
    transform: Transform,
    *,
    size: tuple[int, int] | None,
    labelled: bool = True,
    seed: int = 0,
    cache: str = "auto",
    folder: Path | None = None,
    num_workers: int = 0,
    num_processes: int = 1,
) -> MaskDataset:
    """Build the dataset of ``rows``, renumbered from 0.

    Args:
        index: the data set.
        rows: of its table.
        transform: of image and mask.
        size: (height, width) everything is resized to first; None = native sizes, uncached.
        labelled: whether masks are read.
        seed: of the augmentation.
        cache: none, ram, disk or auto.
        folder: where a cache on disk lies.
        num_workers: loader processes.
        num_processes: training processes.
    """
    table = index.table
    source = MaskSource(
        index.root,
        table["image"].tolist(),
        table["target"].tolist() if labelled else None,
        size=size,
        read_mask=VoidReader(index),
    )
    pixels = open_cache(
        source,
        cache,
        rows=rows,
        folder=folder,
        num_workers=num_workers,
        num_processes=num_processes,
    )
    return MaskDataset(pixels, transform, seed=seed)


def image_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of an image as it will be decoded, EXIF rotation applied.

    Raises:
        UserError: no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in ROTATED
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): restore it") from error
    return (width, height) if turned else (height, width)


def native_sizes(index: MaskIndex) -> np.ndarray:
    """Read the (height, width) of every image from its header: (N, 2) int64."""
    return np.array([image_size(index.image_path(row)) for row in range(len(index))], np.int64)


def class_frequency(
    index: MaskIndex, rows: Sequence[int] | np.ndarray, num_masks: int = 64
) -> np.ndarray:
    """Measure the share of pixels of each class (K,) on an even spread of ``num_masks`` rows."""
    pixels, _ = count_classes(index, np.asarray(rows)[:: max(1, len(rows) // num_masks)])
    return pixels / max(1, pixels.sum())


def count_classes(
    index: MaskIndex, rows: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of each class, and the images that hold it: two arrays (K,) int64."""
    read = VoidReader(index)
    pixels = np.zeros(index.num_classes, np.int64)
    images = np.zeros(index.num_classes, np.int64)
    for row in np.asarray(rows):
        mask = read(str(index.root / str(index.table["target"].iat[int(row)])))
        found = np.bincount(mask.ravel(), minlength=256)[: index.num_classes]
        pixels += found
        images += found > 0
    return pixels, images
