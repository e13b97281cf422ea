"""What training on photographs and on masks share: loaders of a run, pictures of its mistakes.

The pictures, of the worst mistakes on held-out images, are for experiment trackers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.config import EngineConfig
from src.data.dataset import (
    EpochSampler,
    ImageDataset,
    Loader,
    default_num_workers,
    local_processes,
    make_loader,
)
from src.data.decode import VOID
from src.engine.loop import Draw
from src.engine.predict import predict_in_pieces, predict_view
from src.engine.runtime import Runtime
from src.pipelines.pictures import draw_overlay, make_gallery
from src.tasks.protocols import BatchLoader, Task
from src.tasks.segmentation import background_label
from src.views import VIEWS

LOOKED_AT = 64  # held-out images, evenly spread
SHOWN = 8

Judged = tuple[float, np.ndarray, str]  # loss, picture (H, W, 3) uint8 RGB, caption


def run_loader(
    config: EngineConfig,
    runtime: Runtime,
    num_rows: int,
    open_rows: Callable[[int, int], ImageDataset],
    *,
    eval_batch_size: int = 0,
) -> Loader:
    """Build a loader of a run's rows.

    ``open_rows`` takes the numbers of loader processes and of training processes on this machine.
    ``eval_batch_size`` is that of each process, rows in their order; 0 = training: effective
    batches, shuffled anew each epoch.
    """
    device, world = runtime.device.type, runtime.num_processes
    workers = default_num_workers(device) if config.num_workers < 0 else config.num_workers
    order = EpochSampler(
        num_rows, eval_batch_size * world or config.batch_size, seed=config.seed,
        shuffle=not eval_batch_size, rank=runtime.rank, world_size=world, fill=device != "cpu",
    )  # fmt: skip
    dataset = open_rows(workers, local_processes())
    return make_loader(dataset, order, num_workers=workers, device_type=device)


def worst_mistakes(
    loader: BatchLoader | None, task: Task, classes: Sequence[str], runtime: Runtime
) -> Draw | None:
    """Return a function model → {"worst_mistakes": gallery}, of a sample of the held-out images.

    ``loader`` gives the held-out images in order; None = none are held out, nothing is drawn.
    """
    if loader is None:
        return None
    num_rows, size = loader.batch_sampler.num_rows, loader.batch_sampler.own_size
    pad_to = 0 if runtime.device.type == "cpu" else min(size, num_rows)  # as it was validated
    rows = np.linspace(0, num_rows - 1, min(num_rows, LOOKED_AT)).astype(int).tolist()

    @torch.inference_mode()
    def draw(model: nn.Module) -> Mapping[str, np.ndarray]:
        model.eval()
        judged: list[Judged] = []

        def show(piece: dict[str, Tensor], pad_to: int) -> list[Tensor]:
            return [predict_view(model, task, runtime, piece, VIEWS[0], pad_to=pad_to)]

        for number in range(0, len(rows), size):
            keys = [(0, row) for row in rows[number : number + size]]
            samples = loader.dataset.__getitems__(keys)
            if isinstance(samples, Exception):
                raise samples
            for _, same in groupby(samples, lambda sample: sample["image"].shape):
                batch = runtime.upload(loader.collate_fn(list(same)))
                shown = predict_in_pieces(show, batch, size, runtime.device, pad_to)
                for piece, (logits,) in shown:
                    batch = {key: value.cpu() for key, value in piece.items()}
                    judged += [
                        _judge({key: value[place] for key, value in batch.items()}, own, classes)
                        for place, own in enumerate(logits.cpu())
                    ]
        worst = sorted(judged, key=lambda found: -found[0])[:SHOWN]
        return {"worst_mistakes": make_gallery([w[1] for w in worst], [w[2] for w in worst])}

    return draw


def _judge(sample: dict[str, Any], logits: Tensor, classes: Sequence[str]) -> Judged:
    """Return the loss of one image, its picture and caption."""
    image = sample["image"].permute(1, 2, 0).contiguous().numpy()
    if "mask" in sample:
        return _judge_mask(image, sample["mask"].long(), logits, classes)
    target = sample["target"]
    if target.ndim:  # several labels
        loss = float(F.binary_cross_entropy_with_logits(logits, target.float()))
        names = [classes[k] for k in target.nonzero().flatten().tolist()]
        return loss, image, f"{loss:.2f} {'|'.join(names) or 'none'}"
    loss = float(F.cross_entropy(logits, target))
    return loss, image, f"{loss:.2f} {classes[int(target)]} -> {classes[int(logits.argmax())]}"


def _judge_mask(image: np.ndarray, mask: Tensor, logits: Tensor, classes: Sequence[str]) -> Judged:
    """Return the mean loss of the pixels, prediction tinted with the true outline, caption."""
    known = mask != VOID
    if len(logits) == 1:
        each = F.binary_cross_entropy_with_logits(logits[0], (mask == 1).float(), reduction="none")
        labels = (logits[0] >= 0).numpy()
    else:
        each = F.cross_entropy(logits[None], mask[None], ignore_index=VOID, reduction="none")[0]
        labels = logits.argmax(0).numpy()
    loss = float(each[known].mean()) if known.any() else 0.0
    drawn = draw_overlay(
        image, labels.astype(np.uint8), mask.numpy(), background=background_label(classes)
    )
    return loss, drawn, f"{loss:.3f}"
