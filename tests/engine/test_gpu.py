"""The loop on a CUDA card: `python -m pytest -m gpu -n 0 tests/engine/test_gpu.py`, a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.config import EngineConfig
from src.engine.loop import fit
from src.engine.runtime import computes_natively, start_runtime
from src.losses.classification import build_loss
from src.models.classifier import build_classifier
from src.runs import Run
from src.tasks.classification import Classification

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here"),
]

ROWS, SIDE, CLASSES = 64, 64, 4
TASK = Classification(CLASSES, build_loss("cross_entropy"))


class Pinned:
    """Batches in pinned memory, in the same order every epoch."""

    def __init__(self, batch_size: int = 16) -> None:
        self.batch_size, self.num_rows, self.step = batch_size, ROWS, 0
        self.batch_sampler = self
        self.batches = [self.make(start) for start in range(0, ROWS, batch_size)]

    def make(self, start: int) -> dict[str, Tensor]:
        index = torch.arange(start, min(start + self.batch_size, ROWS))
        noise = np.random.default_rng(start).integers(0, 256, (len(index), 3, SIDE, SIDE))
        image = torch.tensor(noise, dtype=torch.uint8)
        for row, number in enumerate(index.tolist()):  # something to learn
            image[row, :, 16 * (number % CLASSES) : 16 * (number % CLASSES) + 16] = 255
        batch = {"image": image, "target": index % CLASSES}
        return {key: value.pin_memory() for key, value in batch.items()} | {"index": index}

    def start(self, epoch: int, step: int = 0) -> None:
        self.step = step

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from self.batches[self.step :]
        self.step = 0


def train(folder: Path, precision: str, *, task: Any = TASK, loader: Any = None, **options: Any):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = build_classifier("resnet18", CLASSES, image_size=SIDE, pool="gem")
    config = EngineConfig(
        **({"epochs": 6, "batch_size": 16, "lr": 1e-3, "warmup_epochs": 0.0} | options)
    )
    run = Run(folder)
    state = fit(
        model, task, loader or Pinned(), Pinned(), config=config, run=run,
        runtime=start_runtime("cuda", precision), names=[str(i) for i in range(ROWS)],
    )  # fmt: skip
    weights = torch.load(run.last, weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in weights.values())
    return state, weights


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_in_every_precision(tmp_path: Path, precision: str) -> None:
    if not computes_natively("cuda", precision):
        pytest.skip("bf16 is emulated on this card")
    state, _ = train(tmp_path, precision)
    losses = [row["train_loss"] for row in state.history]
    assert losses[-1] < 0.5 * losses[0]
    assert state.best is not None and state.best < 0.7


def test_the_scaler_passes_over_an_overflow(tmp_path: Path) -> None:
    """With a first scale of 2³² the gradients are infinite for some steps."""
    scaler, original = torch.amp.GradScaler, torch.amp.GradScaler

    def make(kind: str, enabled: bool) -> Any:
        return original(kind, init_scale=2.0**32, enabled=enabled)

    torch.amp.GradScaler = make  # type: ignore[misc,assignment]
    try:
        state, _ = train(tmp_path, "fp16", epochs=10)
    finally:
        torch.amp.GradScaler = scaler  # type: ignore[misc]
    assert state.history[-1]["train_loss"] < state.history[0]["train_loss"]
    assert torch.load(Run(tmp_path).last, weights_only=True)["scaler"]["scale"] < 2.0**32


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_step_waits_for_the_card(tmp_path: Path, precision: str) -> None:
    """From the third step of an epoch on; the scaler's own step reads its flag on the device."""

    class Watched(Pinned):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for number, batch in enumerate(super().__iter__()):
                if number == 2:
                    torch.cuda.set_sync_debug_mode("error")
                yield batch
            torch.cuda.set_sync_debug_mode("default")

    try:
        train(tmp_path, precision, loader=Watched(batch_size=8), epochs=2, batch_size=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Algorithms differ in their last bits on a card: the same scores, not the same bits."""

    class Stopping(Classification):
        calls = 0

        def loss(self, model: Any, batch: Any) -> Any:
            type(self).calls += 1
            if self.calls == 10:
                raise KeyboardInterrupt
            return super().loss(model, batch)

    whole, expected = train(tmp_path / "whole", "fp32", ema_decay=0.9)
    stopping = Stopping(CLASSES, build_loss("cross_entropy"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", "fp32", ema_decay=0.9, task=stopping, checkpoint_minutes=0.0)
    parts, weights = train(tmp_path / "parts", "fp32", ema_decay=0.9, checkpoint_minutes=0.0)
    assert parts.step == whole.step
    assert parts.history[-1]["train_loss"] == pytest.approx(
        whole.history[-1]["train_loss"], rel=0.1, abs=0.02
    )
    assert list(weights) == list(expected)


def test_short_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    class Hungry(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            free = torch.cuda.mem_get_info()[0]
            if len(batch["image"]) > 4:
                torch.empty(2 * free, dtype=torch.uint8, device="cuda")  # the allocator's own error
            return super().loss(model, batch)

    task = Hungry(CLASSES, build_loss("cross_entropy"))
    state, _ = train(tmp_path, "fp32", task=task, epochs=1)
    assert state.micro_batch_size == 4 and state.done
