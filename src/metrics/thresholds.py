"""Foreground threshold: sweep over validation images, one-standard-error choice, nested score.

The threshold of the highest score on a few dozen images is mostly their noise. Chosen instead is
the one nearest 0.5 (the plain maximum) whose score lags behind the best by no more than one
standard error of that difference, over paired resamplings of the images (Breiman et al. 1984,
"Classification and Regression Trees", the 1-SE rule). What the choice is worth is measured on
images that had no part in it: each fold is scored at what the other folds choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.metrics.bootstrap import assign_parts, draw_weights
from src.metrics.counts import PROTOCOL_EPSILON
from src.script import counted

PERCENT = tuple(percent / 100 for percent in range(100))
NUM_RESAMPLES = 200


class ThresholdSweep:
    """Count every threshold in one pass, from per-image histograms.

    Args:
        ignore_index: label of void, None where there is none; label 0 is the background.
        thresholds: (T,) rising, in [0, 1).
        num_classes: K; two have one map, the foreground's.
    """

    def __init__(
        self,
        ignore_index: int | None = 255,
        thresholds: Sequence[float] = PERCENT,
        num_classes: int = 2,
    ) -> None:
        self.ignore_index = ignore_index
        self.thresholds = thresholds
        self.num_foreground = num_classes - 1
        self._edges = torch.tensor(thresholds, dtype=torch.float32)
        self._parts: list[tuple[int, np.ndarray, np.ndarray]] = []

    def update(self, probs: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Count a batch.

        Args:
            probs: of the foreground (B, H, W), or of all classes (B, K, H, W), in [0, 1].
            batch: masks (B, H, W) under "mask" and rows (B,) under "index".
        """
        masks, index = batch["mask"].cpu(), torch.as_tensor(batch["index"]).tolist()
        share, label = (x if x is None else x.cpu() for x in foreground_share(probs.float()))
        assert share is not None
        # how many thresholds a pixel passes; compared in float32, as masks are made
        passed = torch.bucketize(share.contiguous(), self._edges, right=True)
        for place, row in enumerate(index):
            one = None if label is None else label[place].numpy()
            self._parts.append(
                (row, *self._count(passed[place].numpy(), masks[place].numpy(), one))
            )

    def _count(
        self, passed: np.ndarray, mask: np.ndarray, label: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the histogram (2, C, T + 1) of false and true pixels, and the true ones (C,)."""
        C, bins = self.num_foreground, len(self.thresholds) + 1
        if self.ignore_index is not None and (mask == self.ignore_index).any():
            valid = mask != self.ignore_index
            passed, mask = passed[valid], mask[valid]
            label = label if label is None else label[valid]
        code = (mask == (1 if label is None else label)) * (C * bins) + passed
        if label is not None:
            code += (label - 1) * bins
        table = np.bincount(code.ravel(), minlength=2 * C * bins).reshape(2, C, bins)
        return table, np.bincount(mask.ravel(), minlength=C + 1)[1 : C + 1]

    def state(self) -> list[Any]:
        """Return what was counted so far, for another process."""
        return self._parts

    def merge_states(self, states: Sequence[list[Any]]) -> None:
        """Replace the state by those of all processes, by rank."""
        self._parts = [counts for state in states for counts in state]

    def counts(self) -> SweepCounts:
        """Hand over the counts of all images so far, ordered by index."""
        rows = sorted(self._parts, key=lambda part: part[0])
        tables = np.stack([table for _, table, _ in rows])  # (N, 2, C, T + 1)
        above = tables[..., :0:-1].cumsum(-1)[..., ::-1].swapaxes(2, 3)  # passed t: (N, 2, T, C)
        target = np.stack([true for _, _, true in rows])
        union = above[:, 0] + target[:, None]
        return SweepCounts(np.array(self.thresholds), above[:, 1], union, target)

    def best(self, statistic: str = "pooled_iou") -> tuple[float, float]:
        """Find (threshold, its score); of equals the one nearest 0.5."""
        counts = self.counts()
        scores, place = counts.best(statistic)
        return float(counts.thresholds[place]), float(scores[place])


def foreground_share(probs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a threshold is compared with (B, H, W), and the best foreground label or None.

    Args:
        probs: of the foreground (B, H, W) alone, handed back; or (B, K, H, W): of what the
            background, class 0, and the best other class hold, the share of the latter.
    """
    if probs.ndim == 3:
        return probs, None
    best, label = probs[:, 1:].max(1)
    return best / (best + probs[:, 0]), label + 1


@dataclass(frozen=True)
class SweepCounts:
    """Pixels of N images at T thresholds, for each of C classes; int64."""

    thresholds: np.ndarray  # (T,) rising
    hits: np.ndarray  # (N, T, C) true and predicted
    union: np.ndarray  # (N, T, C) true or predicted
    target: np.ndarray  # (N, C) true

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> SweepCounts:
        """Keep some images."""
        return replace(self, hits=self.hits[rows], union=self.union[rows], target=self.target[rows])

    @staticmethod
    def join(parts: Sequence[SweepCounts]) -> SweepCounts:
        """Put the images of several nets, swept at the same thresholds, one after the other."""
        rows = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("hits", "union", "target")
        }
        return replace(parts[0], **rows)

    def scores(self, statistic: str, weights: np.ndarray | None = None) -> np.ndarray:
        """Score each threshold for each weighting of the images: (R, T).

        Args:
            statistic: "pooled_iou" (the images' pixels together), or "micro_protocol_iou" (mean
                over the images that hold the class); then a mean over the classes that have one.
            weights: (R, N); None = 1 each, R = 1.
        """
        assert statistic in {"pooled_iou", "micro_protocol_iou"}, statistic
        weights = np.ones((1, len(self))) if weights is None else weights
        top: np.ndarray = self.hits.astype(np.float64)
        bottom: np.ndarray = self.union
        if statistic == "micro_protocol_iou":
            bottom = np.broadcast_to(self.target[:, None] > 0, top.shape)
            top = bottom * top / (self.union + PROTOCOL_EPSILON)
        over, under = (
            (weights @ part.reshape(len(self), -1)).reshape(len(weights), *part.shape[1:])
            for part in (top, bottom.astype(np.float64))
        )
        known = under > 0
        value = np.divide(over, under, out=np.zeros_like(over), where=known)
        return value.sum(-1) / np.maximum(known.sum(-1), 1)

    def nearest(self, allowed: np.ndarray) -> int:
        """Return the place of the threshold nearest 0.5 among those that are ``allowed`` (T,)."""
        away = np.where(allowed, np.abs(self.thresholds - 0.5), np.inf)
        return int(away.argmin())

    def best(self, statistic: str) -> tuple[np.ndarray, int]:
        """Return the scores (T,) and the place of the highest; of equals the one nearest 0.5."""
        scores = self.scores(statistic)[0]
        return scores, self.nearest(scores >= scores.max() - 1e-12)

    def choose(self, statistic: str, groups: Sequence[str] | np.ndarray) -> int:
        """Return the place of the threshold nearest 0.5 within one standard error of the best.

        One image or group has no standard error and chooses nothing: 0.5. Images of one of the
        ``groups`` (N,) are one piece of evidence, "" alone; ``statistic`` is that of
        :meth:`scores`.
        """
        plain = self.nearest(np.ones(len(self.thresholds), bool))
        if not len(self):
            return plain
        weights, num_units = draw_weights(len(self), groups, num_resamples=NUM_RESAMPLES)
        if num_units == 1:
            return plain
        scores, best = self.best(statistic)
        resampled = self.scores(statistic, weights)
        # of n images resampled, the spread is too small by (n − 1) / n of its square
        error = (resampled[:, best, None] - resampled).std(0)
        error *= math.sqrt(num_units / (num_units - 1))
        return self.nearest(scores[best] - scores <= error)


Candidate = tuple[int, int]  # number of views, place of the threshold


@dataclass(frozen=True)
class Choice:
    """Views and threshold chosen on all images, and by each fold's others for its own images."""

    # a row for each number of views: ``views``, ``threshold`` chosen, ``score`` there,
    # ``plain`` at 0.5, ``best`` of all thresholds and ``best_threshold`` on the same images,
    # ``nested``: each fold at the threshold that the other folds choose
    table: list[dict[str, float]]
    views: int  # number of views chosen
    threshold: float  # chosen for them
    nested: float  # score of choosing both without the images that are scored
    # (N,) what the folds without an image chose for it: (views, threshold)
    held: list[tuple[int, float]]

    def __str__(self) -> str:
        row = self.table[self.views - 1]
        best, score, nested = (row[name] - row["plain"] for name in ("best", "score", "nested"))
        text = (
            f"{counted(self.views, 'view')}: {row['plain']:.4f} at threshold 0.5; "
            f"{nested:+.4f} on held-out folds at what the others choose, {score:+.4f} at "
            f"{self.threshold:.3g}, chosen on all"
        )
        if row["best_threshold"] == self.threshold:
            return text
        return f"{text}; {best:+.4f} at {row['best_threshold']:.3g} is within its own noise"


def choose_views(sweeps: Sequence[SweepCounts], statistic: str, groups: Sequence[str]) -> Choice:
    """Choose the number of views and the threshold, and score the choosing itself.

    ``sweeps`` are of the first 1, 2, … views, over the same images. Images of one of the ``groups``
    (N,) stay together, "" alone; ``statistic`` is that of :meth:`SweepCounts.scores`.
    """
    num_images = len(sweeps[0])
    names = np.array([group or f"\0{row}" for row, group in enumerate(groups)])
    part = assign_parts(names)
    held = np.zeros((num_images, 2), np.int64)
    nested = np.zeros((len(sweeps), num_images), np.int64)  # the threshold, views given
    for number in np.unique(part):
        inside = part == number
        rows = np.flatnonzero(~inside)
        found = _choose([sweep.take(rows) for sweep in sweeps], statistic, names[rows])
        held[inside] = found[0]
        nested[:, inside] = np.array(found[1])[:, None]
    (view, place), places = _choose(sweeps, statistic, names)
    table = []
    for number, (sweep, chosen, own) in enumerate(zip(sweeps, places, nested, strict=True), 1):
        scores, best = sweep.best(statistic)
        everywhere = np.ones(len(scores), bool)
        table.append({
            "views": number, "score": float(scores[chosen]),
            "threshold": float(sweep.thresholds[chosen]),
            "plain": float(scores[sweep.nearest(everywhere)]), "best": float(scores[best]),
            "best_threshold": float(sweep.thresholds[best]),
            "nested": score_places([sweep], statistic, np.stack([np.zeros_like(own), own], 1)),
        })  # fmt: skip
    thresholds = sweeps[0].thresholds
    return Choice(
        table, view + 1, float(thresholds[place]), score_places(sweeps, statistic, held),
        [(int(v) + 1, float(thresholds[t])) for v, t in held],
    )  # fmt: skip


def score_places(sweeps: Sequence[SweepCounts], statistic: str, places: np.ndarray) -> float:
    """Score images each at its own (views − 1, place of the threshold): places (N, 2)."""
    rows = np.arange(len(places))
    hits = np.stack([sweep.hits for sweep in sweeps])[places[:, 0], rows, places[:, 1]]
    union = np.stack([sweep.union for sweep in sweeps])[places[:, 0], rows, places[:, 1]]
    own = SweepCounts(np.array([0.5]), hits[:, None], union[:, None], sweeps[0].target)
    return float(own.scores(statistic)[0, 0])


def _choose(
    sweeps: Sequence[SweepCounts], statistic: str, groups: np.ndarray
) -> tuple[Candidate, list[int]]:
    """Return the chosen (views − 1, place), and the place chosen for each number of views."""
    places = [sweep.choose(statistic, groups) for sweep in sweeps]
    if not len(sweeps[0]):
        return (0, places[0]), places
    scores = [sweep.scores(statistic)[0, t] for sweep, t in zip(sweeps, places, strict=True)]
    view = int(np.argmax(scores))
    return (view, places[view]), places
