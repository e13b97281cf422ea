"""Inference of one trained fold: test logits of every view, kept in the fold's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from src.config import InferConfig
from src.data.canonical import ImageSource
from src.data.dataset import EpochSampler, ImageDataset, Loader, default_num_workers, make_loader
from src.data.folds import file_marks
from src.data.index import Index
from src.data.transforms import eval_transform
from src.engine.checkpoint import load_weights
from src.engine.interrupt import catch_signals
from src.engine.predict import default_batch_size, predict_logits
from src.engine.runtime import Runtime, start_runtime
from src.engine.tta import by_scale, scaled_size
from src.ensemble.predictions import hash_ids, save_test_info
from src.files import atomic_array, read_json
from src.models.classifier import build_classifier
from src.models.folding import fold_norms
from src.pipelines.run_folder import read_config
from src.runs import AFRESH, Run
from src.script import UserError
from src.tasks.classification import Classification


def infer_fold(
    config: InferConfig, run: Run, index: Index, views: Sequence[str], threshold: float | None
) -> None:
    """Write ``test_logits.npy`` and ``test.json`` of one fold of one model.

    Args:
        config: device, precision, workers, batch size.
        run: its finished folder.
        index: test images.
        views: names of the views, the upright one first.
        threshold: from which confidence of the first view (largest softmax probability) the other
            views need not be computed and repeat its logits; None = compute all.
    """
    saved = read_config(run)
    options, resolved, trained_on = saved["options"], saved["resolved"], saved["runtime"]
    runtime = start_runtime(config.device, config.precision)
    if config.precision == "auto":
        runtime = runtime.as_recorded(trained_on)
    classes, size = resolved["classes"], resolved["image_size"]
    model = build_classifier(
        resolved["timm_id"],
        len(classes),
        image_size=size,
        pool=options["pool"],
        gem_p=options["gem_p"],
    )
    try:
        model.load_state_dict(load_weights(run.best))
    except RuntimeError:
        raise UserError(f"{run.best}: weights of another network; {AFRESH}") from None
    device = runtime.device.type
    workers = default_num_workers(device) if config.num_workers < 0 else config.num_workers

    def loader_at(side: int) -> Loader:
        source = ImageSource(index.root, index.table["image"].tolist(), side)
        batch_size = config.infer_batch_size or default_batch_size(side, runtime.device)
        return make_loader(
            ImageDataset(source, None, eval_transform(side)),
            EpochSampler(len(source), batch_size),
            num_workers=workers,
            device_type=device,
        )

    shape = (len(views), len(index.table), len(classes))
    run.test_info.unlink(missing_ok=True)  # it must not declare other logits than its own whole
    with catch_signals() as pause, atomic_array(run.test_logits, shape, np.float16) as logits:
        predict_named_views(
            runtime.place(fold_norms(model, size)),
            Classification(len(classes), lambda logits, target: logits.sum()),
            runtime,
            views,
            size,
            loader_at,
            out=logits,
            go_on=None if threshold is None else unsure_below(threshold),
            pause=pause,
            label=str(run.folder),
        )
    save_test_info(
        run.test_info,
        logits=np.load(run.test_logits, mmap_mode="r", allow_pickle=False),
        ids_hash=hash_images(index),
        views=views,
        classes=classes,
        config_hash=read_json(run.finished)["config_hash"],
        threshold=threshold,
    )


def predict_named_views(
    model: nn.Module,
    task: Any,
    runtime: Runtime,
    names: Sequence[str],
    image_size: int,
    loader_at: Callable[[int], Loader],
    *,
    out: np.ndarray,
    go_on: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> None:
    """Fill ``out`` (V, N, K) with the logits of the views called ``names``, each at its size.

    Args:
        model: placed on the device.
        task: says what a prediction is.
        runtime: device and precision.
        names: V views; those of one size stand together.
        image_size: of views without a scale, px.
        loader_at: returns the loader of all rows at a side in pixels.
        out: array or memory map of float16.
        go_on: of :func:`src.engine.predict.predict`, for the views that share the first's size.
        options: further ones of that function.
    """
    begin = 0
    for scale, views in by_scale(names):
        end = begin + len(views)
        predict_logits(
            model, loader_at(scaled_size(image_size, scale)), task, runtime, out=out[begin:end],
            views=views, go_on=None if begin else go_on, **options,
        )  # fmt: skip
        begin = end


def hash_images(index: Index) -> str:
    """Return 16 hex digits that name ids, paths and content of the images, in their order."""
    table = index.table
    marks = file_marks(table, index.root)
    rows = zip(table["id"], table["image"], marks, strict=True)
    return hash_ids(f"{name}\0{image}\0{mark}" for name, image, mark in rows)


def unsure_below(threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the test whether the largest softmax probability is below ``threshold``."""
    return lambda logits: logits.softmax(-1).amax(-1) < threshold
