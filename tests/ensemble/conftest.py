"""Made-up OOF predictions of known quality, written as a training run writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from src.ensemble.oof import FoldTable
from src.ensemble.predictions import save_oof
from src.views import view_names


@dataclass
class World:
    """Rows with known classes, in folds, and a way to predict them."""

    root: Path
    targets: np.ndarray
    folds: np.ndarray
    classes: tuple[str, ...]
    rng: np.random.Generator

    @property
    def ids(self) -> np.ndarray:
        return np.array([f"{row:04d}" for row in range(len(self.targets))])

    @property
    def table(self) -> FoldTable:
        names = np.array(self.classes)[self.targets]
        return FoldTable(self.ids, names, self.folds, "f" * 16)

    def logits(self, *, signal: float = 3.0, scale: float = 1.0, views: int = 2) -> np.ndarray:
        """Return (V, N, K): the true class is ahead by ``signal`` ± 1; later views are noisier."""
        shape = (views, len(self.targets), len(self.classes))
        noise = self.rng.standard_normal(shape) * (1 + 0.5 * np.arange(views))[:, None, None]
        noise += self.rng.standard_normal(shape[1:])  # errors that the views share
        noise[:, np.arange(len(self.targets)), self.targets] += signal
        return noise * scale

    def save(self, model: str, logits: np.ndarray, **changes: object) -> None:
        """Write ``logits`` (V, N, K) as the OOF files of all folds."""
        for fold in np.unique(self.folds):
            self.save_fold(model, int(fold), logits, **changes)

    def save_fold(self, model: str, number: int, logits: np.ndarray, **changes: object) -> None:
        rows = self.rng.permutation(np.flatnonzero(self.folds == number))
        content = {
            "logits": logits[:, rows],
            "ids": self.ids[rows],
            "targets": self.targets[rows],
            "views": view_names(len(logits)),
            "classes": self.classes,
            "fold": str(number),
            "config_hash": f"hash of {model}",
            "folds_hash": "f" * 16,
        }
        save_oof(self.root / model / f"fold{number}" / "oof.npz", **(content | changes))


@pytest.fixture
def make_world(tmp_path: Path):
    def make(num_rows: int = 300, num_classes: int = 4, num_folds: int = 3, seed: int = 0) -> World:
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, num_classes, num_rows)
        folds = rng.permutation(np.arange(num_rows) % num_folds)
        classes = tuple(f"class_{k}_가" for k in range(num_classes))
        return World(tmp_path / "output", targets, folds, classes, rng)

    return make
