"""Labelled photographs in, a finished classification run out, for teachers and students.

The main way to train a classifier is ``train_fold.py``; here only what a comparison of three runs
on one fold needs: no audit, no test predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from src.config import DistillConfig, config_hash, learned_knobs
from src.data.cache import open_cache
from src.data.canonical import ImageSource, canonical_side
from src.data.dataset import ImageDataset
from src.data.folds import Folds, load_folds, make_folds, save_folds
from src.data.index import Index, find_root, read_train
from src.data.loader import EpochSampler, Loader, default_num_workers, make_loader
from src.data.transforms import eval_transform, train_transform
from src.engine.autotune import settle_runtime
from src.engine.loop import fit
from src.engine.predict import default_batch_size
from src.engine.runtime import Runtime
from src.losses.classification import build_loss
from src.runs import Output, Run, UserError, hold, write_json
from src.tasks.classification import Classification
from src.tracks.folder import fold_of, write_config


@dataclass(frozen=True)
class ClassData:
    """Photographs, their folds, and the side of the square the nets see."""

    index: Index
    folds: Folds
    image_size: int

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.index.classes)


def read_classes(config: DistillConfig, output: Output, image_size: int) -> ClassData:
    """Index the photographs and make the folds, or check that they still fit.

    Raises:
        UserError: what index and folds refuse.
    """
    index = read_train(find_root(config.data_dir), allow_outside=config.allow_outside)
    output.root.mkdir(parents=True, exist_ok=True)
    with hold(output.folds_lock, str(output.folds), wait=True):
        if output.folds.exists():
            folds = load_folds(
                output.folds, index.table, index.root, num_folds=config.folds or None
            )
        else:
            folds = make_folds(
                index.table, index.root, num_folds=config.folds or 5, seed=config.seed
            )
            save_folds(folds, output.folds)
    return ClassData(index, folds, image_size)


def class_task(data: ClassData) -> Classification:
    """Build the task."""
    return Classification(data.num_classes, build_loss("cross_entropy"))


def train_classes(
    config: DistillConfig,
    run: Run,
    data: ClassData,
    model: nn.Module,
    task: Any,
    *,
    output: Output,
    network: Mapping[str, Any],
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a classifier to its finished folder and return the content of ``finished.json``."""
    fold = fold_of(config.fold)
    if fold is None:
        raise UserError("--fold full: distillation is judged on held-out images, name a fold")
    side = data.image_size
    rows, held = data.folds.train_rows(fold), data.folds.valid_rows(fold)
    augment = train_transform(
        side, hflip=config.hflip, vflip=config.vflip, rotate=config.rotate, color=config.color
    )
    order = EpochSampler(
        len(rows), config.batch_size, seed=config.seed, shuffle=True, rank=runtime.rank,
        world_size=runtime.num_processes,
    )  # fmt: skip
    train = _loader(config, data, runtime, output, rows, canonical_side(side), augment, order)
    batch = config.infer_batch_size or default_batch_size(side, runtime.device)
    plain = eval_transform(side)
    valid = _loader(
        config, data, runtime, output, held, side, plain, EpochSampler(len(held), batch)
    )
    runtime = settle_runtime(model, task, train, runtime, run, config)
    resolved: dict[str, Any] = {"network": dict(network), "classes": list(data.index.classes)}
    resolved |= {"size": side, "split_hash": data.folds.folds_hash, "fold": config.fold}
    write_config(run, config, resolved, runtime)
    print(f"{run.folder}: {len(rows)} images to train, {len(held)} held out, {side} px", flush=True)
    names = data.index.table["id"].iloc[rows].tolist()
    state = fit(model, task, train, valid, config=config, run=run, runtime=runtime, names=names)
    done: dict[str, Any] = {"config_hash": config_hash(config), "config": learned_knobs(config)}
    done |= {"monitor": task.monitor, "score": state.best, "best_epoch": state.best_epoch}
    run.previous.unlink(missing_ok=True)
    write_json(run.finished, done)
    return done


def _loader(
    config: DistillConfig,
    data: ClassData,
    runtime: Runtime,
    output: Output,
    rows: np.ndarray,
    side: int,
    transform: Any,
    order: EpochSampler,
) -> Loader:
    device = runtime.device.type
    workers = default_num_workers(device) if config.num_workers < 0 else config.num_workers
    number = {name: label for label, name in enumerate(data.index.classes)}
    targets = np.array([number[name] for name in data.index.table["target"].iloc[rows]])
    pixels = open_cache(
        ImageSource(data.index.root, data.index.table["image"].tolist(), side),
        config.cache,
        rows=rows,
        folder=output.cache,
        num_workers=workers,
        num_processes=runtime.num_processes,
    )
    dataset = ImageDataset(pixels, targets, transform, seed=config.seed)
    return make_loader(dataset, order, num_workers=workers, device_type=device)
