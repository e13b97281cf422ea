"""Speed steps of the GPU check: loader, loop, presets, layouts, compilation."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmarks.gpu_report import Report, Setting
from benchmarks.timing import ROOT, alternate, paired, seconds, spread
from benchmarks.train_step import (
    LR,
    NUM_CLASSES,
    Resident,
    floor,
    loop,
    noise_batch,
    photograph_loader,
    run_epoch,
)
from src.config import EngineConfig, FoldConfig
from src.engine.autotune import autotune
from src.engine.checkpoint import prepare_parts
from src.engine.runtime import Runtime, start_runtime
from src.losses.classification import build_loss
from src.models.classifier import Classifier, build_classifier
from src.reader import parse
from src.tasks.classification import Classification

GIB = 2.0**30
ROUNDS = 3
CONV_NETS = (("convnext_base", 224, 64), ("resnet152d", 224, 48))
PRESETS = ROOT / "configs" / "classify.yaml"


def build(setting: Setting, name: str, size: int, **options: Any) -> Classifier:
    """Build a net with random weights on the device itself, where that takes a moment."""
    with torch.device(setting.device):
        return build_classifier(name, NUM_CLASSES, image_size=size, **options)


def start(setting: Setting) -> Runtime:
    """Return the runtime as a long run has it."""
    torch.backends.cudnn.benchmark = True
    return start_runtime(setting.device)


def task() -> Classification:
    """Return what all nets learn."""
    return Classification(NUM_CLASSES, build_loss("cross_entropy"))


def config(rows: int, ema: float = 0.0) -> EngineConfig:
    """Return the options of a loop that never ends by itself."""
    return EngineConfig(batch_size=rows, epochs=10**5, ema_decay=ema, lr=LR, warmup_epochs=0)


def take_turns(epochs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Return the seconds of three epochs of each, in turns, after one to warm up."""
    return alternate({k: (lambda e=e: seconds(e)) for k, e in epochs.items()}, ROUNDS)


def each(
    setting: Setting, full: Sequence[tuple[str, int, int]], tiny: str
) -> Iterator[tuple[str, int, int]]:
    """Yield (network, px, batch) of those that are wanted, each on a card that is free again."""
    for name, size, rows in setting.pick(full, ((tiny, 32, 4),)):
        if setting.wants(name):
            release()
            yield name, size, rows


def release() -> None:
    """Give the card's memory back between two nets."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Return the largest memory in use since :func:`release`."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else math.nan


def loaders(setting: Setting, report: Report) -> None:
    """Measure the loader alone: decoded images from memory, and files decoded anew."""
    steps, rows = setting.pick(24, 2), setting.pick(64, 4)
    small = images(setting.folder / "data", steps * rows)
    large = images(setting.folder / "large", steps * rows)
    cases = (("640×480", "ram", small), ("640×480", "none", small), ("1920×1080", "none", large))
    for text, cache, names in cases:
        for count in setting.pick((8, 15), (1, 2)):
            loader = photograph_loader(
                setting.folder, names, setting.pick(224, 32), rows, workers=count, cache=cache,
                fill=False,
            )  # fmt: skip
            read(loader)  # fills the cache
            rate = steps * rows / seconds(partial(read, loader))
            cells = f"{text}, cache {cache}", count, f"{rate:,.0f}"
            report.row("Loader alone, 224 px", ("images", "processes", "images/s"), cells)
            del loader  # and its processes


def throughput(setting: Setting, report: Report) -> None:
    """Measure bare steps, the loop, and the loop on photographs."""
    runtime = start(setting)
    steps, workers = setting.pick((40, 15), (2, 2))
    nets = (("convnext_base", 224, 64), ("resnet50", 224, 64))
    for name, size, rows in each(setting, nets, "test_convnext"):
        model, batch = build(setting, name, size, pool="gem"), noise_batch(rows, size)
        resident = Resident(runtime.upload(batch), steps)
        names = images(setting.folder / "data", steps * rows)
        photographs = photograph_loader(
            setting.folder, names, size, rows, workers=workers, fill=False
        )
        options = config(rows, ema=0.998)
        timed = take_turns(
            {
                "floor": floor(model, batch, runtime, steps),
                "loop": loop(model, task(), resident, runtime, options),
                "data": loop(model, task(), photographs, runtime, options),
            }
        )
        ratios = {key: paired(timed["floor"], timed[key]) for key in ("loop", "data")}
        report.row(
            f"Loop with EMA beside bare PyTorch, {runtime.precision}, n = {ROUNDS} × {steps} steps",
            ("network, px, batch", "floor, images/s", "loop ÷ floor",
             f"loop + photographs in memory, {workers} processes"),
            (f"{name}, {size}, {rows}", spread([rows * steps / s for s in timed["floor"]], 0),
             *(spread(ratio, 2) for ratio in ratios.values())),
        )  # fmt: skip
        report.fact(
            ", ".join([name, *(f"{k} {statistics.median(v):.2f}" for k, v in ratios.items())])
        )


def read(loader: Iterable[object]) -> None:
    """Read an epoch."""
    for _ in loader:
        pass


def images(folder: Path, count: int) -> list[str]:
    """Return ``count`` paths of images, from the first again where there are fewer."""
    found = [str(path) for path in sorted(folder.rglob("*.jpg"))]
    return [found[i % len(found)] for i in range(count)]


def presets(setting: Setting, report: Report) -> None:
    """Measure training steps of the seven presets: at their micro-batch, and at the whole batch."""
    runtime = start(setting)
    for name in yaml.safe_load(PRESETS.read_text(encoding="utf-8"))["models"]:
        if not setting.wants(name):
            continue
        flags = ["--config", str(PRESETS), "--model", name]
        row = parse(FoldConfig, flags, prog="train_fold.py", description="", row_by="model")
        size, batch = setting.pick((row.image_size, row.batch_size), (32, 4))
        micros = {setting.pick(row.micro_batch_size or batch, 2), batch}
        begun = time.perf_counter()
        net = setting.pick(row.timm_id, "test_efficientnet")
        model = build(setting, net, size, pool=row.pool, drop_path_rate=row.drop_path_rate)
        model.frozen_norms = row.norms == "frozen"
        for micro in sorted(micros):
            release()
            options = replace(row, batch_size=batch, micro_batch_size=micro, epochs=1)
            options = replace(options, grow_micro_batch=False)  # so short a run does not search
            _, rate, used = step_rate(model, size, batch, runtime, options)
            cells = (name, size, batch, used, f"{rate:,.0f}", f"{peak_gib():.1f}",
                     f"{20 * 10_000 / rate / 60:,.0f}")  # fmt: skip
            title = f"The seven presets, {runtime.precision}, cuDNN's first choice of algorithms"
            report.row(title, PRESET_HEADER, cells)
        report.fact(f"{name} {time.perf_counter() - begun:.0f} s")
        del model


PRESET_HEADER = ("preset", "px", "batch", "micro-batch", "images/s", "peak memory, GiB",
                 "minutes for 20 epochs of 10,000 images")  # fmt: skip


def step_rate(
    model: nn.Module, size: int, rows: int, runtime: Runtime, options: EngineConfig
) -> tuple[float, float, int]:
    """Return seconds of the first two steps, images/s of the next four, micro-batch that fitted."""
    parts, batch = prepare_parts(copy.deepcopy(model), options, runtime), noise_batch(rows, size)
    times = [
        seconds(partial(run_epoch, parts, task(), Resident(runtime.upload(batch), steps), options))
        for steps in (2, 4)  # the first two to warm up
    ]
    return times[0], 4 * rows / times[1], min(rows, parts.state.micro_batch_size)


def layouts(setting: Setting, report: Report) -> None:
    """Let autotune choose a layout in a cold process, then time both warm."""
    runtime = start(setting)
    nets = (("resnet152d", 224, 24), ("tf_efficientnet_lite0", 224, 64))
    for name, size, rows in each(setting, nets, "test_resnet"):
        model, batch = build(setting, name, size, pool="gem"), noise_batch(rows, size)
        begun = time.perf_counter()
        chosen, cold, _ = autotune(model, task(), batch, runtime, config(rows))
        spent = time.perf_counter() - begun
        steps = setting.pick(10, 1)
        timed = take_turns(
            {
                layout: floor(model, batch, runtime.with_choice(runtime.precision, on), steps)
                for layout, on in (("channels_last", True), ("channels_first", False))
            }
        )
        best = {layout: statistics.median(times) for layout, times in timed.items()}
        choice = "channels_last" if chosen.channels_last else "channels_first"
        report.row(
            f"Layouts, {runtime.precision}, n = {ROUNDS} × {steps} steps",
            ("network, px, batch", "channels_first, ms", "channels_last, ms", "gain",
             "autotune, cold", "its time, s"),
            (f"{name}, {size}, {rows}",
             *(spread([1e3 * s / steps for s in timed[k]], 1) for k in sorted(timed)),
             f"{best['channels_first'] / best['channels_last']:.2f}",
             f"{choice} ({', '.join(f'{k} {1e3 * s:.0f} ms' for k, s in cold.items())})",
             f"{spent:.1f}"),
        )  # fmt: skip
        right = best[choice] <= 1.05 * min(best.values()) or setting.tiny
        gain = best["channels_first"] / best["channels_last"]
        report.expect(right, f"{name}: {choice} chosen, channels_last {gain:.2f} × as fast")
        del model, timed


def compiling(setting: Setting, report: Report) -> None:
    """Compile the loop's network, with an odd last batch; count compilations and the gain."""
    from torch._dynamo.utils import counters

    runtime = start(setting)
    for name, size, rows in each(setting, CONV_NETS[:1], "test_convnext"):
        counters.clear()
        torch._dynamo.reset()
        model, steps = build(setting, name, size, pool="gem"), setting.pick(12, 2)
        batches = OddLast(runtime.upload(noise_batch(rows, size)), steps)
        compiled = runtime.with_choice(runtime.precision, runtime.channels_last, compiled=True)
        epochs = {
            "eager": loop(model, task(), batches, runtime, config(rows)),
            "compiled": loop(model, task(), batches, compiled, config(rows)),
        }
        first = seconds(epochs["compiled"])
        timed = take_turns(epochs)
        graphs = counters["stats"]["unique_graphs"]
        gains = paired(timed["eager"], timed["compiled"])
        report.row(
            f"torch.compile, {runtime.precision}, n = {ROUNDS} × {steps} steps, an odd last batch",
            ("network, px, batch", "eager, ms a step", "compiled", "eager ÷ compiled",
             "first epoch, s", "graphs"),
            (f"{name}, {size}, {rows}",
             *(spread([1e3 * s / steps for s in timed[k]], 1) for k in ("eager", "compiled")),
             spread(gains, 2), f"{first:.0f}", graphs),
        )  # fmt: skip
        report.expect(
            graphs == 1,  # the last batch is computed without
            f"{name}: {graphs} graphs, {statistics.median(gains):.2f} × after {first:.0f} s",
        )
        del model, epochs


def search(setting: Setting, report: Report) -> None:
    """Let cuDNN time its algorithms, and take its first choice: what the search costs and gains."""
    runtime = start(setting)
    for name, size, rows in each(setting, CONV_NETS, "test_resnet"):
        model = build(setting, name, size, pool="gem")
        for on in (False, True):
            options = config(rows) if on else replace(config(rows), epochs=1)  # too short for it
            begun, rate, _ = step_rate(model, size, rows, runtime, options)
            report.row(
                f"cuDNN's search, {runtime.precision}, channels_last",
                ("network, px, batch", "search", "first two steps, s", "images/s"),
                (f"{name}, {size}, {rows}", "on" if on else "off", f"{begun:.1f}", f"{rate:,.0f}"),
            )
            report.fact(f"{name}, search {'on' if on else 'off'}: {rate:,.0f} images/s")
        del model


class OddLast(Resident):
    """A resident batch, the last of an epoch being smaller."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in range(self.steps):
            count = len(self.batch["index"]) - (step == self.steps - 1)
            yield {key: value[:count] for key, value in self.batch.items()}
