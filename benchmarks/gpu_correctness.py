"""Correctness steps of the GPU check: the card, parity, guards, short memory, losses."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report import NUM_CLASSES, Report, Setting
from benchmarks.timing import num_cores
from src.config import EngineConfig
from src.data.dataset import default_num_workers
from src.engine.checkpoint import prepare_parts
from src.engine.loop import fit
from src.engine.runtime import Runtime, default_precision, start_runtime
from src.engine.step import LAG, LossGuard, train_step
from src.losses.classification import build_loss
from src.models.classifier import build_classifier
from src.runs import Run
from src.script import UserError
from src.tasks.classification import Classification

GIB = 2.0**30


def machine(setting: Setting, report: Report) -> None:
    """Name the card and what it can do at most; check the precision chosen for it."""
    shm = shutil.disk_usage("/dev/shm").free / GIB if Path("/dev/shm").exists() else 0.0
    kind = setting.device
    report.fact(f"{num_cores()} cores, {default_num_workers(kind)} loader processes")
    report.fact(f"/dev/shm {shm:.1f} GiB free")
    chosen = default_precision(kind)
    if kind != "cuda":
        report.expect(chosen == "fp32", f"precision {chosen}")
        return
    card = torch.cuda.get_device_properties(0)
    report.fact(f"{card.name}, {card.total_memory / GIB:.0f} GiB, sm_{card.major}{card.minor}")
    report.fact(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    wanted = "bf16" if card.major >= 8 else "fp16"
    report.expect(chosen == wanted, f"precision {chosen}")
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float16
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    ms = milliseconds(lambda: a @ b, 10)
    report.fact(f"matrix product of {side}: {2 * side**3 / ms / 1e9:,.0f} TFLOP/s")
    ms = milliseconds(lambda: a.copy_(b), 50)
    report.fact(f"copy {2 * a.nbytes / ms / 1e6:,.0f} GB/s")


def milliseconds(function: Callable[[], object], times: int) -> float:
    """Return what one call costs the card."""
    for _ in range(3):
        function()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(times):
        function()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / times


def read_metrics(run: Run) -> list[dict[str, str]]:
    """Return the rows of ``metrics.csv``."""
    return list(csv.DictReader(io.StringIO(run.metrics.read_text(encoding="utf-8"))))


def allow_tf32(on: bool) -> None:
    """Let fp32 products be rounded to ten bits, or not."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def classification() -> Classification:
    """Return the task of all steps."""
    return Classification(NUM_CLASSES, build_loss("cross_entropy"))


class Batches:
    """Batches of noise by step, each row with an index of its own, as the loader gives them."""

    def __init__(self, rows: int, size: int, steps: int) -> None:
        self.rows, self.size, self.steps = rows, size, steps
        self.batch_sampler = self
        self.num_rows = rows * steps

    def __len__(self) -> int:
        return self.steps

    def start(self, epoch: int, step: int = 0) -> None:
        """Nothing to set: every epoch is the same and is seen whole."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in range(self.steps):
            yield self.batch(step)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return images whose brightness depends on the class."""
        generator = torch.Generator().manual_seed(step)
        target = torch.randint(0, NUM_CLASSES, (self.rows,), generator=generator)
        shape = (self.rows, 3, self.size, self.size)
        noise = torch.randint(0, 128, shape, generator=generator, dtype=torch.uint8)
        image = noise + (127 * target // NUM_CLASSES).to(torch.uint8)[:, None, None, None]
        index = torch.arange(step * self.rows, (step + 1) * self.rows)
        return {"image": image, "target": target, "index": index}


def parity(setting: Setting, report: Report) -> None:
    """Train the same 40 steps in fp32 on the CPU and on the device; then in low precision."""
    runtime = start_runtime(setting.device, "fp32")
    allow_tf32(False)
    torch.backends.cudnn.benchmark = False
    host = SimpleNamespace(
        device=torch.device("cpu"), is_main_process=True, process_index=0, num_processes=1
    )
    low = "fp32" if setting.device == "cpu" else default_precision(setting.device)
    expected = step_losses(setting, Runtime(host))  # type: ignore[arg-type]
    found = step_losses(setting, runtime.with_choice("fp32", channels_last=True))
    rough = step_losses(setting, runtime.with_choice(low, channels_last=True))
    for step, tolerance in ((1, 1e-5), (10, 1e-3), (40, 3e-2)):
        off = abs(found[step - 1] / expected[step - 1] - 1)
        report.expect(off <= tolerance, f"loss of step {step} off by {off:.1e} of the CPU's")
    off = abs(rough[9] / expected[9] - 1)
    report.expect(off <= 2e-2, f"{low}: step 10 off by {off:.1e}")


def step_losses(setting: Setting, runtime: Runtime) -> list[float]:
    """Return the losses of 40 steps."""
    name, size, rows = setting.pick(("resnet18", 96, 16), ("test_resnet", 32, 8))
    torch.manual_seed(0)
    model = build_classifier(name, NUM_CLASSES, image_size=size)
    config = EngineConfig(batch_size=rows, ema_decay=0, lr=1e-4)
    parts = prepare_parts(model.train(), config, runtime)
    guard = LossGuard(Run(setting.folder), runtime, [], 0)
    batches, found = Batches(rows, size, 40), []
    for batch in batches:
        terms = train_step(
            parts, classification(), runtime.upload(batch), guard, epoch=0, seed=0, clip=1.0
        )
        assert terms is not None
        found.append(terms["loss"])
        parts.state.step += 1
    return [float(loss) for loss in found]


@dataclass
class Faulty:
    """A task whose loss can be made to fail."""

    inner: Classification
    fault: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
    calls: int = 0

    def loss(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the inner task's loss after the fault."""
        self.calls += 1
        return self.fault(batch, self.inner.loss(model, batch))


def guards(setting: Setting, report: Report) -> None:
    """Inject a loss that is not finite; start fp16 from a scale that must overflow."""
    name, size, rows = setting.pick(("resnet18", 96, 16), ("test_resnet", 32, 8))
    runtime = start_runtime(setting.device)
    model = build_classifier(name, NUM_CLASSES, image_size=size)
    bad_step, batches = 7, Batches(rows, size, 20)
    bad_row = bad_step * rows + 3

    def poison(batch: dict[str, Tensor], terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v * math.nan for k, v in terms.items()} if bad_row in batch["index"] else terms

    task = Faulty(classification(), poison)
    message = ""
    try:
        train(setting, model, task, batches, runtime, "poisoned")
    except UserError as error:
        message = str(error)
    names = [f"row{i}" for i in range(bad_step * rows, bad_step * rows + 4)]
    report.expect(
        all(n in message for n in names), f"rows of a loss that is NaN named: {message[:90]}"
    )
    late = task.calls - bad_step - 1
    report.expect(0 <= late <= LAG + 1, f"{late} steps begun after it")
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    report.expect(finite, "weights finite")
    fp16 = runtime.with_choice("fp16", runtime.channels_last)
    scaler = torch.amp.GradScaler(setting.device, init_scale=2.0**32)
    fp16.__dict__["scaler"] = scaler  # a cached property
    model = build_classifier(name, NUM_CLASSES, image_size=size)
    run = train(setting, model, classification(), batches, fp16, "scaled", epochs=4)
    trained = [float(row["train_loss"]) for row in read_metrics(run)]
    finite = all(map(math.isfinite, trained)) and trained[-1] < trained[0]
    report.expect(finite, f"fp16 from a scale of 2^32: loss {trained[0]:.3f} → {trained[-1]:.3f}")
    scale = math.log2(scaler.get_scale())
    report.expect(scale < 32, f"scale 2^{scale:.0f} at the end")


def train(
    setting: Setting, model: Any, task: Any, batches: Batches, runtime: Runtime, folder: str,
    *, epochs: int = 1,
) -> Run:  # fmt: skip
    """Fit ``model`` without a held-out fold; return its folder."""
    run = Run(setting.folder / folder)
    config = EngineConfig(batch_size=batches.rows, epochs=epochs, lr=3e-4, ema_decay=0)
    names = [f"row{i}" for i in range(batches.num_rows)]
    fit(model, task, batches, None, config=config, run=run, runtime=runtime, names=names)
    return run


def memory(setting: Setting, report: Report) -> None:
    """Train with a twentieth of the card's memory at a batch that does not fit into it."""
    name, size, rows = setting.pick(("resnet50", 224, 256), ("test_resnet", 32, 16))
    runtime = start_runtime(setting.device)

    def fault(batch: dict[str, Tensor], terms: dict[str, Tensor]) -> dict[str, Tensor]:
        if setting.device == "cpu" and len(batch["image"]) > 4:  # nothing bounds it there
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return terms

    model = build_classifier(name, NUM_CLASSES, image_size=size)
    if setting.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.05)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        train(
            setting, model, Faulty(classification(), fault), Batches(rows, size, 3), runtime, "oom"
        )
    halved = [line for line in printed.getvalue().splitlines() if "micro-batch" in line]
    report.expect(bool(halved), f"micro-batch of {rows} halved {len(halved)} times, run ended well")
    for line in halved[-1:]:
        report.fact(line.partition(": ")[2])


def losses(setting: Setting, report: Report) -> None:
    """Compare losses of large maps in the device's low precisions with fp32."""
    runtime = start_runtime(setting.device)
    allow_tf32(False)
    low = ("bf16",) if setting.device == "cpu" else tuple({runtime.precision, "fp16"})
    for title, loss in (("masks", mask_losses), ("distillation", distillation_losses)):
        expected = loss(setting, runtime.with_choice("fp32", channels_last=False))
        for precision in low:
            found = loss(setting, runtime.with_choice(precision, channels_last=False))
            off = {name: abs(found[name] / expected[name] - 1) for name in expected}
            worst = max(off, key=lambda name: math.inf if math.isnan(off[name]) else off[name])
            report.expect(
                all(value <= 0.1 for value in off.values()),
                f"{title}, {precision}: {worst} off by {off[worst]:.1e} of {expected[worst]:.3g}",
            )


def mask_losses(setting: Setting, runtime: Runtime) -> dict[str, float]:
    """Return the protocol loss of a map whose sums pass the largest number of fp16."""
    from src.losses.segmentation import build_segmentation_loss
    from src.tasks.segmentation import Segmentation

    side, classes = setting.pick(512, 64), 21
    mask = torch.zeros(4, side, side, dtype=torch.long)
    mask[:, :, side // 4 :] = 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, classes, side, side, generator=generator)
    task = Segmentation(tuple(map(str, range(classes))), build_segmentation_loss("protocol + ce"))
    with runtime.autocast():
        found = task.loss(torch.nn.Identity(), runtime.upload({"image": logits, "mask": mask}))
    return {name: float(value) for name, value in found.items()}


def distillation_losses(setting: Setting, runtime: Runtime) -> dict[str, float]:
    """Return a distillation's loss and the sizes of its terms on large feature maps."""
    from src.models.distilled import Student, show_features
    from src.tasks.distillation import NAMES, Distillation

    name, size = setting.pick(("resnet18", 512), ("test_resnet", 64))
    torch.manual_seed(0)
    net, teacher = (build_classifier(name, NUM_CLASSES, image_size=size) for _ in range(2))
    teacher = runtime.place(teacher).eval().requires_grad_(False)
    weights = {"kl": 0.3, "attention": 0.3, "similarity": 0.3, "feature": 0.3}
    task = Distillation(classification(), teacher, show_features, weights)
    student = runtime.place(Student(net, None, len(NAMES)))
    with runtime.autocast():
        found = task.loss(student, runtime.upload(Batches(8, size, 1).batch(0)))
    found["loss"].backward()
    finite = all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    sizes = {
        key: float(value.detach()) for key, value in found.items() if not key.endswith("_share")
    }
    return sizes if finite else dict.fromkeys(sizes, math.nan)
