"""Tiny masks, and flags that make runs on them short."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

import train_lane
from benchmarks.tracks import draw_bars

TINY = [
    *("--device", "cpu", "--autotune", "off", "--precision", "fp32", "--ema_decay", "0"),
    *("--num_workers", "0", "--warmup_epochs", "0", "--resolution", "32x32"),
]
LANE = [
    *TINY,
    *("--config", "", "--arch", "unet", "--encoder", "tu-test_resnet", "--pretrained", "none"),
    *("--decoder_width", "32", "--batch_size", "4", "--lr", "2e-3", "--head_lr_mult", "1"),
]
FREE = [  # of train_micro.py
    *("--config", "", "--device", "cpu", "--protocol", "free", "--resolution", "32x32"),
    *("--epochs", "2", "--batch_size", "4", "--num_workers", "0", "--ema_share", "0"),
]


def draw(root: Path, split: str, names: str, *, masks: bool = True) -> None:
    """Draw dark strokes, the foreground, on noise."""
    rng = np.random.default_rng(len(names))
    (root / split / "images").mkdir(parents=True)
    (root / split / "masks").mkdir()
    for name in names:
        image = rng.integers(120, 200, (32, 32, 3), np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        left = int(rng.integers(2, 24))
        mask[:, left : left + 6] = 1
        image[mask == 1] = 10
        cv2.imwrite(str(root / split / "images" / f"{name}.jpg"), image)
        if masks:
            cv2.imwrite(str(root / split / "masks" / f"{name}.png"), mask)


def draw_lanes(root: Path) -> Path:
    """Draw bars, two classes, split as train, val and test, whose masks are withheld."""
    for split, names in (("train", "abcdefgh"), ("val", "ijk"), ("test", "lm")):
        draw_bars(root / split, names, 2, seed=len(names))
    for path in (root / "test" / "masks").iterdir():
        path.unlink()
    return root


def lane(out: Path, *argv: str) -> int:
    return train_lane.main([*LANE, "--output_dir", str(out), *argv])
