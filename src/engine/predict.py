"""Prediction of a whole loader, with test-time augmentation; BatchNorm re-estimation (update_bn).

Averaged weights never saw the statistics they are used with: those are an average over nets that
came before. A short run, whose statistics still move at its end, gains most. Izmailov et al. 2018,
https://arxiv.org/abs/1803.05407, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from src.engine.interrupt import Pause
from src.engine.log import bar_options
from src.engine.runtime import (
    SEARCH_STEPS,
    Runtime,
    free_on_card,
    is_out_of_memory,
    release_memory,
    search_algorithms,
)
from src.script import UserError
from src.tasks.protocols import BatchLoader, Predictor, Task
from src.views import VIEWS, View, by_scale, scaled_size

Write = Callable[[dict[str, Tensor], list[Tensor]], None]


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: BatchLoader,
    task: Predictor,
    runtime: Runtime,
    *,
    num_rows: int,
    write: Write,
    views: Sequence[View] = VIEWS[:1],
    batch_size: int = 0,
    is_unsure: Callable[[Tensor], Tensor] | None = None,
    pause: Pause | None = None,
    label: str = "predict",
) -> None:
    """Hand every batch's predictions to ``write(batch, outputs)``, each row exactly once.

    Args:
        model: network in any mode; it is put into eval mode and left there.
        loader: batches with ``image`` (B, C, H, W) uint8 and ``index`` (B,).
        task: says what a prediction is.
        runtime: device and precision.
        num_rows: rows the loader must deliver.
        write: receives the batch on the device and one (B, …) tensor a view.
        views: applied in this order; the task's output for spatial targets is inverted.
        batch_size: rows at once on the device; 0 = the loader's. Halved when memory is short.
        is_unsure: (first view's outputs) → (B,) bool, the rows whose further views are computed;
            for the others they repeat the first. None = all rows.
        pause: asked before each batch and at the end; raises to stop.
        label: word of the progress bar.

    Raises:
        UserError: not even one row fits into memory.
    """
    model.eval()
    pause = pause or Pause(runtime.agree)

    def all_views(piece: dict[str, Tensor], pad_to: int) -> list[Tensor]:
        one_view = partial(predict_view, model, task, runtime, pad_to=pad_to)
        return predict_views(one_view, piece, views, is_unsure)

    on_cpu = runtime.device.type == "cpu"
    seen = np.zeros(num_rows, np.int64)
    fitting = batch_size or num_rows  # rows at once that memory allows
    whole = 0  # rows of the largest batch so far
    is_long = len(loader) * len(views) >= SEARCH_STEPS
    for host_batch in pause.between(tqdm(loader, label, leave=False, **bar_options(runtime))):
        if not host_batch:  # the last rows went to other processes
            continue
        batch = runtime.upload(host_batch)
        rows = len(batch["image"])
        whole = max(whole, rows)
        pad_to = 0 if on_cpu else min(fitting, whole)
        # images one by one are of many sizes
        search_algorithms(runtime.device, is_long and 1 < max(rows, pad_to) == whole)
        size, largest = min(fitting, rows), 0
        for piece, outputs in predict_in_pieces(all_views, batch, size, runtime.device, pad_to):
            write(piece, outputs)
            largest = max(largest, len(piece["image"]))
        if largest < size:  # memory was short, and will be for the next batch
            fitting = largest
        seen += np.bincount(batch["index"].numpy(), minlength=num_rows)
    pause()
    seen = np.sum(runtime.gather(seen), 0)
    assert (seen == 1).all(), f"{(seen != 1).sum()} of {num_rows} rows not predicted exactly once"


def predict_in_pieces(
    predict_batch: Callable[[dict[str, Tensor], int], list[Tensor]],
    batch: dict[str, Tensor],
    size: int,
    device: torch.device,
    pad_to: int = 0,
) -> Iterable[tuple[dict[str, Tensor], list[Tensor]]]:
    """Yield (part of the batch, its predictions), of half the rows where memory is short.

    Args:
        predict_batch: (part, rows to fill it up to) → one (b, …) tensor a view.
        batch: on the device.
        size: rows of a part, halved (with ``pad_to``) when memory is short.
        device: whose memory is freed then.
        pad_to: rows that a part is filled up to, see :func:`predict_view`.

    Raises:
        UserError: not even one row fits into memory.
    """
    start, rows = 0, len(batch["image"])
    while start < rows:
        piece = {key: value[start : start + size] for key, value in batch.items()}
        try:
            outputs = predict_batch(piece, pad_to)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max(size, pad_to) == 1:
                raise UserError("out of memory on a single image: lower --image_size") from None
            size = min(size, (max(size, pad_to) + 1) // 2)
            pad_to = min(size, pad_to)
            release_memory(device)
            continue
        yield piece, outputs
        start += size


def predict_views(
    one_view: Callable[[dict[str, Tensor], View], Tensor],
    batch: dict[str, Tensor],
    views: Sequence[View],
    is_unsure: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Return the predictions of every view, one (B, …) tensor each, in the order of ``views``.

    Args:
        one_view: (batch, view) → predictions (B, …).
        batch: ``image`` (B, C, H, W), on the device.
        views: the first is computed for all rows.
        is_unsure: of :func:`predict`; the other rows repeat the first view's prediction.
    """
    first = one_view(batch, views[0])
    assert is_unsure is None or first.ndim == 2, "only predictions of whole images can be adaptive"
    if is_unsure is None or len(views) == 1:
        return [first, *(one_view(batch, view) for view in views[1:])]
    rows = is_unsure(first).nonzero().squeeze(1)
    outputs = [first] + [first.clone() for _ in views[1:]]
    if len(rows):  # few rows, so their views share passes; squares, so they fit together
        image = batch["image"][rows]
        shown = torch.cat([view.apply(image) for view in views[1:]])
        parts = shown.split(len(batch["image"]))
        found = torch.cat([one_view({"image": part}, VIEWS[0]) for part in parts])
        for output, own in zip(outputs[1:], found.split(len(rows)), strict=True):
            output[rows] = own
    return outputs


def predict_view(
    model: nn.Module, task: Predictor, runtime: Runtime, batch: dict[str, Tensor], view: View,
    *, pad_to: int = 0,
) -> Tensor:  # fmt: skip
    """Return the float32 prediction of one view, turned back where it is a map.

    Fewer than ``pad_to`` rows are filled up with the last image: an accelerator prepares its
    kernels for every new number of rows, which took a card seconds (docs/hardware.md).
    """
    image = view.apply(batch["image"])
    rows = len(image)
    if rows < pad_to:
        image = torch.cat([image, image[-1:].expand(pad_to - rows, -1, -1, -1)])
    with runtime.autocast(), runtime.eagerly():
        output = task.predict(model, batch | {"image": image})[:rows].float()
    return view.invert(output) if output.ndim == 4 else output


def evaluate(
    model: nn.Module, loader: BatchLoader, task: Task, runtime: Runtime, **options: Any
) -> dict[str, float]:
    """Return the task's metrics over ``loader`` (identity view)."""
    meter = task.meter()

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        meter.update(outputs[0], batch)

    predict(model, loader, task, runtime, write=write, label="valid", **options)
    if runtime.num_processes > 1:
        meter.merge_states(runtime.gather(meter.state()))
    return meter.compute()


def predict_logits(
    model: nn.Module,
    loader: BatchLoader,
    task: Predictor,
    runtime: Runtime,
    *,
    out: np.ndarray,
    views: Sequence[View],
    **options: Any,
) -> None:
    """Fill ``out`` (V, N, K), an array or memory map of floats, with the logits of every view.

    Where several processes share the rows it must be 0 before.
    """

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        rows = batch["index"].numpy()
        for view, logits in enumerate(outputs):
            # beyond float16 lies infinity, which no softmax forgives
            out[view, rows] = logits.clamp(-6e4, 6e4).cpu().numpy().astype(out.dtype)

    predict(
        model, loader, task, runtime, num_rows=out.shape[1], views=views, write=write, **options
    )
    runtime.join_rows(out)


def predict_named_views(
    model: nn.Module,
    task: Predictor,
    runtime: Runtime,
    names: Sequence[str],
    image_size: int,
    loader_at: Callable[[int], BatchLoader],
    *,
    out: np.ndarray,
    is_unsure: Callable[[Tensor], Tensor] | None = None,
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
        is_unsure: of :func:`predict`, for the views that share the first's size.
        options: further ones of that function.
    """
    begin = 0
    for scale, views in by_scale(names):
        end = begin + len(views)
        predict_logits(
            model, loader_at(scaled_size(image_size, scale)), task, runtime, out=out[begin:end],
            views=views, is_unsure=None if begin else is_unsure, **options,
        )  # fmt: skip
        begin = end


def default_batch_size(image_size: int, device: torch.device) -> int:
    """Return images at once without gradients: 8 from 480 px, 12 from 384, 16 from 224, then 32.

    Four times as many on a CUDA card with 16 GiB free; predict() halves what does not fit.
    """
    size = next(n for px, n in ((480, 8), (384, 12), (224, 16), (0, 32)) if image_size >= px)
    return 4 * size if free_on_card(device) > 16 * 2**30 else size


SMALLEST = 4  # rows of a batch whose statistics say anything


@torch.no_grad()
def update_batch_norm(
    model: nn.Module, loader: BatchLoader, runtime: Runtime, num_rows: int
) -> None:
    """Replace BatchNorm's running statistics by their mean over training batches.

    At least ``num_rows`` rows of full batches are seen, all where there are fewer. The model is
    left in evaluation mode; without BatchNorm nothing is done.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    model = runtime.place(model).eval()
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative mean
        norm.train()  # the norms alone: dropout stays off
    loader.batch_sampler.start(0)
    seen = 0
    for host_batch in loader:
        if len(host_batch["image"]) < SMALLEST and seen:
            continue
        with runtime.autocast(), runtime.eagerly():
            model(runtime.upload(host_batch)["image"])
        seen += len(host_batch["image"])
        if seen >= num_rows:
            break
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    runtime.share_buffers(model)
    model.eval()
