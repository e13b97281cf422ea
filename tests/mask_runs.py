"""Tiny images with masks, and flags that make runs on them short."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

TINY = [
    *("--device", "cpu", "--autotune", "off", "--precision", "fp32", "--ema_decay", "0"),
    *("--num_workers", "0", "--warmup_epochs", "0", "--resolution", "32x32"),
]


def draw(root: Path, split: str, names: str, num_classes: int, seed: int) -> None:
    """Bright vertical bars are class 1; with more classes the top third is class 2."""
    rng = np.random.default_rng(seed)
    for name in names:
        image = rng.integers(0, 60, (40, 48, 3), np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        left = int(rng.integers(4, 36))
        mask[:, left : left + 8] = 1
        image[mask == 1] += 150
        if num_classes > 2:
            mask[:12], image[:12, :, 0] = 2, 255
        for kind, pixels in (("images", image), ("masks", mask)):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / split / kind / f"{name}.png"), pixels)
