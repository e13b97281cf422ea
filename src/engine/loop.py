"""The training loop: ``fit()`` takes a model, a task and two loaders to finished weights.

Order, augmentation, mixing, dropout and learning rate are pure functions of (seed, epoch, step,
row), so a run that was killed goes on bit for bit as if it had not been.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from src.config import EngineConfig, learned_options
from src.engine.checkpoint import Parts, SavedState, TrainState, prepare_parts, resume, save_state
from src.engine.interrupt import Interrupted, Pause, catch_signals
from src.engine.log import TRACKERS, Tracker, bar_options, open_trackers, say, write_metrics
from src.engine.optim import ends_mid_cycle, learning_rate, set_lr
from src.engine.predict import evaluate
from src.engine.runtime import SEARCH_STEPS, Runtime, search_algorithms
from src.engine.step import LossGuard, check_scale, train_step
from src.engine.weights import save_weights
from src.runs import Run
from src.script import MachineError, UserError, counted
from src.tasks.protocols import Batch, BatchLoader, Task

Mix = Callable[[Batch, int, int], Batch]  # batch on the device, step, epoch → batch
Shorten = Callable[[int, int], int]  # epochs done, epochs of the run → epochs of the run
Draw = Callable[[nn.Module], Mapping[str, np.ndarray]]  # model → pictures (H, W, 3) uint8 by name

PICTURE_EPOCHS = 5  # between two looks at the worst mistakes
GROWING_GAP = 5  # validations in a row after which over-fitting is said aloud


@dataclass(frozen=True)
class Job:
    """What stays the same while a run trains; the fields are arguments of :func:`fit`."""

    task: Task
    train_loader: BatchLoader
    valid_loader: BatchLoader | None
    config: EngineConfig
    run: Run
    runtime: Runtime
    mix: Mix | None
    guard: LossGuard
    pause: Pause
    shorten: Shorten | None = None

    def epochs(self, state: TrainState) -> int:
        """Return the length of the run: the config's, unless it was shortened."""
        return state.epochs or self.config.epochs


def fit(
    model: nn.Module,
    task: Task,
    train_loader: BatchLoader,
    valid_loader: BatchLoader | None,
    *,
    config: EngineConfig,
    run: Run,
    runtime: Runtime,
    names: Sequence[str],
    mix: Mix | None = None,
    shorten: Shorten | None = None,
    split_hash: str = "",
    draw: Draw | None = None,
) -> TrainState:
    """Train ``model`` on ``task``, from the start or from where the run stopped.

    Writes ``last.pt``, ``best.safetensors`` and ``metrics.csv`` into ``run``.

    Args:
        model: network with its first weights, on any device.
        task: ``loss``, ``predict``, ``meter`` and the name of the metric to ``monitor``.
        train_loader: full effective batches; its ``batch_sampler`` has ``start(epoch, step)``.
        valid_loader: held-out rows in order, or None: then the last weights are the best.
        config: options of the loop.
        run: folder of the run, held by the caller.
        runtime: device, precision and layout, settled.
        names: id of every training row, for messages.
        mix: ``mix(batch, step, epoch)`` mixes a batch on the device.
        shorten: ``shorten(epochs done, epochs)`` returns the epochs of the whole run, at least
            those done; asked after each epoch. The rest of the schedule then ends there. The
            answer is saved with the state, so a resumed run keeps to it.
        split_hash: names data and folds; a state or weights of others are refused.
        draw: model → pictures by name, for the trackers; asked every few epochs and at the end.

    Raises:
        UserError: other options than the interrupted run's, too little memory for one row, a loss
            that is not finite.
        Interrupted: a signal asked to stop; the state is saved.
        MachineError: a loader process or another training process died; the state is saved.
    """
    if not len(train_loader):
        raise UserError("no training batch: the fold has too few images")
    warn_of_schedule(config, runtime)
    parts = prepare_parts(model, config, runtime, len(train_loader))
    resume(parts, run, config, split_hash)
    state = parts.state
    guard = LossGuard(run, runtime, names, config.skip_nonfinite, train_loader.batch_sampler)
    guard.skipped = state.nonfinite
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        guard.settle()
        state.nonfinite = guard.skipped
        if runtime.is_main:
            own: SavedState = {"fold": run.folder.name, "split_hash": split_hash}
            save_state(run, {**parts.pack(config), **own})
        saved = time.monotonic()

    def save_when_due() -> None:
        if time.monotonic() - saved >= config.checkpoint_minutes * 60:
            save()

    options, asked = learned_options(config), [n for n in TRACKERS if getattr(config, n)]
    with open_trackers(run, runtime, asked, options) as logs, catch_signals(runtime.agree) as pause:
        job = Job(
            task, train_loader, valid_loader, config, run, runtime, mix, guard, pause, shorten
        )
        run_epochs(parts, job, logs, draw, save=save, save_when_due=save_when_due)
        pause()
    return state


def run_epochs(
    parts: Parts, job: Job, logs: Sequence[Tracker], draw: Draw | None, *,
    save: Callable[[], None], save_when_due: Callable[[], None],
) -> None:  # fmt: skip
    """Train and validate until the run is done; save the state at its end and where it must stop.

    Raises:
        Interrupted: a signal asked to stop; the state is saved.
        MachineError: a process died; the state is saved.
    """
    state = parts.state
    try:
        while not state.done:
            images_per_s = train_epoch(parts, job, save_when_due)
            settle_length(parts, job, save)
            row = close_epoch(parts, job)
            shown = pictures(parts, job, draw if logs else None)
            for log in logs:
                log({**row, "images_per_s": images_per_s, **shown}, state.step)
            save_when_due()
    except (Interrupted, MachineError):  # both come between two steps alone
        save()
        job.runtime.agree(0)  # a launcher stops everybody when the first process leaves
        raise
    if state.step:
        save()


def pictures(parts: Parts, job: Job, draw: Draw | None) -> Mapping[str, np.ndarray]:
    """Return what ``draw`` shows of the weights that ended this epoch; most epochs nothing."""
    state = parts.state
    due = state.done or state.epoch % PICTURE_EPOCHS == 0
    if draw is None or not due or job.runtime.num_processes > 1:  # a sharded model has no part
        return {}
    return draw(parts.ema.module if parts.ema else parts.model)


def warn_of_schedule(config: EngineConfig, runtime: Runtime) -> None:
    """Say so when a run with restarts would end at a high rate."""
    if config.schedule != "warm_restarts":
        return
    end = ends_mid_cycle(config.epochs, config.restart_epochs, config.restart_mult)
    if end is not None:
        whole = f"--epochs {end}" if end else f"--restart_epochs {config.epochs}"
        say(runtime, f"warning: epoch {config.epochs} ends no cycle of restarts; use {whole}")


def settle_length(parts: Parts, job: Job, save: Callable[[], None]) -> None:
    """Ask how long the run shall be, and save the state if that is shorter than it was."""
    done, before = parts.state.epoch + 1, job.epochs(parts.state)
    if done >= before or job.shorten is None:
        return
    # the processes' clocks differ
    asked = job.runtime.from_main(max(done, min(before, job.shorten(done, before))))
    if asked < before:
        parts.state.epochs = asked
        say(job.runtime, f"schedule shortened from {before} to {counted(asked, 'epoch')}")
        save()


def train_epoch(parts: Parts, job: Job, after_step: Callable[[], None]) -> float:
    """Train what is left of the running epoch and return its images/s, over all processes."""
    state, runtime, config, loader = parts.state, job.runtime, job.config, job.train_loader
    steps_per_epoch = len(loader)
    first = state.step - state.epoch * steps_per_epoch
    if first == steps_per_epoch:  # stopped between the last step and the validation
        return 0.0
    loader.batch_sampler.start(state.epoch, first)
    sums = {name: accumulator(value, runtime) for name, value in state.sums.items()}
    parts.wrapped.train()
    started, begun = time.perf_counter(), state.rows  # the other clock of Windows ticks each 16 ms
    is_repeated = config.epochs * steps_per_epoch >= SEARCH_STEPS
    epochs = job.epochs(state)
    label = f"epoch {state.epoch + 1}/{epochs}"
    with tqdm(
        desc=label, leave=False, total=steps_per_epoch, initial=first, **bar_options(runtime)
    ) as bar:
        for host_batch in job.pause.between(loader):
            lr = learning_rate(state.step, config, steps_per_epoch, epochs)
            set_lr(parts.optimizer, lr)
            batch = runtime.upload(host_batch)
            whole = len(batch["image"]) >= config.batch_size // runtime.num_processes
            search_algorithms(runtime.device, is_repeated and whole)
            if job.mix:
                # a shortened run stops mixing as long before its end as the whole one would
                batch = job.mix(batch, state.step, state.epoch + config.epochs - epochs)
            # a smaller last batch would be compiled anew, for one step an epoch
            with nullcontext() if whole else runtime.eagerly():
                terms = train_step(
                    parts, job.task, batch, job.guard,
                    epoch=state.epoch, seed=config.seed, clip=config.clip_grad,
                )  # fmt: skip
            state.step += 1
            if terms is not None:
                rows = len(batch["image"])
                state.rows += rows
                add_terms(sums, terms, rows, runtime)
                if parts.ema:
                    parts.ema.update(parts.model, step=state.step)
            state.sums = sums
            rate = (state.rows - begun) * runtime.num_processes / (time.perf_counter() - started)
            bar.set_postfix(loss=job.guard.shown, lr=lr, img_s=round(rate), refresh=False)
            bar.update()
            after_step()
    job.guard.settle()
    check_scale(runtime)
    assert state.step == (state.epoch + 1) * steps_per_epoch, "the loader ended early"
    return rate


def add_terms(
    sums: dict[str, Tensor], terms: dict[str, Tensor], rows: int, runtime: Runtime
) -> None:
    """Add a step's mean terms, times its rows, to the epoch's sums."""
    for name, value in terms.items():
        if name not in sums:  # the upload of a zero makes the host wait: once an epoch is enough
            sums[name] = accumulator(0.0, runtime)
        sums[name] = sums[name] + value * rows


def accumulator(value: float | Tensor, runtime: Runtime) -> Tensor:
    """Return a scalar to sum up in, on the device: float64 on a CPU, else float32."""
    dtype = torch.float64 if runtime.device.type == "cpu" else torch.float32
    return torch.as_tensor(value, dtype=dtype, device=runtime.device)


def close_epoch(parts: Parts, job: Job) -> dict[str, float]:
    """Validate if it is time, keep the best weights, write the metrics, begin the next epoch.

    Returns the row for ``metrics.csv``: epoch, step, lr, ``train_…`` means over the rows (of the
    main process alone where several train), and scores.
    """
    state, config = parts.state, job.config
    epoch, epochs = state.epoch + 1, job.epochs(state)
    last = epoch == epochs
    row: dict[str, float] = {"epoch": epoch, "step": state.step}
    row["lr"] = learning_rate(state.step - 1, config, len(job.train_loader), epochs)
    row |= {f"train_{k}": float(v) / max(1, state.rows) for k, v in state.sums.items()}
    if job.valid_loader is not None and (last or epoch % config.valid_every == 0):
        row = job.runtime.from_main(row | validate(parts, job))
        keep_best(parts, job, row)
    elif job.valid_loader is None and last:
        weights = (parts.ema.module if parts.ema else parts.model).state_dict()
        about = {"epoch": str(epoch), "kind": "ema" if parts.ema else "raw"}
        write_best(job, weights, about | {"run": state.identity})
    state.history.append(row)
    state.epoch, state.sums, state.rows = epoch, {}, 0
    state.done = last or bool(config.patience and state.misses >= config.patience)
    if job.runtime.is_main:
        write_metrics(job.run, state.history)
    say(job.runtime, describe(row, state, epochs))
    warn_of_overfitting(job, state)
    return row


def validate(parts: Parts, job: Job) -> dict[str, float]:
    """Return the scores of the raw weights (``valid_…``) and of the averaged ones (``ema_…``)."""
    models: dict[str, nn.Module] = {}
    if not (parts.ema and job.config.valid_ema_only):
        models["valid"] = parts.model
    if parts.ema:
        models["ema"] = parts.ema.module
    row: dict[str, float] = {}
    valid = job.valid_loader
    assert valid is not None
    for prefix, model in models.items():
        job.runtime.share_buffers(model)
        scores = evaluate(
            model, valid, job.task, job.runtime, num_rows=valid.batch_sampler.num_rows,
            pause=job.pause,
            batch_size=job.config.infer_batch_size,
        )  # fmt: skip
        row |= {f"{prefix}_{name}": value for name, value in scores.items()}
    return row


def keep_best(parts: Parts, job: Job, row: dict[str, float]) -> None:
    """Write the better of raw and averaged weights if they beat every earlier validation."""
    state, task = parts.state, job.task
    sign = 1.0 if task.lower_is_better else -1.0
    scores = {
        k: row[f"{k}_{task.monitor}"] for k in ("valid", "ema") if f"{k}_{task.monitor}" in row
    }
    for prefix, score in scores.items():
        if not math.isfinite(score):
            say(job.runtime, f"warning: {prefix}_{task.monitor} is {score}: worst")
    scores = {k: score if math.isfinite(score) else sign * math.inf for k, score in scores.items()}
    kind = min(scores, key=lambda k: sign * scores[k])
    if state.best is not None and sign * scores[kind] >= sign * state.best:
        state.misses += 1
        return
    state.best, state.best_epoch, state.misses = scores[kind], state.epoch + 1, 0
    model = parts.ema.module if kind == "ema" and parts.ema else parts.model
    about = {"epoch": str(state.epoch + 1), "kind": kind, task.monitor: repr(scores[kind])}
    write_best(job, model.state_dict(), about | {"run": state.identity})


def write_best(job: Job, weights: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write ``best.safetensors`` from the main process."""
    if job.runtime.is_main:
        save_weights(job.run.best, weights, about)


def describe(row: dict[str, float], state: TrainState, epochs: int) -> str:
    """Return one line about an epoch."""
    shown = [f"{k} {v:.4g}" for k, v in row.items() if k not in ("epoch", "step")]
    best = f" · best {state.best:.4f} at epoch {state.best_epoch}" if state.best is not None else ""
    return f"epoch {row['epoch']}/{epochs} · {' · '.join(shown)}{best}"


def warn_of_overfitting(job: Job, state: TrainState) -> None:
    """Say so when valid − train loss has grown over the last validations."""
    key = f"valid_{getattr(job.task, 'loss_metric', '')}"
    gaps = [r[key] - r["train_loss"] for r in state.history if key in r and "train_loss" in r]
    tail = gaps[-GROWING_GAP - 1 :]
    growing = all(b > a for a, b in itertools.pairwise(tail))
    if len(tail) > GROWING_GAP and growing and state.misses >= GROWING_GAP:
        say(job.runtime, f"warning: over-fitting? the gap to train grew for {GROWING_GAP} epochs")
