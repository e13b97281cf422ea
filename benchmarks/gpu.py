"""The training comparison on a CUDA card, in bf16, and the proof that no step waits for the host.

    python benchmarks/gpu.py

convnext_base at 224 px and convnext_large at 384 px: bare PyTorch on a resident batch, the loop on
the same batch, the loop on photographs with as many loader processes as there are cores (8 at
least). Writes benchmarks/gpu.md with the card's name. Without a card it says so and ends well.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import (
    ROOT,
    alternate,
    describe_machine,
    num_cores,
    paired,
    print_table,
    seconds,
    spread,
    write_photographs,
)

CONTESTS = {"convnext_base": (224, 64), "convnext_large": (384, 24)}


def refuse_syncs(steps: int) -> Callable[[], None]:
    """Return what to call after each step, so that torch raises where the host waits for the card.

    The first two steps of an epoch of ``steps`` are let off, for what is allocated once.
    """
    import torch

    done = itertools.count(1)

    def after_step() -> None:
        place = next(done) % steps
        if place in (2, 0):
            torch.cuda.set_sync_debug_mode("error" if place == 2 else "default")

    return after_step


def contest(name: str, size: int, rows: int, folder: Path, args: argparse.Namespace) -> list[str]:
    """Measure one network; return the cells of its row."""
    import torch

    from benchmarks.train_step import (
        LR,
        NUM_CLASSES,
        Resident,
        floor,
        loop,
        noise_batch,
        photograph_loader,
    )
    from src.config import EngineConfig
    from src.engine.runtime import start_runtime
    from src.losses.classification import build_loss
    from src.models.classifier import build_classifier
    from src.tasks.classification import Classification

    runtime = start_runtime("cuda", "bf16")
    config = EngineConfig(batch_size=rows, epochs=10**6, ema_decay=0.998, lr=LR, warmup_epochs=0)
    without_ema = EngineConfig(batch_size=rows, epochs=10**6, ema_decay=0, lr=LR, warmup_epochs=0)
    model = build_classifier(name, NUM_CLASSES, image_size=size, pool="gem")
    task: Any = Classification(NUM_CLASSES, build_loss("cross_entropy"))
    batch = noise_batch(rows, size)
    resident = Resident(runtime.upload(batch), args.steps)
    watched = loop(model, task, resident, runtime, config, refuse_syncs(args.steps))
    watched()
    del watched
    torch.cuda.empty_cache()
    names = write_photographs(folder, rows * args.steps, (720, 960))
    photographs = photograph_loader(folder, names, size, rows, workers=max(8, num_cores() - 1))
    epochs = {
        "floor": floor(model, batch, runtime, args.steps),
        "loop": loop(model, task, resident, runtime, without_ema),
        "data": loop(model, task, photographs, runtime, without_ema),
    }
    timed = alternate({k: (lambda e=e: seconds(e)) for k, e in epochs.items()}, args.rounds)
    return [
        f"{name}, {size}, {rows}",
        spread([rows * args.steps / s for s in timed["floor"]], 0),
        spread(paired(timed["floor"], timed["loop"])),
        spread(paired(timed["floor"], timed["data"])),
        "none",
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of one epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "gpu.md")
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print("skipped: no CUDA card here; `python benchmarks/gpu.py` measures where there is one")
        return
    rows = []
    for name, (size, batch_size) in CONTESTS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(contest(name, size, batch_size, Path(folder), args))
    head = (
        f"{describe_machine()}\n- {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}\n"
        f"- n = {args.rounds} rounds of {args.steps} steps, bf16; median (least … most)\n\n"
    )
    print(head)
    header = ("network, px, batch", "floor, images/s", "loop ÷ floor", "loop + data ÷ floor",
              "host syncs a step")  # fmt: skip
    print_table(header, rows)
    lines = [" | ".join(cells) for cells in (header, ("---",) * len(header), *rows)]
    table = "\n".join(f"| {line} |" for line in lines)
    args.output.write_text(f"# Training on a GPU\n\n{head}{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
