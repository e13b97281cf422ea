"""Training with everything around it, beside the bare computation; and what autotune is worth.

    python benchmarks/train_step.py                       (twenty minutes on two cores)
    python benchmarks/train_step.py --models resnet18 --sizes 128 --norms frozen --rounds 3

Per network, size and kind of norms (frozen, an option for pretrained nets; of the batch, as all
others are), in one process and in turns:

- floor: bare PyTorch, forward, backward and a fused AdamW on one resident batch of noise;
- loop: `fit`'s epoch on the same resident batch: mixing of seeds, clipping, guards, sums, bar;
- loop + data: the same on JPEG photographs behind `--cache ram`: crop, flip, rotation, colours;
- untuned: loop + data in channels-first fp32, freed memory handed back as glibc does by itself.

All but the last compute in the precision and layout that autotune chose and keep freed memory, as
a run does (`src/engine/cpu.py`); EMA is off. Frozen norms are applied by the convolutions before
them (`src/models/convolutions.py`) in the real loop, by themselves in floor and untuned. Weights
are random: their values do not change the time. One round of each is one epoch of `--steps` steps.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import (
    alternate,
    num_cores,
    paired,
    print_table,
    seconds,
    spread,
    write_photographs,
)

os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))

import torch
from torch import Tensor
from torch.nn import functional as F

from src.config import EngineConfig
from src.data.cache import open_cache
from src.data.canonical import ImageSource, canonical_side
from src.data.dataset import EpochSampler, ImageDataset, make_loader
from src.data.transforms import train_transform
from src.engine.autotune import autotune
from src.engine.checkpoint import Parts, prepare_parts
from src.engine.cpu import keep_freed_memory, set_thresholds, tune_for_cpu
from src.engine.interrupt import Pause
from src.engine.loop import Job, train_epoch
from src.engine.optim import build_optimizer
from src.engine.runtime import Runtime, start_runtime
from src.engine.step import LossGuard
from src.losses.classification import build_loss
from src.models.classifier import build_classifier
from src.models.convolutions import widen_gradients
from src.runs import Run
from src.tasks.classification import Classification

NUM_CLASSES = 100
MODELS = ("tf_efficientnet_lite0", "resnet18")
SIZES = (128, 224)
NORMS = ("frozen", "batch")
LR = 1e-4


class Resident:
    """One batch again and again: a loader without data."""

    def __init__(self, batch: dict[str, Tensor], steps: int):
        self.batch, self.steps = batch, steps
        self.batch_sampler = self

    def __len__(self) -> int:
        return self.steps

    def start(self, epoch: int, step: int = 0) -> None:
        """Nothing to set: every epoch is the same."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.steps):
            yield dict(self.batch)


def noise_batch(rows: int, size: int) -> dict[str, Tensor]:
    """Return a random batch as the loader gives it."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (rows, 3, size, size), generator=generator).to(torch.uint8),
        "target": torch.randint(0, NUM_CLASSES, (rows,), generator=generator),
        "index": torch.arange(rows),
    }


def floor(
    model: torch.nn.Module, batch: dict[str, Tensor], runtime: Runtime, steps: int
) -> Callable[[], None]:
    """Return an epoch of bare steps."""
    model = runtime.place(copy.deepcopy(model)).train()
    batch = runtime.upload(batch)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.02}]
    optimizer = build_optimizer("adamw", groups, LR)

    def epoch() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast():
                loss = F.cross_entropy(model(batch["image"]).float(), batch["target"])
            loss.backward()
            optimizer.step()
        synchronize(runtime)

    return epoch


def loop(
    model: torch.nn.Module, task: Any, loader: Any, runtime: Runtime, config: EngineConfig
) -> Callable[[], None]:
    """Return an epoch of the real loop."""
    parts = prepare_parts(copy.deepcopy(model), config, runtime)
    return lambda: run_epoch(parts, task, loader, config)


def run_epoch(parts: Parts, task: Any, loader: Any, config: EngineConfig) -> None:
    """Train an epoch of the real loop, as if it were the first."""
    runtime, state = parts.runtime, parts.state
    run = Run(Path(tempfile.gettempdir()))  # nothing is written there: the loss stays finite
    guard = LossGuard(run, runtime, [], config.skip_nonfinite)
    state.step = state.epoch = state.rows = 0
    state.sums = {}
    job = Job(task, loader, None, config, run, runtime, None, guard, Pause())
    train_epoch(parts, job, lambda: None)
    synchronize(runtime)


def untuned(epoch: Callable[[], None]) -> Callable[[], None]:
    """Return ``epoch`` as glibc's own thresholds let it run, at their highest (32 and 64 MB)."""

    def plain() -> None:
        set_thresholds(mmap=32 << 20, trim=64 << 20)
        epoch()
        keep_freed_memory()

    return plain


def synchronize(runtime: Runtime) -> None:
    """Wait for the device, where it works on its own."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


def photograph_loader(
    folder: Path, names: list[str], size: int, batch_size: int, *, workers: int = 0,
    cache: str = "ram", fill: bool = True,
) -> Any:  # fmt: skip
    """Return the loader that ``train_fold.py`` would build, its cache filled already or not."""
    source = ImageSource(folder, names, canonical_side(size))
    pixels = open_cache(source, cache, num_workers=workers)
    for row in range(len(names) if fill else 0):
        pixels[row]
    data = ImageDataset(pixels, [row % NUM_CLASSES for row in range(len(names))],
                        train_transform(size, rotate=10.0))  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    order = EpochSampler(len(names), batch_size, shuffle=True)
    return make_loader(data, order, num_workers=workers, device_type=device)


def contest(
    name: str, size: int, norms: str, folder: Path, names: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Measure one network at one size with one kind of norms."""
    config = EngineConfig(
        batch_size=args.batch_size, epochs=10**5, ema_decay=0.0, lr=LR, warmup_epochs=0
    )
    runtime = start_runtime(args.device)
    plain = build_classifier(name, NUM_CLASSES, image_size=size, pool="gem")
    plain.frozen_norms = norms == "frozen"
    widen_gradients(plain)  # of the bare loop, too: else bf16 is out of its reach
    model = copy.deepcopy(plain)
    tune_for_cpu(model, runtime.device)
    task = Classification(NUM_CLASSES, build_loss("cross_entropy"))
    batch = noise_batch(args.batch_size, size)
    tuned: list[Runtime] = []
    tuning = seconds(lambda: tuned.append(autotune(model, task, batch, runtime, config)[0]))
    best, slow = tuned[0], runtime.with_choice("fp32", channels_last=False)
    photographs = photograph_loader(folder, names, size, args.batch_size)
    resident = Resident(batch, args.steps)
    epochs = {
        "floor": floor(plain, batch, best, args.steps),
        "loop": loop(model, task, resident, best, config),
        "data": loop(model, task, photographs, best, config),
        "untuned": untuned(loop(plain, task, photographs, slow, config)),
    }
    timed = alternate({k: (lambda e=e: seconds(e)) for k, e in epochs.items()}, args.rounds)
    layout = "channels_last" if best.channels_last else "channels_first"
    rows = args.batch_size * args.steps
    return timed | {"tuning": tuning, "choice": f"{best.precision} {layout}", "rows": rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="steps of one epoch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        names = write_photographs(folder, args.batch_size * args.steps)
        results = {
            f"{name}, {size}, {norms}": contest(name, size, norms, folder, names, args)
            for norms in args.norms
            for name in args.models
            for size in args.sizes
        }
    print(
        f"n = {args.rounds} rounds of {args.steps} steps of {args.batch_size}, "
        f"{torch.get_num_threads()} threads; median (least … most) over the rounds\n"
    )
    print_table(
        (
            "network, px, norms",
            "computed in",
            "floor, images/s",
            "loop ÷ floor",
            "loop + data ÷ floor",
        ),
        (
            (
                title,
                r["choice"],
                spread([r["rows"] / s for s in r["floor"]], 1),
                spread(paired(r["floor"], r["loop"])),
                spread(paired(r["floor"], r["data"])),
            )
            for title, r in results.items()
        ),
    )
    print_table(
        ("network, px, norms", "untuned, images/s", "autotuned, images/s", "gain", "autotune, s"),
        (
            (
                title,
                spread([r["rows"] / s for s in r["untuned"]], 1),
                spread([r["rows"] / s for s in r["data"]], 1),
                spread(paired(r["untuned"], r["data"])),
                f"{r['tuning']:.1f}",
            )
            for title, r in results.items()
        ),
    )


if __name__ == "__main__":
    main()
