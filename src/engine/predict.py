"""Predictions of a whole loader: for validation, OOF, test and every view of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from src.engine.log import bar_options
from src.engine.memory import is_out_of_memory, release_memory
from src.engine.runtime import Runtime
from src.engine.tta import VIEWS, View
from src.runs import UserError

Write = Callable[[dict[str, Tensor], list[Tensor]], None]


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: Iterable[dict[str, Tensor]],
    task: Any,
    runtime: Runtime,
    *,
    num_rows: int,
    write: Write,
    views: Sequence[View] = VIEWS[:1],
    batch_size: int = 0,
    pause: Callable[[], None] = lambda: None,
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
        pause: called after each batch; raises to stop.
        label: word of the progress bar.

    Raises:
        UserError: not even one row fits into memory.
    """
    model.eval()
    seen = np.zeros(num_rows, np.int64)
    for host_batch in tqdm(loader, label, leave=False, **bar_options(runtime)):
        batch = runtime.upload(host_batch)
        rows = len(batch["image"])
        size = min(batch_size or rows, rows)
        for piece, outputs in pieces(model, batch, task, runtime, views, size):
            write(piece, outputs)
        seen += np.bincount(batch["index"].numpy(), minlength=num_rows)
        pause()
    assert (seen == 1).all(), f"{(seen != 1).sum()} of {num_rows} rows not predicted exactly once"


def pieces(
    model: nn.Module,
    batch: dict[str, Tensor],
    task: Any,
    runtime: Runtime,
    views: Sequence[View],
    size: int,
) -> Iterable[tuple[dict[str, Tensor], list[Tensor]]]:
    """Yield (part of the batch, its outputs), in halves of halves while memory is short."""
    start, rows = 0, len(batch["image"])
    while start < rows:
        piece = {key: value[start : start + size] for key, value in batch.items()}
        try:
            outputs = [predict_view(model, piece, task, runtime, view) for view in views]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError("out of memory on a single image: lower --image_size") from None
            size = (size + 1) // 2
            release_memory(runtime.device)
            continue
        yield piece, outputs
        start += size


def predict_view(
    model: nn.Module, batch: dict[str, Tensor], task: Any, runtime: Runtime, view: View
) -> Tensor:
    """Return the float32 prediction of one view, turned back where it is a map."""
    with runtime.autocast():
        output = task.predict(model, batch | {"image": view.apply(batch["image"])}).float()
    return view.invert(output) if output.ndim == 4 else output


def evaluate(
    model: nn.Module, loader: Any, task: Any, runtime: Runtime, **options: Any
) -> dict[str, float]:
    """Return the task's metrics over ``loader`` (identity view)."""
    meter = task.meter()

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        meter.update(outputs[0], batch)

    predict(model, loader, task, runtime, write=write, label="valid", **options)
    return meter.compute()
