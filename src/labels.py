"""Several labels an image, as text and as pairs: one row of two classes for each image and label.

A sigmoid of a logit z is the softmax of (0, z). So N images with K labels are N · K rows, image by
image, of the two classes absent and present; their mean log loss is the mean binary cross-entropy.
What pools, calibrates, weighs and cross-fits distributions over classes takes them as they are.

In tables the labels of an image are one text, joined by ``|``; "" is an image without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

STATES = ("absent", "present")
SEPARATOR = "|"


def to_hot(targets: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return (N, K) int64, 1 where an image has the label, of N joined texts.

    Names that are none of the K ``labels`` are passed over.
    """
    place = {name: k for k, name in enumerate(labels)}
    hot = np.zeros((len(targets), len(labels)), np.int64)
    for row, text in enumerate(targets):
        for name in text.split(SEPARATOR):
            if name in place:
                hot[row, place[name]] = 1
    return hot


class PairedLogits:
    """Logits (V, N, K) of labels, read as those of pairs, (V, N · K, 2); nothing is copied."""

    def __init__(self, logits: Any) -> None:
        """Take an array or memory map."""
        self.logits = logits

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, N · K, 2)."""
        views, rows, labels = self.logits.shape
        return views, rows * labels, 2

    def __getitem__(self, key: tuple[int, Any]) -> np.ndarray:
        """Return (R, 2) float32 of (view, rows), rows a slice or numbers (R,)."""
        view, rows = key
        num_labels = self.logits.shape[2]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[1]))
        present = np.asarray(
            self.logits[view][rows // num_labels, rows % num_labels], dtype=np.float32
        )
        return np.stack([np.zeros_like(present), present], axis=-1)
