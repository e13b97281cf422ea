"""The loop on a CUDA card: `python -m pytest -m gpu -n 0 tests/engine/test_gpu.py`, two minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.config import EngineConfig
from src.engine.checkpoint import prepare_parts
from src.engine.loop import fit
from src.engine.runtime import Runtime, computes_natively, start_runtime
from src.engine.step import LAG, LossGuard, train_step
from src.losses.classification import build_loss
from src.losses.segmentation import build_segmentation_loss
from src.models.classifier import build_classifier
from src.models.distilled import Student, show_features
from src.runs import Run
from src.script import UserError
from src.tasks.classification import Classification
from src.tasks.distillation import NAMES, Distillation
from src.tasks.segmentation import Segmentation

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


def test_a_loss_that_is_not_finite_names_its_rows_and_leaves_the_weights_alone(
    tmp_path: Path,
) -> None:
    class Poisoned(Classification):
        calls = 0
        model: Any = None

        def loss(self, model: Any, batch: Any) -> Any:
            type(self).calls += 1
            type(self).model = model
            terms = super().loss(model, batch)
            return {k: v * math.nan for k, v in terms.items()} if 35 in batch["index"] else terms

    task, loader = Poisoned(CLASSES, build_loss("cross_entropy")), Pinned(batch_size=8)
    with pytest.raises(UserError, match="images 32, 33, 34, 35"):
        train(tmp_path, "fp32", task=task, loader=loader, batch_size=8)
    assert 0 <= Poisoned.calls - 5 <= LAG + 1, "steps begun after the fifth"
    assert all(bool(torch.isfinite(p).all()) for p in Poisoned.model.parameters())


def without_tf32(precision: str) -> Runtime:
    runtime = start_runtime("cuda", precision)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return runtime


def noise_batch(step: int, rows: int = 16, side: int = 96) -> dict[str, Tensor]:
    """Images of ten classes whose brightness depends on the class."""
    generator = torch.Generator().manual_seed(step)
    target = torch.randint(0, 10, (rows,), generator=generator)
    shape = (rows, 3, side, side)
    noise = torch.randint(0, 128, shape, generator=generator, dtype=torch.uint8)
    image = noise + (127 * target // 10).to(torch.uint8)[:, None, None, None]
    return {"image": image, "target": target, "index": torch.arange(rows)}


def step_losses(runtime: Runtime, folder: Path) -> list[float]:
    torch.manual_seed(0)
    model = build_classifier("resnet18", 10, image_size=96)
    config = EngineConfig(batch_size=16, ema_decay=0, lr=1e-4)
    parts = prepare_parts(model.train(), config, runtime)
    guard = LossGuard(Run(folder), runtime, [], 0)
    task, found = Classification(10, build_loss("cross_entropy")), []
    for step in range(40):
        batch = runtime.upload(noise_batch(step))
        terms = train_step(parts, task, batch, guard, epoch=0, seed=0, clip=1.0)
        assert terms is not None
        found.append(terms["loss"])
        parts.state.step += 1
    return [float(loss) for loss in found]


def test_forty_steps_are_those_of_the_cpu(tmp_path: Path) -> None:
    host = SimpleNamespace(
        device=torch.device("cpu"), is_main_process=True, process_index=0, num_processes=1
    )
    expected = step_losses(Runtime(host), tmp_path)  # type: ignore[arg-type]
    found = step_losses(without_tf32("fp32").with_choice("fp32", channels_last=True), tmp_path)
    for step, tolerance in ((1, 1e-5), (10, 1e-3), (40, 3e-2)):
        assert found[step - 1] == pytest.approx(expected[step - 1], rel=tolerance), step
    low = "bf16" if computes_natively("cuda", "bf16") else "fp16"
    rough = step_losses(start_runtime("cuda", low), tmp_path)
    assert rough[9] == pytest.approx(expected[9], rel=2e-2)


def mask_losses(runtime: Runtime) -> dict[str, Tensor]:
    """Protocol loss of a map whose sums pass the largest number of fp16."""
    mask = torch.zeros(4, 512, 512, dtype=torch.long)
    mask[:, :, 128:] = 1
    logits = torch.randn(4, 21, 512, 512, generator=torch.Generator().manual_seed(0))
    task = Segmentation(tuple(map(str, range(21))), build_segmentation_loss("protocol + ce"))
    with runtime.autocast():
        return task.loss(torch.nn.Identity(), runtime.upload({"image": logits, "mask": mask}))


def distillation_losses(runtime: Runtime) -> dict[str, Tensor]:
    """A distillation's loss and the sizes of its terms on large feature maps."""
    torch.manual_seed(0)
    net, teacher = (build_classifier("resnet18", 10, image_size=512) for _ in range(2))
    teacher = runtime.place(teacher).eval().requires_grad_(False)
    weights = {"kl": 0.3, "attention": 0.3, "similarity": 0.3, "feature": 0.3}
    inner = Classification(10, build_loss("cross_entropy"))
    task = Distillation(inner, teacher, show_features, weights)
    student = runtime.place(Student(net, None, len(NAMES)))
    with runtime.autocast():
        found = task.loss(student, runtime.upload(noise_batch(0, 8, 512)))
    found["loss"].backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    return {key: v.detach() for key, v in found.items() if not key.endswith("_share")}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("losses", [mask_losses, distillation_losses])
def test_losses_of_large_maps_hold_in_low_precision(losses: Any, precision: str) -> None:
    if not computes_natively("cuda", precision):
        pytest.skip("bf16 is emulated on this card")
    expected, found = losses(without_tf32("fp32")), losses(without_tf32(precision))
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=0.1), name
