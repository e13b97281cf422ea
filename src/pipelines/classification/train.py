"""Training of one classification fold: loaders, fit, OOF predictions.

Serves ``train_fold.py``, and the students and teachers of ``train_distill.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from src.classes import Aliases, to_hot
from src.config import AugmentConfig, FoldConfig, config_hash
from src.data.cache import open_cache
from src.data.canonical import ImageSource, canonical_side
from src.data.dataset import ImageDataset, Loader
from src.data.folds import Folds
from src.data.index import Index
from src.data.transforms import Transform, eval_transform, mix, train_transform
from src.engine.autotune import settle_runtime
from src.engine.checkpoint import TrainState, refuse_other_run
from src.engine.cpu import tune_for_cpu
from src.engine.interrupt import catch_signals
from src.engine.log import say
from src.engine.loop import Mix, Shorten, fit
from src.engine.predict import default_batch_size, evaluate, predict_named_views
from src.engine.runtime import Runtime
from src.engine.weights import load_weights, run_identity, save_weights
from src.ensemble.predictions import save_oof
from src.files import Json
from src.losses.classification import build_loss
from src.mask_config import DistillConfig
from src.metrics.contest import find_metric
from src.models.classifier import build_classifier
from src.models.convolutions import fold_norms
from src.models.pretrained import check_timm_id, find_data_config, find_weights
from src.pipelines.classification.prepare import find_aliases
from src.pipelines.classification.wise_ft import fit_head, interpolate_weights, pick_rows
from src.pipelines.run_folder import describe_training, finish_run, recover_finished, write_config
from src.pipelines.training import run_loader, worst_mistakes
from src.runs import Done, Output, Run, read_config
from src.script import UserError, counted
from src.tasks.classification import Classification, MultiLabel
from src.tasks.protocols import Batch, Task, inner_network, inner_task
from src.views import first_views, view_names

Config = FoldConfig | DistillConfig
OUTCOME = ("score", "best_epoch", "epochs", "history")  # of a training, in finished.json


@dataclass(frozen=True)
class ClassData:
    """Photographs, their folds, which classes are one, and the side of the square nets see."""

    index: Index
    folds: Folds
    aliases: Aliases
    image_size: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes that are trained."""
        return self.aliases.trained

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Return class numbers (R,) of rows, or labels (R, K) of 0 and 1."""
        names = self.index.table["target"].iloc[rows].tolist()
        return to_hot(names, self.classes) if self.index.several else self.aliases.targets(names)

    def describe(self, fold: int | None) -> Json:
        """Return what ``config.yaml`` says of the data of a run."""
        several = {"several": True} if self.index.several else {}
        return several | {
            "image_size": self.image_size,
            "classes": list(self.classes),
            "aliases": [list(names) for names in self.aliases.members() if len(names) > 1],
            "split_hash": self.folds.folds_hash,
            "fold": "full" if fold is None else str(fold),
        }

    def save_oof(
        self, run: Run, fold: int, logits: np.ndarray, views: Sequence[str], config_hash: str
    ) -> None:
        """Write ``oof.npz``: the logits (V, N, K) of the rows that ``fold`` holds out."""
        held = self.folds.valid_rows(fold)
        ids = self.index.table["id"].iloc[held].to_numpy(dtype=str)
        save_oof(
            run.oof, logits=logits, ids=ids, targets=self.targets(held), views=views,
            classes=self.classes, fold=str(fold), config_hash=config_hash,
            folds_hash=self.folds.folds_hash,
        )  # fmt: skip


def find_backbone(config: FoldConfig) -> tuple[str, int, Path | None]:
    """Return timm id, side of its images (px) and file of weights (None = random) of a row.

    Raises:
        UserError: no such model or weights, or an option it does not take.
    """
    timm_id = check_timm_id(config.timm_id or config.model)
    native = find_data_config(timm_id)
    if native.fixed_size and config.tta_scale != 1:
        raise UserError(f"--tta_scale {config.tta_scale:g}: {timm_id} takes one size; pass 1")
    return timm_id, config.image_size or native.image_size, find_weights(timm_id, config.pretrained)


def train_fold(
    config: FoldConfig,
    output: Output,
    run: Run,
    index: Index,
    folds: Folds,
    fold: int | None,
    runtime: Runtime,
    shorten: Shorten | None = None,
) -> Done:
    """Build the backbone and what it learns by, and train it to its finished folder.

    ``run`` is held by the caller; ``fold`` None holds nothing out; ``shorten`` is that of
    :func:`src.engine.loop.fit`. Return the content of ``finished.json``.

    Raises:
        UserError: no such model or weights, or a file that cannot be decoded.
        Interrupted: a signal asked to stop; the state is saved.
    """
    timm_id, size, weights = find_backbone(config)
    data = ClassData(index, folds, find_aliases(config, index), size)
    num_classes = len(data.classes)
    torch.manual_seed(config.seed)
    model = build_classifier(
        timm_id, num_classes, image_size=size, pool=config.pool, gem_p=config.gem_p,
        drop_rate=config.drop_rate, drop_path_rate=config.drop_path_rate, weights=weights,
        frozen_norms=config.norms == "frozen",
    )  # fmt: skip
    about = {"timm_id": timm_id, "weights": str(weights)}
    own = config.shared(AugmentConfig)
    augment = train_transform(size, scale_min=config.scale_min, erase=config.erase, **own)
    return train_classifier(
        config, run, data, fold, model, choose_task(config, data), augment,
        output=output, about=about, runtime=runtime, mix=make_mix(config, num_classes),
        probe=config.head_start == "probe", shorten=shorten,
    )  # fmt: skip


def choose_task(config: FoldConfig, data: ClassData) -> Classification:
    """Return what is learned: one class an image, or several labels."""
    several, num = data.index.several, len(data.classes)
    loss = build_loss(config.loss, label_smoothing=config.label_smoothing, several=several)
    metric = find_metric(config.metric, data.classes, config.ordinal, several=several)
    plain = not metric.greater_is_better if several else config.metric == "log_loss"
    return (MultiLabel if several else Classification)(num, loss, None if plain else metric)


def make_mix(config: FoldConfig, num_classes: int) -> Mix | None:
    """Return the mixing of batches, None if there is none."""
    if not (config.mixup_alpha or config.cutmix_alpha):
        return None

    def mix_batch(batch: Batch, step: int, epoch: int) -> Batch:
        if epoch >= config.epochs - config.mix_off_epochs:
            return batch
        image, target = mix(
            batch["image"], batch["target"], num_classes=num_classes, seed=config.seed, step=step,
            mixup_alpha=config.mixup_alpha, cutmix_alpha=config.cutmix_alpha, prob=config.mix_prob,
        )  # fmt: skip
        return batch | {"image": image, "target": target}

    return mix_batch


def train_classifier(
    config: Config, run: Run, data: ClassData, fold: int | None, model: nn.Module, task: Task,
    augment: Transform, *, output: Output, about: Mapping[str, object], runtime: Runtime,
    mix: Mix | None = None, probe: bool = True, shorten: Shorten | None = None,
) -> Done:  # fmt: skip
    """Train a fold to its finished folder, from the start or from where it stopped.

    ``run`` is held by the caller; ``fold`` None holds nothing out. ``model`` has its first weights;
    with ``probe`` a pretrained one starts from a head fitted to its features. ``task`` is a
    :class:`Classification` or holds one as ``inner``. ``output`` is the folder whose cache is used,
    ``about`` what inference needs to build ``model`` again; ``mix`` and ``shorten`` are those of
    :func:`src.engine.loop.fit`. Return the content of ``finished.json``.
    """
    side, rows = data.image_size, data.folds.train_rows(fold)
    train = build_loader(config, data, rows, canonical_side(side), augment, runtime, output)

    def eval_loader(rows: np.ndarray, side: int) -> Loader:
        batch, plain = default_batch_size(side, runtime.device), eval_transform(side)
        return build_loader(
            config, data, rows, side, plain, runtime, output,
            eval_batch_size=config.infer_batch_size or batch,
        )  # fmt: skip

    valid = None if fold is None else eval_loader(data.folds.valid_rows(fold), side)
    tune_for_cpu(model, runtime.device)
    identity = run_identity(config, run, data.folds.folds_hash)
    refuse_other_run(run, config, identity, data.folds.folds_hash)
    refuse_other_classes(run, data.describe(fold))
    runtime = settle_runtime(model, task, train, runtime, run, config, identity)
    kept = runtime.from_main(recover_finished(run) if runtime.is_main else None)
    write_config(run, config, {**about, **data.describe(fold)}, runtime, identity)
    what = "labels" if data.index.several else "classes"
    size = f"{side} px, {counted(len(rows), 'image')}, {len(data.classes)} {what}"
    say(runtime, f"{run.folder}: {about['timm_id']} at {size}")
    started = time.monotonic()
    if kept is not None:
        outcome = cast(Done, {key: kept.get(key) for key in OUTCOME})
    else:
        network: Any = inner_network(model)  # a student is wrapped
        probe = probe and network.pretrained_share > 0
        if probe and not run.has_state:
            # a probe is fitted to the views it will predict; a start meets random ones anyway
            views = first_views(1 if config.epochs else config.tta_steps)
            start = eval_loader(pick_rows(rows, config.seed), side)
            fit_head(network, start, len(data.classes), runtime, views)
            if runtime.is_main and (fold is not None or not config.epochs):
                path = run.start if config.epochs else run.best
                save_weights(path, model.state_dict(), {"run": identity})
        outcome, identity = learn(
            config, run, model, task, train, valid, runtime, identity=identity, probe=probe,
            names=data.index.table["id"].iloc[rows].tolist(), mix=mix, shorten=shorten,
            split_hash=data.folds.folds_hash,
            draw=worst_mistakes(valid, task, data.classes, runtime),
        )  # fmt: skip
    minutes = (time.monotonic() - started) / 60
    done = describe_training(config, data.folds.folds_hash, task.monitor) | outcome
    if fold is not None and valid is not None:
        model.load_state_dict(load_weights(run.best, "" if kept else identity))
        held = data.folds.valid_rows(fold)
        write_oof(
            config, run, data, fold, model, task,
            lambda pixels: valid if pixels == side else eval_loader(held, pixels), runtime,
        )  # fmt: skip
    if runtime.is_main:
        finish_run(run, done, keep_last=config.keep_last)
        shown = f"{task.monitor} {outcome['score']}"
        print(f"{run.folder}: finished in {minutes:.1f} min, {shown}", flush=True)
    runtime.agree(0)  # until all files are written that other processes may read next
    return done


def refuse_other_classes(run: Run, now: Json) -> None:
    """Refuse to go on with a run, or to make its files again, under another file of aliases.

    ``now`` describes the data, as ``config.yaml`` does.

    Raises:
        UserError: the classes were others.
    """
    if not (run.has_state or run.finished.exists()):
        return
    try:
        then = read_config(run)["resolved"]
    except UserError:  # lost or damaged: written anew
        return
    if any(then.get(key, now[key]) != now[key] for key in ("classes", "aliases")):
        raise UserError(
            f"{run.folder} began with other aliases of classes than there are now: restore them, "
            "pass another --name, or delete the folder"
        )


def learn(
    config: Config,
    run: Run,
    model: nn.Module,
    task: Task,
    train: Loader,
    valid: Loader | None,
    runtime: Runtime,
    *,
    identity: str,
    probe: bool,
    **options: Any,
) -> tuple[Done, str]:
    """Train a net, or score the probe it began as; then WiSE-FT towards that ``probe``.

    Returns score, best epoch, epochs and history, and the ``identity`` that the weights have been
    saved under. ``options`` go to :func:`src.engine.loop.fit`.
    """
    if config.epochs:
        state = fit(model, task, train, valid, config=config, run=run, runtime=runtime, **options)
        identity = state.identity  # of its beginning: options may have changed since
    else:
        state = TrainState(done=True)
        if valid is not None:
            with catch_signals(runtime.agree) as pause:
                num_rows = valid.batch_sampler.num_rows
                scores = evaluate(model, valid, task, runtime, num_rows=num_rows, pause=pause)
            state.best = scores[task.monitor]
    runtime.accelerator.wait_for_everyone()  # until the best weights are written
    score = state.best
    if score is not None and valid is not None and probe and config.epochs:
        score = interpolate_weights(run, model, task, valid, runtime, score, identity)
        runtime.accelerator.wait_for_everyone()
    outcome: Done = {"score": None if score is None else round(score, 6)}
    # fewer epochs where the schedule was shortened
    outcome |= {"best_epoch": state.best_epoch, "epochs": state.epochs or config.epochs}
    return outcome | {"history": state.history}, identity


def build_loader(
    config: Config, data: ClassData, rows: np.ndarray, side: int, transform: Transform,
    runtime: Runtime, output: Output, *, eval_batch_size: int = 0,
) -> Loader:  # fmt: skip
    """Build a loader of some rows whose images come in about ``side`` pixels.

    ``eval_batch_size`` is that of :func:`src.pipelines.training.run_loader`.
    """

    def open_rows(num_workers: int, num_processes: int) -> ImageDataset:
        source = ImageSource(data.index.root, data.index.table["image"].tolist(), side)
        pixels = open_cache(
            source, config.cache, rows=rows, folder=output.cache, num_workers=num_workers,
            num_processes=num_processes,
        )  # fmt: skip
        return ImageDataset(pixels, data.targets(rows), transform, seed=config.seed)

    return run_loader(config, runtime, len(rows), open_rows, eval_batch_size=eval_batch_size)


def write_oof(
    config: Config,
    run: Run,
    data: ClassData,
    fold: int,
    model: nn.Module,
    task: Task,
    loader_at: Callable[[int], Loader],
    runtime: Runtime,
) -> None:
    """Predict the held-out images exactly as test images will be, and write ``oof.npz``."""
    plain: Task = inner_task(task)
    network = inner_network(model)  # a student is wrapped
    network = runtime.place(fold_norms(network, data.image_size))
    scale = config.tta_scale if isinstance(config, FoldConfig) else 1.0
    views = view_names(config.tta_steps, scale)
    num_rows = len(data.folds.valid_rows(fold))
    logits = np.zeros((len(views), num_rows, len(data.classes)), np.float16)
    with catch_signals(runtime.agree) as pause:
        predict_named_views(
            network, plain, runtime, views, data.image_size, loader_at,
            out=logits, pause=pause, label="oof",
        )  # fmt: skip
    if runtime.is_main:
        data.save_oof(run, fold, logits, views, config_hash(config))
