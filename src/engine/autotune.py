"""Choice of memory layout and precision by timing steps of the real network on this machine.

No setting wins everywhere (a channels_last bf16 resnet18 is twice as fast as NCHW fp32 on one CPU,
an EfficientNet slower), so it is measured, once, before the first step of a run, and recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from src.config import EngineConfig
from src.engine.checkpoint import first_micro_batch
from src.engine.log import say
from src.engine.runtime import (
    CHANNELS_LAST,
    Runtime,
    computes_natively,
    is_out_of_memory,
    release_memory,
    seed_step,
)
from src.files import Json, read_json, refuse_shape, write_json
from src.runs import REMAKE, Run, read_config
from src.script import UserError
from src.tasks.protocols import BatchLoader, Task

BUDGET_S = 10.0  # of all trials on a CPU, where a run takes minutes at least
# Enough to fill two cores, few enough to stay in budget. A GPU is shown the whole micro-batch: on
# less it waits for the host, and every layout costs the same.
TRIAL_ROWS = 16
TIMED_PASSES = 3
START_UP_S = 60.0  # after which a GPU is shown no further setting
# What leaves the default must be faster by more than timing noise, less exact arithmetic by more.
GAIN_FOR_CHANGE = 1.05
GAIN_FOR_BF16 = 1.1


def autotune(
    model: nn.Module, task: Task, batch: dict[str, Tensor], runtime: Runtime, config: EngineConfig
) -> tuple[Runtime, dict[str, float], int]:
    """Return the fastest runtime for training ``model``, a step's seconds in each, and its rows.

    Gradients and buffers are put back as they were; weights are never stepped.
    """
    rows = len(batch["image"])
    if runtime.device.type == "cpu":
        rows = min(rows, TRIAL_ROWS)
    while True:
        shown = {key: value[:rows] for key, value in batch.items()}
        best, seconds = race(model, task, shown, runtime, config)
        if seconds or rows == 1:
            return best, seconds, rows
        rows = (rows + 1) // 2  # memory was short in every setting


def race(
    model: nn.Module, task: Task, batch: dict[str, Tensor], runtime: Runtime, config: EngineConfig
) -> tuple[Runtime, dict[str, float]]:
    """Return the fastest candidate and the seconds of each that fits into memory."""
    on_cpu = runtime.device.type == "cpu"
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    best, best_cost = runtime, float("inf")
    for candidate in candidates(runtime, config):
        spent = time.perf_counter() - started
        if seconds and spent > (BUDGET_S * 0.7 if on_cpu else START_UP_S):
            break
        try:
            # what takes twice as long in its first pass is not shown many more
            budget = min(BUDGET_S - spent, 8 * min(seconds.values(), default=BUDGET_S))
            cost = time_steps(model, task, batch, candidate, budget if on_cpu else BUDGET_S)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) and candidate == runtime:
                raise
            release_memory(runtime.device)
            continue
        seconds[str(candidate)] = round(cost, 4)
        if candidate.precision != "fp32" and on_cpu:
            cost *= GAIN_FOR_BF16
        elif candidate != runtime:
            cost *= GAIN_FOR_CHANGE
        if cost < best_cost:
            best, best_cost = candidate, cost
    return best, seconds


def candidates(runtime: Runtime, config: EngineConfig) -> list[Runtime]:
    """Return what is worth timing on this device, what gains most first: time may be short."""
    settings = [(runtime.precision, runtime.channels_last)]
    if config.precision == "auto" and runtime.device.type == "cpu":
        settings.append(("bf16", runtime.channels_last))
    if config.channels_last == "auto" and runtime.device.type in CHANNELS_LAST:
        settings.append((runtime.precision, not runtime.channels_last))
    return [runtime.with_choice(*setting) for setting in settings]


def time_steps(
    model: nn.Module, task: Task, batch: dict[str, Tensor], runtime: Runtime, budget_s: float
) -> float:
    """Return the seconds of the fastest of up to three forward and backward passes.

    A pass before them is not timed: it allocates, loads kernels and searches algorithms. A CPU's
    counts where it is most of what the budget allows; a GPU's never, nor does the budget.
    """
    on_cpu = runtime.device.type == "cpu"
    model = runtime.place(model).train()
    batch = runtime.upload(batch)
    kept = [buffer.clone() for buffer in model.buffers()]
    best = float("inf")
    started = time.perf_counter()
    try:
        for trial in range(1 + TIMED_PASSES):
            begin = time.perf_counter()
            seed_step(trial)
            with runtime.autocast():
                loss = task.loss(model, batch)["loss"]
            loss.backward()
            loss.item()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            spent = time.perf_counter() - begin
            model.zero_grad(set_to_none=True)
            if trial or (on_cpu and spent > budget_s / 4):
                best = min(best, spent)
            elif not on_cpu:
                started = time.perf_counter()
            if time.perf_counter() - started > budget_s / 3:
                break
    finally:  # also where memory ran out half-way
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)
    return best if best < float("inf") else spent


def measure(
    model: nn.Module, task: Task, loader: BatchLoader, runtime: Runtime, config: EngineConfig
) -> tuple[Runtime, dict[str, float]]:
    """Time the first batch; return the fastest runtime and a step's seconds in each."""
    loader.batch_sampler.start(0)
    keys = next(iter(loader.batch_sampler))
    rows = min(first_micro_batch(config, runtime), len(keys))
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    batch = loader.collate_fn(loader.dataset.__getitems__(keys[:rows]))
    if isinstance(batch, UserError):  # a file that cannot be read, named
        raise batch
    best, seconds, rows = autotune(model, task, batch, runtime, config)
    timed = ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items())
    say(runtime, f"autotune: {best} (a step of {rows}: {timed})")
    return best, seconds


def settle_runtime(
    model: nn.Module,
    task: Task,
    loader: BatchLoader,
    runtime: Runtime,
    run: Run,
    config: EngineConfig,
    identity: str = "",
) -> Runtime:
    """Return the runtime of this run: the one it began with, or the fastest measured now.

    What was chosen is written to ``runtime.json`` before the first step, so that a resumed run
    computes as it began; further folds of a model take over what its first one measured.
    ``identity`` of :func:`src.engine.weights.run_identity` tells a record of another run.
    """
    chosen = runtime.from_main(recorded_choice(run, runtime, config, identity))
    if chosen is None:
        seconds: dict[str, float] = {}
        # a card's defaults won every trial so far, and a trial takes 7 to 23 s (docs/hardware.md)
        alone = runtime.num_processes == 1 and runtime.device.type != "cuda"
        open_options = "auto" in (config.precision, config.channels_last)
        if config.autotune == "on" and open_options and alone:
            runtime, seconds = measure(model, task, loader, runtime, config)
        chosen = {
            **runtime.describe_device(),
            "precision": runtime.precision,
            "channels_last": runtime.channels_last,
            "compiled": config.compile == "on",
            "seconds": seconds,
        }
    if runtime.is_main:
        write_json(run.tuned, chosen | {"run": identity})
    return runtime.with_choice(
        chosen["precision"], chosen["channels_last"], chosen.get("compiled", False)
    )


CHOICE = {"precision": str, "channels_last": bool}


def recorded_choice(
    run: Run, runtime: Runtime, config: EngineConfig, identity: str = ""
) -> Json | None:
    """Return this run's choice, else that of another fold on such a device, else None.

    A choice made on another kind of device or card is none (a run may go on on another card, if
    that has the precision), and an option that is set goes before any choice.
    """
    here = runtime.describe_device()
    for path, chosen in _records(run, runtime, config, identity):
        if chosen["precision"] not in ("fp32", "bf16", "fp16"):
            raise UserError(f"{path}: damaged (precision {chosen['precision']!r}); {REMAKE}")
        own = path.parent == run.folder and chosen.get("device") == here["device"]
        if not own and any(chosen.get(key) != value for key, value in here.items()):
            continue
        if config.precision != "auto":
            chosen["precision"] = runtime.precision
        elif not computes_natively(here["device"], chosen["precision"]):
            say(runtime, f"note: {path} chose {chosen['precision']}, which this card only emulates")
            continue
        if config.channels_last != "auto":
            chosen["channels_last"] = runtime.channels_last
        if config.compile != "auto":
            chosen["compiled"] = config.compile == "on"
        return chosen
    return None


def _records(
    run: Run, runtime: Runtime, config: EngineConfig, identity: str
) -> Iterator[tuple[Path, Json]]:
    """Yield what is on record: this run's ``runtime.json``, its ``config.yaml``, other folds'."""

    def read(path: Path) -> Json:
        record = read_json(path, REMAKE)
        refuse_shape(path, record, CHOICE, REMAKE)
        return record

    def is_ours(record: Json) -> bool:  # earlier versions named no run
        return config.accept_changes or record.get("run", identity) in ("", identity)

    if run.tuned.exists():
        record = read(run.tuned)
        if is_ours(record):
            yield run.tuned, record
        else:
            say(runtime, f"note: {run.tuned}: of another run, and so not used")
    record = {}
    with suppress(UserError):  # none yet, or damaged: it is written anew
        record = read_config(run)["runtime"]
        refuse_shape(run.config, record, CHOICE, "")
    if "run" in record and is_ours(record):
        yield run.config, record
    if config.autotune == "on" and config.precision == config.channels_last == "auto":
        for path in sorted(run.folder.parent.glob(f"fold*/{run.tuned.name}")):
            if path != run.tuned:
                yield path, read(path)
