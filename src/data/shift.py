"""Train/test shift by adversarial validation on simple features of images.

A classifier that tells test from train images better than chance (AUC 0.5, cross-validated) proves
that they differ; the AUC of each feature alone says in what. The features are cheap: size, shape,
bytes a pixel, colour, contrast, sharpness. What they do not see, this does not find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from src.data.decode import read_size

FEATURES = (
    "width", "height", "aspect", "bytes a pixel", "red", "green", "blue", "saturation", "contrast",
    "sharpness", "brightness of the upper half less the lower", "border less centre",
)  # fmt: skip
SIDE = 64
MAX_ROWS = 4000  # of either side that the classifier sees
MIN_ROWS = 20


def measure_image(data: bytes, image: np.ndarray) -> np.ndarray:
    """Return the ``FEATURES`` of an image (H, W, 3) uint8 RGB whose file holds ``data``."""
    width, height, _ = read_size(data)
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small.mean(axis=2)
    middle, edge = slice(SIDE // 4, -SIDE // 4), np.ones((SIDE, SIDE), bool)
    edge[middle, middle] = False
    values = (
        width, height, width / height, len(data) / (width * height),
        *small.reshape(-1, 3).mean(axis=0), (small.max(axis=2) - small.min(axis=2)).mean(),
        grey.std(), np.log1p(cv2.Laplacian(grey, cv2.CV_32F).var()),
        grey[: SIDE // 2].mean() - grey[SIDE // 2 :].mean(), grey[edge].mean() - grey[~edge].mean(),
    )  # fmt: skip
    return np.array(values, np.float64)


@dataclass(frozen=True)
class ImageShift:
    """How well simple features tell test images from train images."""

    auc: float  # cross-validated, 0.5 = not at all
    low: float  # lower end of its 95 % bootstrap interval
    high: float  # upper end
    # (name, AUC alone, median in train, median in test), the most telling first
    features: tuple[tuple[str, float, float, float], ...]
    rows: np.ndarray  # positions in the features handed in that were looked at, (R,)
    likeness: np.ndarray  # (R,) how much the classifier takes each for a test image, in [0, 1]

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval excludes 0.5."""
        return self.low > 0.5


def find_shift(features: np.ndarray, is_test: np.ndarray, *, seed: int = 0) -> ImageShift | None:
    """Tell test from train images by their features; None where either is too few.

    ``features`` (N, F) are of readable images, ``is_test`` (N,) is bool.
    """
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(is_test == side) for side in (False, True)]
    if min(map(len, sides)) < MIN_ROWS:
        return None
    kept = [rng.permutation(rows)[:MAX_ROWS] for rows in sides]
    rows = np.sort(np.concatenate(kept))
    x, y = features[rows], is_test[rows]
    model = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    likeness = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
    resampled = [_resampled_auc(likeness, y, rng) for _ in range(200)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    alone = [
        (name, auc(x[:, f], y), float(np.median(x[~y, f])), float(np.median(x[y, f])))
        for f, name in enumerate(FEATURES)
    ]
    alone.sort(key=lambda row: -abs(row[1] - 0.5))
    return ImageShift(auc(likeness, y), float(low), float(high), tuple(alone), rows, likeness)


def auc(scores: Sequence[float] | np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve: P(a positive scores above a negative), ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


def _resampled_auc(scores: np.ndarray, positive: np.ndarray, rng: np.random.Generator) -> float:
    sides = [np.flatnonzero(positive == side) for side in (False, True)]
    drawn = np.concatenate([rng.choice(side, len(side)) for side in sides])
    return auc(scores[drawn], positive[drawn])
