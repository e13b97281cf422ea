"""Inference of one trained fold: test logits of every view, kept in the fold's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from src.classes import PairedLogits
from src.config import InferConfig
from src.data.cache import open_cache
from src.data.canonical import ImageSource, Source
from src.data.dataset import EpochSampler, ImageDataset, Loader, default_num_workers, make_loader
from src.data.folds import file_marks
from src.data.index import Index
from src.data.transforms import eval_transform
from src.engine.interrupt import catch_signals
from src.engine.predict import default_batch_size, predict_named_views
from src.engine.runtime import Runtime, start_runtime
from src.engine.weights import load_weights
from src.ensemble.pool import Blend
from src.ensemble.predictions import (
    TestRun,
    atomic_array,
    has_test_run,
    hash_ids,
    open_test_run,
    save_test_info,
)
from src.ensemble.weights import Weights, needed_views, used_models
from src.files import refuse_shape
from src.models.classifier import build_classifier
from src.models.convolutions import fold_norms
from src.pipelines.run_folder import refuse_copy, refuse_lost
from src.runs import REPAIR, Output, Run, read_config, read_done, training_mark
from src.script import UserError
from src.tasks.classification import Classification
from src.views import view_names


class DecodedImages:
    """Images to predict, decoded once a size for all networks, where memory allows keeping them."""

    def __init__(self, root: Path, images: Sequence[str], num_workers: int = 0) -> None:
        """Take ``images``, paths relative to ``root``; nothing is opened yet."""
        self.root, self.images, self.num_workers = root, list(images), num_workers
        self._sources: dict[int, Source] = {}

    def __len__(self) -> int:
        return len(self.images)

    def at(self, side: int) -> Source:
        """Return the source of (side, side, 3) uint8 pixels."""
        if side not in self._sources:
            source = ImageSource(self.root, self.images, side)
            self._sources[side] = open_cache(source, "auto", num_workers=self.num_workers)
        return self._sources[side]


@dataclass(frozen=True)
class TrainedFold:
    """A finished fold's network on its device, and what it needs to predict."""

    run: Run
    model: nn.Module  # with norms folded into convolutions, placed on the device
    classes: tuple[str, ...]  # K names
    image_size: int  # side of the square it sees, px
    runtime: Runtime  # device and precision
    batch_size: int  # images at once; 0 = by resolution
    num_workers: int
    several: bool = False  # whether an image may have several of the classes

    def predict(
        self,
        images: DecodedImages,
        views: Sequence[str],
        *,
        out: npt.NDArray[np.floating[Any]] | None = None,
        threshold: float | None = None,
    ) -> npt.NDArray[np.floating[Any]]:
        """Return logits (V, N, K) of the V views, float16 or of the type of ``out``.

        Args:
            images: N images.
            views: names of the views, the upright one first.
            out: where to write them; None = a new array.
            threshold: from which confidence of the first view (largest softmax probability) the
                other views need not be computed and repeat its logits; None = compute all.
        """
        if out is None:
            out = np.zeros((len(views), len(images), len(self.classes)), np.float16)

        def loader_at(side: int) -> Loader:
            batch_size = self.batch_size or default_batch_size(side, self.runtime.device)
            return make_loader(
                ImageDataset(images.at(side), None, eval_transform(side)),
                EpochSampler(len(images), batch_size),
                num_workers=self.num_workers if len(images) > batch_size else 0,
                device_type=self.runtime.device.type,
            )

        with catch_signals() as pause:
            task = Classification(len(self.classes), lambda logits, target: logits.sum())
            is_unsure = None if threshold is None else unsure_below(threshold)
            predict_named_views(
                self.model, task, self.runtime, views, self.image_size, loader_at, out=out,
                is_unsure=is_unsure, pause=pause, label=str(self.run.folder),
            )  # fmt: skip
        return out

    def as_test_run(
        self,
        images: DecodedImages,
        views: Sequence[str],
        dtype: type[np.floating[Any]] | None = None,
    ) -> TestRun:
        """Return the logits of images as the blend takes them, float16 unless ``dtype`` says so."""
        shape = (len(views), len(images), len(self.classes))
        logits: Any = self.predict(images, views, out=np.zeros(shape, dtype or np.float16))
        logits = PairedLogits(logits) if self.several else logits
        return TestRun(self.run.folder, logits, tuple(views), self.classes)


RESOLVED = {"timm_id": str, "classes": list, "image_size": int}


def load_fold(run: Run, config: InferConfig) -> TrainedFold:
    """Build the network of a finished fold with its best weights.

    Raises:
        UserError: missing, damaged, or weights of another network.
    """
    saved = read_config(run)
    options, resolved = saved["options"], saved["resolved"]
    if "columns" in resolved:
        raise UserError(
            f"{run.folder}: made of columns of tables, and has no network; scripts/"
            "train_tabular.py, run again, writes what it predicts of the test images"
        )
    refuse_lost(run, read_done(run), run.best, run.config)
    refuse_shape(run.config, resolved, RESOLVED, REPAIR)
    refuse_shape(run.config, options, {"pool": str, "gem_p": (float, int)}, REPAIR)
    runtime = start_runtime(config.device, config.precision)
    if config.precision == "auto":
        runtime = runtime.as_recorded(saved["runtime"])
    classes, size = tuple(resolved["classes"]), resolved["image_size"]
    model = build_classifier(
        resolved["timm_id"], len(classes), image_size=size, pool=options["pool"],
        gem_p=options["gem_p"],
    )  # fmt: skip
    try:
        model.load_state_dict(load_weights(run.best))
    except RuntimeError:
        raise UserError(f"{run.best}: weights of another network; {REPAIR}") from None
    workers = config.num_workers
    workers = default_num_workers(runtime.device.type) if workers < 0 else workers
    return TrainedFold(
        run, runtime.place(fold_norms(model, size)), classes, size, runtime,
        config.infer_batch_size, workers, bool(resolved.get("several")),
    )  # fmt: skip


def infer_models(
    config: InferConfig, output: Output, weights: Weights, blend: Blend, index: Index
) -> dict[str, list[TestRun]]:
    """Return the test logits of every model and fold, inferring those that are not there yet."""
    ids_hash = hash_images(index)
    # -1, which is settled by device, may come to some processes: abs() lets the cache be shared
    images = DecodedImages(index.root, index.table["image"].tolist(), abs(config.num_workers))
    threshold = weights.adaptive_threshold if config.tta_adaptive else None
    runs: dict[str, list[TestRun]] = {}
    for model in used_models(blend):
        views = needed_views(blend, model, view_names())
        for run in blended_runs(config, output, model, weights):
            if not has_logits(run, ids_hash, views, threshold):
                with run.hold(wait=True):
                    # not there after the wait, either: whoever held it had other things to do
                    if not has_logits(run, ids_hash, views, threshold):
                        infer_fold(config, run, index, views, threshold, images)
            opened = open_test_run(
                run.folder, num_rows=len(index.table), ids_hash=ids_hash,
                classes=weights.predicted, views=views,
            )  # fmt: skip
            if weights.labels:
                opened = replace(opened, logits=PairedLogits(opened.logits))
            runs.setdefault(model, []).append(opened)
    return runs


def has_logits(
    run: Run, ids_hash: str, views: Sequence[str], threshold: float | None = None
) -> bool:
    """Tell whether a finished fold has whole test logits of these images and views."""
    trained = training_mark(read_done(run))
    return has_test_run(
        run.folder, ids_hash=ids_hash, trained=trained, views=views, threshold=threshold
    )


def infer_fold(
    config: InferConfig,
    run: Run,
    index: Index,
    views: Sequence[str],
    threshold: float | None,
    images: DecodedImages | None = None,
) -> None:
    """Write ``test_logits.npy`` and ``test.json`` of one fold of one model.

    The upright view is the first of ``views``; ``threshold`` is that of
    :meth:`TrainedFold.predict`. ``images`` are those of ``index``, shared by the folds of one size;
    None = decoded here.
    """
    fold = load_fold(run, config)
    images = images or DecodedImages(index.root, index.table["image"].tolist(), fold.num_workers)
    with write_test_logits(run, index, views, fold.classes, threshold) as logits:
        fold.predict(images, views, out=logits, threshold=threshold)


@contextmanager
def write_test_logits(
    run: Run,
    index: Index,
    views: Sequence[str],
    classes: Sequence[str],
    threshold: float | None = None,
) -> Iterator[np.ndarray]:
    """Open ``test_logits.npy``, float16 (V, N, K), to be filled; then write ``test.json``."""
    done = read_done(run)
    run.test_info.unlink(missing_ok=True)  # it must not declare other logits than its own whole
    shape = (len(views), len(index.table), len(classes))
    with atomic_array(run.test_logits, shape, np.float16) as logits:
        yield logits
    save_test_info(
        run.test_info,
        logits=np.load(run.test_logits, mmap_mode="r", allow_pickle=False),
        ids_hash=hash_images(index),
        views=views,
        classes=classes,
        trained=training_mark(done),
        threshold=threshold,
    )


def blended_runs(config: InferConfig, output: Output, model: str, weights: Weights) -> list[Run]:
    """Return the finished folds of a model, all trained as ``weights.json`` knows them.

    Raises:
        UserError: none, one that is lost (unless ``allow_missing_folds``), another training, or a
            copy of another fold.
    """
    runs = output.finished_runs(model)
    if not runs:
        raise UserError(
            f"{output.weights} gives {model} weight, but {output.root / model} has no finished "
            f"fold; train it, leave it out with --models, or run optimize_weights.py again"
        )
    fitted = weights.config_hashes.get(model, {})
    gone = sorted(set(fitted) - {run.folder.name.removeprefix("fold") for run in runs})
    if gone and not config.allow_missing_folds:
        raise UserError(
            f"{output.root / model}: fold {', '.join(gone)} of weights.json has no finished.json: "
            "run its training command again, or predict without it by --allow_missing_folds"
        )
    known = set(fitted.values())
    for run in runs:
        done = read_done(run)
        refuse_copy(run, done)
        split = done.get("split_hash", weights.folds_hash)
        if done["config_hash"] not in known or split != weights.folds_hash:
            raise UserError(
                f"{run.folder} was trained otherwise, or on other folds, than {output.weights} "
                "knows; run optimize_weights.py again"
            )
    return runs


def hash_images(index: Index) -> str:
    """Return 16 hex digits that name ids, paths and content of the images, in their order."""
    table = index.table
    marks = file_marks(table, index.root)
    rows = zip(table["id"], table["image"], marks, strict=True)
    return hash_ids(f"{name}\0{image}\0{mark}" for name, image, mark in rows)


def unsure_below(threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the test whether the largest softmax probability is below ``threshold``."""
    return lambda logits: logits.softmax(-1).amax(-1) < threshold
