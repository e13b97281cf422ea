"""Pinhole camera over a flat road: where each pixel looks on the ground, and smooth noise.

Arrays are (H, W); lengths on the ground are metres, lengths in the image pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SKY = 1e4  # metres: "ahead" of a pixel above the horizon


@dataclass(frozen=True)
class Ground:
    """Where each pixel looks.

    Attributes:
        X: (H, W) metres to the right; 0 above the horizon.
        Z: (H, W) metres ahead; SKY above the horizon.
        metres: (H, W) width of a pixel on the ground.
        right: (H, W) pixels to the right of the camera's axis, along the horizon.
        down: (H, W) pixels below the horizon.
        focal: focal length in pixels.
        height: of the camera over the road, metres.
    """

    X: np.ndarray
    Z: np.ndarray
    metres: np.ndarray
    right: np.ndarray
    down: np.ndarray
    focal: float
    height: float


def look(
    rng: np.random.Generator, size: tuple[int, int], roll: float = 0.0, nod: float = 0.0
) -> Ground:
    """Mount the camera: its height, pitch and focal length vary.

    Args:
        rng: of the scene.
        size: (H, W).
        roll: about the camera's axis, radians; positive lowers the horizon's right end.
        nod: by which the horizon is lower, as a share of H.
    """
    height, width = size
    focal = width * rng.uniform(0.8, 1.2)
    horizon = height * (rng.uniform(0.3, 0.45) + nod)
    above = rng.uniform(1.2, 1.8)
    y = np.arange(height)[:, None] + 0.5 - horizon
    x = np.arange(width)[None] + 0.5 - width * rng.uniform(0.42, 0.58)
    down = y * np.cos(roll) - x * np.sin(roll)
    right = y * np.sin(roll) + x * np.cos(roll)
    Z = np.where(down > 0, focal * above / np.maximum(down, 1e-3), SKY)
    metres = (np.where(Z < SKY, Z, 0) / focal).astype(np.float32)
    X = (right * metres).astype(np.float32)
    return Ground(X, Z.astype(np.float32), metres, right, down, focal, above)


def cloud(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Draw smooth noise in 0..1, (H, W)."""
    coarse = rng.random((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def on_ground(tile: np.ndarray, ground: Ground, travelled: float, side: float) -> np.ndarray:
    """Lay a square tile (n, n) float32 of ``side`` metres over the ground, repeated: (H, W)."""
    scale = len(tile) / side
    column = np.mod(ground.X * scale, len(tile)).astype(np.float32)
    row = np.mod((np.minimum(ground.Z, 200) + travelled) * scale, len(tile)).astype(np.float32)
    return cv2.remap(tile, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
