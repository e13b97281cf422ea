"""Choose layout, precision and compilation by timing steps of the real network on this machine.

No setting wins everywhere (a channels_last bf16 resnet18 is twice as fast as NCHW fp32 on one CPU,
an EfficientNet slower), so it is measured, once, before the first step of a run, and recorded.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from src.config import EngineConfig
from src.engine.log import say
from src.engine.runtime import Runtime, is_out_of_memory, release_memory, seed_step
from src.files import read_json, write_json
from src.runs import Run
from src.script import UserError

BUDGET_S = 10.0
TRIAL_ROWS = 16  # enough to fill two cores or show a GPU's layout; small enough to stay in budget
# Less exact arithmetic must repay itself by more than timing noise.
GAIN_FOR_BF16 = 1.1
# Compiling takes a minute or two, and some of it again whenever a run goes on.
COMPILE_AFTER_S = 1800.0  # estimated training in eager mode; shorter runs are not tried
GAIN_FOR_COMPILED = 1.05


def autotune(
    model: nn.Module, task: Any, batch: dict[str, Tensor], runtime: Runtime, config: EngineConfig
) -> tuple[Runtime, dict[str, float]]:
    """Return the fastest runtime for training ``model`` and the seconds a step took in each.

    Gradients and buffers are put back as they were; weights are never stepped.
    """
    seconds: dict[str, float] = {}
    batch = {key: value[:TRIAL_ROWS] for key, value in batch.items()}
    started = time.perf_counter()
    best, best_cost = runtime, float("inf")
    for candidate in candidates(runtime, config):
        if seconds and time.perf_counter() - started > BUDGET_S * 0.7:
            break
        left = BUDGET_S - (time.perf_counter() - started)
        try:
            cost = time_steps(model, task, batch, candidate, left)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) and candidate == runtime:
                raise
            release_memory(runtime.device)
            continue
        layout = "channels_last" if candidate.channels_last else "channels_first"
        seconds[f"{candidate.precision} {layout}"] = round(cost, 4)
        if candidate.precision != "fp32" and runtime.device.type == "cpu":
            cost *= GAIN_FOR_BF16
        if cost < best_cost:
            best, best_cost = candidate, cost
    return best, seconds


def candidates(runtime: Runtime, config: EngineConfig) -> list[Runtime]:
    """Return what is worth timing on this device: the default first, then what is left open."""
    settings = [(runtime.precision, runtime.channels_last)]
    if config.channels_last == "auto":
        settings.append((runtime.precision, not runtime.channels_last))
    if config.precision == "auto" and runtime.device.type == "cpu":
        settings.append(("bf16", runtime.channels_last))
    return [runtime.with_choice(*setting) for setting in settings]


def time_steps(
    model: nn.Module, task: Any, batch: dict[str, Tensor], runtime: Runtime, budget_s: float
) -> float:
    """Return the seconds of the fastest of up to three forward and backward passes."""
    model = runtime.place(model).train()
    batch = runtime.upload(batch)
    kept = [buffer.clone() for buffer in model.buffers()]
    best = float("inf")
    started = time.perf_counter()
    try:
        for trial in range(4):
            begin = time.perf_counter()
            seed_step(trial)
            with runtime.autocast():
                loss = task.loss(model, batch)["loss"]
            loss.backward()
            loss.item()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            spent = time.perf_counter() - begin
            if trial or spent > budget_s / 4:  # the first pass also pays for allocation
                best = min(best, spent)
            model.zero_grad(set_to_none=True)
            if time.perf_counter() - started > budget_s / 3:
                break
    finally:  # also where memory ran out half-way
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)
    return best if best < float("inf") else spent


def compiling_pays(
    model: nn.Module, task: Any, batch: dict[str, Tensor], runtime: Runtime, num_steps: int
) -> bool:
    """Compile ``model``, tell whether ``num_steps`` such steps repay it, and say what was seen.

    Where there is no compiler, or none for this network, it does not.
    """
    try:
        eager = time_steps(model, task, batch, runtime, float("inf"))
        begun = time.perf_counter()
        compiled = time_steps(torch.compile(model), task, batch, runtime, float("inf"))  # type: ignore[arg-type]
    except Exception as error:  # whatever a compiler may raise, and memory that is short
        release_memory(runtime.device)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        say(runtime, f"autotune: not compiled ({reason})")
        return False
    spent = time.perf_counter() - begun
    pays = (eager - compiled * GAIN_FOR_COMPILED) * num_steps > spent
    say(
        runtime,
        f"autotune: {'compiled' if pays else 'not compiled'} (a step of {len(batch['index'])}: "
        f"{1e3 * compiled:.0f} ms instead of {1e3 * eager:.0f} ms, after {spent:.0f} s)",
    )
    return pays


def measure(
    model: nn.Module, task: Any, loader: Any, runtime: Runtime, config: EngineConfig
) -> tuple[Runtime, dict[str, float], bool]:
    """Time the first batch; return the fastest runtime, all seconds, whether compiling pays."""
    loader.batch_sampler.start(0)
    keys = next(iter(loader.batch_sampler))
    rows = min(config.micro_batch_size or len(keys), len(keys))
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    batch = loader.collate_fn(loader.dataset.__getitems__(keys[:rows]))
    if isinstance(batch, UserError):  # a file that cannot be read, named
        raise batch
    runtime, seconds = autotune(model, task, batch, runtime, config)
    timed = ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items())
    layout = "channels_last" if runtime.channels_last else "channels_first"
    trial = min(rows, TRIAL_ROWS)
    say(runtime, f"autotune: {runtime.precision} {layout} (a step of {trial}: {timed})")
    if config.compile != "auto" or runtime.device.type not in ("cpu", "cuda"):
        return runtime, seconds, config.compile == "on"
    num_steps = config.epochs * len(loader) * -(-len(keys) // rows)
    is_long = min(seconds.values(), default=0.0) * rows / trial * num_steps >= COMPILE_AFTER_S
    pays = is_long and compiling_pays(model, task, batch, runtime, num_steps)
    return runtime, seconds, pays


def settle_runtime(
    model: nn.Module, task: Any, loader: Any, runtime: Runtime, run: Run, config: EngineConfig
) -> Runtime:
    """Return the runtime of this run: the one it began with, or the fastest measured now.

    What was chosen is written to ``runtime.json`` before the first step, so that a resumed run
    computes as it began; further folds of a model take over what its first one measured.
    """
    chosen = runtime.from_main(recorded_choice(run, runtime, config))
    if chosen is None:
        seconds: dict[str, float] = {}
        compiled = config.compile == "on"
        open_options = "auto" in (config.precision, config.channels_last, config.compile)
        if config.autotune == "on" and open_options and runtime.num_processes == 1:
            runtime, seconds, compiled = measure(model, task, loader, runtime, config)
        chosen = {
            "device": runtime.device.type,
            "precision": runtime.precision,
            "channels_last": runtime.channels_last,
            "compiled": compiled,
            "seconds": seconds,
        }
    if runtime.is_main:
        write_json(run.tuned, chosen)
    return runtime.with_choice(
        chosen["precision"], chosen["channels_last"], chosen.get("compiled", False)
    )


def recorded_choice(run: Run, runtime: Runtime, config: EngineConfig) -> dict[str, Any] | None:
    """Return this run's choice, else that of another fold on such a device, else None.

    A choice made on another device is none, and an option that is set goes before any choice.
    """
    paths = [run.tuned] if run.tuned.exists() else []
    if config.autotune == "on" and config.precision == config.channels_last == "auto":
        paths += sorted(run.folder.parent.glob(f"fold*/{run.tuned.name}"))
    for path in paths:
        chosen = read_json(path)
        if chosen.get("device") == runtime.device.type:
            if config.precision != "auto":
                chosen["precision"] = runtime.precision
            if config.channels_last != "auto":
                chosen["channels_last"] = runtime.channels_last
            if config.compile != "auto":
                chosen["compiled"] = config.compile == "on"
            return chosen
    return None
