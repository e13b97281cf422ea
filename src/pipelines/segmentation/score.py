"""Scoring of a mask run on its held-out images at native size: views, threshold, ``oof.npz``.

Two passes: the first settles how many views and which threshold, the second counts everything,
each image with what the folds without it chose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.dataset import Loader
from src.data.masks import VoidReader
from src.data.sources.masks import MaskIndex
from src.engine.interrupt import Pause, catch_signals
from src.engine.predict import predict
from src.engine.runtime import Runtime
from src.files import atomic_write
from src.metrics.counts import SegmentationCounts
from src.metrics.segmentation import score_counts
from src.metrics.thresholds import (
    PERCENT,
    Choice,
    SweepCounts,
    ThresholdSweep,
    choose_views,
    foreground_share,
)
from src.models.convolutions import FOLDING_SIDE, fold_norms
from src.pipelines.segmentation.postprocess import count_cleaned, judge_cleaning
from src.runs import Done, Run
from src.script import counted
from src.tasks.segmentation import Segmentation, background_label
from src.views import first_views

BOUNDARY_PX = 2  # tolerance of the boundary F1


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of an index, and the loader that gives them in this order."""

    index: MaskIndex
    rows: np.ndarray
    loader: Loader

    def mask(self, place: int) -> np.ndarray:
        """Read the native mask of the ``place``-th row."""
        return VoidReader(self.index)(self.index.mask_path(int(self.rows[place])))


def score_held_out(
    model: nn.Module,
    task: Segmentation,
    held: HeldOut,
    runtime: Runtime,
    run: Run,
    *,
    max_views: int,
    cleaning: bool,
    about: Mapping[str, str],
) -> Done:
    """Score the held-out images at native size; write ``oof.npz`` and ``oof_counts.npz``.

    ``model`` has its best weights. Of 1 .. ``max_views`` (at most 5) views the number that scores
    best is kept; ``cleaning`` judges morphology and components by cross-validation (two classes);
    ``about`` are texts to keep in ``oof.npz``.

    Returns:
        ``views`` (a row each), ``tta_steps`` and ``threshold`` chosen, ``nested`` score of
        choosing them, ``scores`` and how they were counted, ``cleaning`` (None unless kept).
    """
    model = runtime.place(fold_norms(model, FOLDING_SIDE))
    names = held.index.table["id"].iloc[held.rows].to_numpy(dtype=str)
    groups = held.index.table["group"].iloc[held.rows].tolist()
    choice: Choice | None = None
    with catch_signals(runtime.agree) as pause:
        if max_views > 1 or len(class_thresholds(task)) > 1:  # else nothing is to be settled
            sweeps = sweep_views(model, task, held, runtime, max_views, pause)
            if runtime.is_main:
                save_sweeps(run, sweeps, task.statistic)
            choice = choose_views(sweeps, task.statistic, groups)
        chosen = choice.held if choice else [(1, 0.5)] * len(names)
        counts, probs, cleaned = count_held_out(
            model, task, held, runtime, chosen, cleaning=cleaning, pause=pause
        )
    if runtime.is_main:
        save_oof(run, names, groups, probs, task.class_names, about)
        counts.save(run.oof_counts)
    kept = None
    if cleaned:
        verdict = judge_cleaning(np.stack(cleaned), groups)
        print(verdict, flush=True)
        kept = asdict(verdict.cleaning) if verdict.kept else None
    scores = score_counts(counts, task.class_names)
    done = choice_record(task, choice, scores)
    how = f"{counted(len(names), 'held-out image')} at native size, {describe_counting(choice)}"
    if runtime.is_main:
        print_scores(task.class_names, scores, how, counts)
        if choice is not None and len(class_thresholds(task)) > 1:
            print(f"  {task.statistic} of {choice}", flush=True)
    return {**done, "cleaning": kept, "counted": how, "scores": scores}


def choice_record(task: Segmentation, choice: Choice | None, scores: Mapping[str, float]) -> Done:
    """Return what was chosen, as ``finished.json`` has it."""
    if choice is not None:
        return {"views": choice.table, "tta_steps": choice.views, "threshold": choice.threshold,
                "nested": choice.nested}  # fmt: skip
    score = scores.get(task.monitor, 0.0)
    row = dict.fromkeys(("score", "plain", "best", "nested"), score)
    row |= {"views": 1, "threshold": 0.5, "best_threshold": 0.5}
    return {"views": [row], "tta_steps": 1, "threshold": 0.5, "nested": score}


def describe_counting(choice: Choice | None) -> str:
    """Say with which views and thresholds images were counted."""
    if choice is None:
        return "1 view"
    views = " or ".join(map(str, sorted({views for views, _ in choice.held})))
    how = f"{views} view{'s' * (views != '1')}"
    cuts = sorted({threshold for _, threshold in choice.held})
    if cuts != [0.5]:
        how += f", threshold {' or '.join(f'{cut:.3g}' for cut in cuts)}"
    return f"{how}, chosen on the other folds" if views != "1" or cuts != [0.5] else how


def sweep_views(
    model: nn.Module, task: Segmentation, held: HeldOut, runtime: Runtime, views: int, pause: Pause
) -> list[SweepCounts]:
    """Count the mean of the first 1 .. ``views`` views at every threshold."""
    scorer = ViewsSweep(task, views)

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        for place, row in enumerate(batch["index"].tolist()):
            mask = held.mask(row)
            maps = (view[place, None] for view in outputs)
            for number, probs in enumerate(running_means(maps), 1):
                scorer.update(number, fit_size(probs[0], mask.shape[:2]), mask, row)

    predict(
        model, held.loader, task, runtime,
        num_rows=len(held.rows), write=write, views=first_views(views), pause=pause, label="views",
    )  # fmt: skip
    for part in scorer.parts:
        part.merge_states(runtime.gather(part.state()))
    return scorer.counts()


def count_held_out(
    model: nn.Module,
    task: Segmentation,
    held: HeldOut,
    runtime: Runtime,
    chosen: Sequence[tuple[int, float]],
    *,
    cleaning: bool,
    pause: Pause,
) -> tuple[SegmentationCounts, list[np.ndarray], list[np.ndarray]]:
    """Predict every image with its own ``chosen`` (number of views, threshold), and count.

    Return the counts; in the rows' order what :func:`true_probs` says of each image, and, with
    ``cleaning`` of two classes, :func:`count_cleaned`.
    """
    meter = task.full_meter(BOUNDARY_PX)
    own: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    names = held.index.table["id"].iloc[held.rows].tolist()

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        for number, place in enumerate(batch["index"].tolist()):
            mask = held.mask(place)
            num_views, threshold = chosen[place]
            probs = mean_probs([view[number, None] for view in outputs[:num_views]])[0]
            native = fit_size(probs, mask.shape[:2])
            labels = to_mask(native, threshold)
            meter.add(int(held.rows[place]), labels, mask)
            pixels = sample_pixels(names[place], mask, task.ignore_index)
            own[0].append(true_probs(native, mask, pixels))
            if cleaning and task.num_outputs == 1:
                own[1].append(count_cleaned(labels, mask, task.ignore_index))

    predict(
        model, held.loader, task, runtime, num_rows=len(held.rows), write=write,
        views=first_views(max(views for views, _ in chosen)), pause=pause, label="held out",
    )  # fmt: skip
    meter.merge_states(runtime.gather(meter.state()))
    probs, cleaned = ([one for part in runtime.gather(arrays) for one in part] for arrays in own)
    return meter.counts(), probs, cleaned


def save_oof(
    run: Run,
    names: np.ndarray,
    groups: Sequence[str],
    values: Sequence[np.ndarray],
    classes: Sequence[str],
    about: Mapping[str, str],
) -> None:
    """Write ``oof.npz``: the probability of the true class at sampled pixels of every image.

    That is all that blending needs, and a thousandth of the maps. An image of void alone has no
    pixel and counts as certain.
    """
    width = max(map(len, values))
    full = [v if len(v) == width else np.ones(width, np.float32) for v in values]
    arrays: dict[str, Any] = {"ids": names, "true_probs": np.stack(full).astype(np.float32)}
    arrays |= {"classes": np.array(classes), "groups": np.array(groups, dtype=str)}
    arrays |= {k: np.array(text) for k, text in about.items()}
    with atomic_write(run.oof) as file:
        np.savez(file, **arrays)


def print_scores(
    names: Sequence[str], scores: Mapping[str, float], how: str, counts: SegmentationCounts
) -> None:
    """Print the scores by their full names, the foreground's own first."""
    print(f"scores on {how}:")
    absent = ", ".join(np.array(names)[counts.target.sum(0) == 0])
    if absent:
        print(f"note: none of these images holds {absent}: no score says how it is found")
    if len(names) == 2:
        one = names[1]
        trivial = scores["trivial_pooled_mean_iou"]
        first = {name: scores.get(f"pooled_{name}/{one}", float("nan")) for name in OF_ONE}
        print(f"  {one} alone, pooled: " + " · ".join(f"{k} {v:.4f}" for k, v in first.items()))
        print(
            f"  mean IoU with background {scores['pooled_mean_iou']:.4f} "
            f"(all background scores {trivial:.4f})"
        )
    for name in REPORTED:
        if name in scores:
            print(f"  {name} {scores[name]:.4f}")


OF_ONE = ("iou", "precision", "recall", "dice")  # dice of pixels is their F1
REPORTED = (
    "pooled_mean_iou",
    "pooled_mean_accuracy",
    "pooled_pixel_accuracy",
    "pooled_mean_iou_with_void",
    "image_mean_iou",
    "image_mean_iou_foreground",
    "pooled_boundary_f1_foreground",
    "micro_protocol_iou",
    "trivial_pooled_mean_iou",
)


def class_thresholds(task: Segmentation) -> tuple[float, ...]:
    """Return the thresholds worth trying, rising.

    Of more classes than two only the micro track's score, which no false alarm in an absent class
    lowers, wants more foreground than the plain maximum gives: 0 to 6 nats in its favour.
    """
    if task.num_outputs == 1:
        return PERCENT
    if task.statistic != "micro_protocol_iou" or background_label(task.class_names) != 0:
        return (0.5,)
    return tuple(1 / (1 + math.exp(nats / 2)) for nats in range(12, -1, -1))


class ViewsSweep:
    """Count the mean of the first n views, for every n and threshold at once."""

    def __init__(self, task: Segmentation, num_views: int) -> None:
        self.task, cuts = task, class_thresholds(task)
        self.is_swept = len(cuts) > 1
        sweep = partial(ThresholdSweep, task.ignore_index, cuts, task.num_classes)
        self.parts: list[Any] = [
            sweep() if self.is_swept else task.full_meter() for _ in range(num_views)
        ]

    def update(self, num_views: int, probs: Tensor, mask: np.ndarray, row: int) -> None:
        """Count the mean probabilities (1 or K, H, W) of the first ``num_views`` views."""
        batch = {"mask": torch.from_numpy(mask)[None], "index": torch.tensor([row])}
        alone = self.is_swept and len(probs) == 1
        self.parts[num_views - 1].update(probs if alone else probs[None], batch)

    def counts(self) -> list[SweepCounts]:
        """Hand over the counts for each n, images ordered by row."""
        found = [part.counts() for part in self.parts]
        return found if self.is_swept else [self._at_maximum(counts) for counts in found]

    def _at_maximum(self, counts: SegmentationCounts) -> SweepCounts:
        shown = np.ones(self.task.num_classes, bool)
        if self.task.statistic == "micro_protocol_iou":
            shown = counts.foreground
        hits, predicted, target = (
            part[:, shown] for part in (counts.intersection, counts.predicted, counts.target)
        )
        union = predicted + target - hits
        return SweepCounts(np.array([0.5]), hits[:, None], union[:, None], target)


def save_sweeps(run: Run, sweeps: Sequence[SweepCounts], statistic: str) -> None:
    """Write ``oof_sweep.npz``: counts at every threshold, images in the order of ``oof.npz``."""
    arrays: dict[str, Any] = {"thresholds": sweeps[0].thresholds, "target": sweeps[0].target}
    arrays |= {name: np.stack([getattr(s, name) for s in sweeps]) for name in ("hits", "union")}
    with atomic_write(run.oof_sweep) as file:
        np.savez_compressed(file, statistic=np.array(statistic), **arrays)


def to_probs(logits: Tensor) -> Tensor:
    """Turn logits (B, 1 or K, H, W) into float32 probabilities of the same shape."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def running_means(outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the mean probabilities (B, 1 or K, H, W) of the first 1, 2, … views.

    ``outputs`` are the logits of each view, turned back already.
    """
    total: Tensor | None = None
    for number, logits in enumerate(outputs, 1):
        probs = to_probs(logits)
        total = probs if total is None else total.add_(probs)
        yield total if number == 1 else total / number


def mean_probs(outputs: Sequence[Tensor]) -> Tensor:
    """Average the probabilities of views, each turned back already: (B, 1 or K, H, W)."""
    return sum(map(to_probs, outputs[1:]), to_probs(outputs[0])) / len(outputs)


def fit_size(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (1 or K, h, w) to ``size`` bilinearly, antialiased where it shrinks."""
    if tuple(probs.shape[-2:]) == tuple(size):
        return probs
    shrinks = size[0] < probs.shape[-2] or size[1] < probs.shape[-1]
    return F.interpolate(probs[None], size=tuple(size), mode="bilinear", antialias=shrinks)[0]


def to_mask(probs: Tensor, threshold: float) -> np.ndarray:
    """Turn probabilities (1 or K, H, W) into labels (H, W) uint8.

    Of K classes the best but the first is taken where it holds ``threshold`` of what it and the
    first, the background, share; 0.5 is the plain maximum.
    """
    if len(probs) == 1:
        labels = probs[0] >= threshold
    elif threshold == 0.5:
        labels = probs.argmax(0)
    else:
        share, label = foreground_share(probs[None])
        assert label is not None
        labels = (label * (share >= threshold))[0]
    return labels.to(torch.uint8).cpu().numpy()


def true_probs(probs: Tensor, mask: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Return the probability of the true class at pixels ``flat`` (P,): float32 (P,).

    Of ``probs`` (1 or K, H, W) a single map is the foreground's; pixels ``flat`` are numbered row
    by row, none of them void.
    """
    labels = torch.from_numpy(mask.ravel()[flat].astype(np.int64))
    values = probs.cpu().flatten(1)[:, torch.from_numpy(flat)]
    if len(values) == 1:
        return torch.where(labels == 1, values[0], 1 - values[0]).numpy()
    return values.gather(0, labels[None])[0].numpy()


def sample_pixels(name: str, mask: np.ndarray, void: int, count: int = 1024) -> np.ndarray:
    """Draw ``count`` pixel numbers that are not void, the same ones for a name in every run."""
    known = np.flatnonzero(mask.ravel() != void)
    seed = int.from_bytes(name.encode()[-16:], "little")
    if not len(known):
        return known
    return known[np.random.default_rng(seed).integers(len(known), size=count)]
