"""Rasterisation of COCO polygons and run lengths.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from src.files import Json
from src.script import UserError

Segmentation = list[list[float]] | Json  # polygons, or run lengths


def rasterise(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """Turn a COCO segmentation (polygons, or plain or compressed run lengths) into bool (H, W)."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return _fill_runs(_unpack(counts) if isinstance(counts, str) else counts, height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= fill_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    return mask


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill a polygon by the even-odd rule: a pixel belongs if its centre lies inside.

    Args:
        points: (P, 2) of x, y; pixel (0, 0) covers 0..1 in both.
        height: rows of the result.
        width: columns of the result.

    Returns:
        bool (H, W).
    """
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    # Rows whose centre line an edge crosses: first <= row < last (an edge along a row has none).
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    num_rows = last - first
    edge = np.repeat(np.arange(len(points)), num_rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows) + first[edge]
    slope = (x1 - x0)[edge] / np.where(y1 == y0, 1, y1 - y0)[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * slope
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), np.int64)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def _fill_runs(counts: Iterable[int], height: int, width: int) -> np.ndarray:
    counts = list(counts)  # summed as Python's numbers, which do not wrap
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise UserError(f"COCO run lengths do not add up to {width}x{height} pixels: re-export")
    runs = np.asarray(counts, np.int64)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack(text: str) -> list[int]:
    """Unpack COCO's compressed counts: 5 bits a character.

    From the fourth on a count is stored as its difference from the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:  # negative
            value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
