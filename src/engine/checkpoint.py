"""Checkpoints: the whole training state in one atomic, checksummed file, loaded without pickle.

``last.pt`` is torch's zip archive followed by a SHA-256 of its bytes. Reading checks the hash
first and allows tensors, numbers, strings and containers only (``weights_only``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TypedDict

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from src.config import EngineConfig, config_hash, learned_options
from src.engine.log import say
from src.engine.optim import averaging_decay, build_optimizer, group_parameters
from src.engine.runtime import Runtime, is_large, is_out_of_memory
from src.engine.weights import refuse_foreign, run_identity
from src.files import HALF_WRITTEN, NOT_WHOLE, Json, atomic_write, check_held, patiently, read_json
from src.runs import Run, is_same_data
from src.script import UserError, brief, counted

MAGIC = b"train-state-sha256:"
PARTS = {"state", "model", "ema", "optimizer", "scaler", "config", "config_hash"}
TRAILER = len(MAGIC) + hashlib.sha256().digest_size


class SavedState(TypedDict, total=False):
    """Content of ``last.pt``."""

    state: Json
    model: Json
    ema: Json | None
    optimizer: Json
    scaler: Json
    config: Json
    config_hash: str
    fold: str
    split_hash: str


class HashingWriter:
    """A write-only file that hashes what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write and hash ``data``; torch turns an OSError into its own, so it is kept."""
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file below."""
        self.file.flush()


def save_state(run: Run, state: SavedState) -> None:
    """Write ``state`` to ``last.pt``; the one before it stays as ``last.previous.pt``.

    At every moment at least one of the two is whole.

    Raises:
        UserError: the run's lock file was deleted, and another process has it by now.
        OSError: the disk is full, or the like.
    """
    check_held(run.lock)
    with atomic_write(run.last) as file:
        writer = HashingWriter(file)
        try:
            torch.save(state, writer)  # type: ignore[arg-type]
        except RuntimeError:
            if writer.error:
                raise writer.error from None
            raise
        file.write(MAGIC + writer.hash.digest())
        if run.last.exists():
            keep_previous(run)


def keep_previous(run: Run) -> None:
    """Give the present ``last.pt`` its second name, without a moment in which it has none."""
    link = run.last.with_name(f".{run.previous.name}.link{HALF_WRITTEN}")
    link.unlink(missing_ok=True)
    try:
        os.link(run.last, link)
        link.replace(run.previous)
        link.unlink(missing_ok=True)  # POSIX renames nothing where both names are one file already
    except OSError:  # a file system without hard links
        run.last.replace(run.previous)


def load_state(run: Run) -> tuple[SavedState | None, list[str]]:
    """Return the newest whole state, or None, and what had to be passed over.

    Raises:
        UserError: there are state files, but none of them is whole.
    """
    troubles = []
    for path in (run.last, run.previous):
        if not path.exists():
            continue
        reason = patiently(partial(damage, path))
        if reason:
            troubles.append(f"{path}: {reason}")
            continue
        try:
            state = patiently(partial(torch.load, path, map_location="cpu", weights_only=True))
            if set(state) >= PARTS and all(
                isinstance(state[key], dict) for key in ("state", "model", "optimizer", "config")
            ):
                return state, troubles
            troubles.append(f"{path}: no training state of this program")
        except (*NOT_WHOLE, pickle.UnpicklingError) as error:
            troubles.append(f"{path}: refused ({str(error).splitlines()[0][:120]})")
    if troubles:
        raise UserError(
            f"no whole checkpoint: {'; '.join(troubles)}; delete the run's folder to start afresh"
        )
    return None, []


def damage(path: Path) -> str:
    """Return what is wrong with a state file's bytes, empty if nothing is."""
    size = path.stat().st_size
    if size <= TRAILER:
        return "truncated"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = size - TRAILER
        while left > 0:
            block = file.read(min(left, 1 << 22))
            digest.update(block)
            left -= len(block)
        trailer = file.read(TRAILER)
    if not trailer.startswith(MAGIC):
        return "truncated, or not written by this program"
    return "" if trailer[len(MAGIC) :] == digest.digest() else "its checksum does not match"


@dataclass
class TrainState:
    """All the loop remembers between steps, saved as it is."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done, validation included
    # Σ over the running epoch's rows of every loss term (scalars on the device)
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: int = 0  # rows of the running epoch seen so far
    # one row a validated epoch, as in ``metrics.csv``
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None  # best score so far, None before the first validation
    best_epoch: int = 0  # epoch (from 1) of the best score
    misses: int = 0  # validations since then
    micro_batch_size: int = 0  # rows on the device at once; shrinks when memory is short
    nonfinite: int = 0  # steps passed over because their loss was not finite
    epochs: int = 0  # length of the run where it was shortened, 0 = the config's
    done: bool = False  # nothing is left to train
    steps_per_epoch: int = 0  # steps of an epoch, which batch size and number of processes settle
    identity: str = ""  # of the run as it began, from :func:`run_identity`

    def as_dict(self) -> Json:
        """Return plain numbers, strings and containers."""
        plain = dataclasses.asdict(dataclasses.replace(self, sums={}))
        return plain | {"sums": {name: float(value) for name, value in self.sums.items()}}


class Ema(ModelEmaV3):
    """An average that looks up its tensors once; at each step that took a fifth of it on a card."""

    # (of the average, of the model) for every number that is averaged
    floats: list[tuple[torch.Tensor, torch.Tensor]]
    counts: list[tuple[torch.Tensor, torch.Tensor]]  # the same for those that are copied

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Move towards the model, whose tensors must be those of the first call."""
        if not hasattr(self, "floats"):
            states = (net.state_dict().values() for net in (self.module, model))
            pairs = list(zip(*states, strict=True))
            self.floats = [pair for pair in pairs if pair[0].is_floating_point()]
            self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        own, its = zip(*self.floats, strict=True)
        torch._foreach_lerp_(own, its, weight=1 - self.get_decay(step))
        if self.counts:
            own, its = zip(*self.counts, strict=True)
            torch._foreach_copy_(own, its)


@dataclass
class Parts:
    """Everything that is saved and restored together, and what it runs on.

    ``wrapped`` is the model as the processes share it; ``buffers`` and ``kept`` are the numbers
    that a forward pass writes (running statistics) and a copy to go back to when a step fails, a
    list of each for every dtype.
    """

    model: nn.Module
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    state: TrainState
    wrapped: nn.Module
    buffers: list[list[torch.Tensor]]
    kept: list[list[torch.Tensor]]

    def keep_buffers(self) -> None:
        """Copy the running statistics aside."""
        for kept, buffers in zip(self.kept, self.buffers, strict=True):
            torch._foreach_copy_(kept, buffers)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Undo what a failed step did to the running statistics."""
        for kept, buffers in zip(self.kept, self.buffers, strict=True):
            torch._foreach_copy_(buffers, kept)

    def pack(self, config: EngineConfig) -> SavedState:
        """Return the whole state as plain containers and tensors."""
        return {
            "state": self.state.as_dict(),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.runtime.scaler.state_dict(),
            "config": learned_options(config),
            "config_hash": config_hash(config),
        }

    def unpack(self, saved: SavedState) -> None:
        """Take over a packed state."""
        self.state = TrainState(**saved["state"])
        self.model.load_state_dict(saved["model"])
        if self.ema and saved["ema"]:
            self.ema.module.load_state_dict(saved["ema"])
        groups = self.optimizer.param_groups
        asked = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(self.optimizer.param_groups, asked, strict=True):
            group.update(own)  # decay, betas and scales are the config's, not the file's
        if saved["scaler"]:  # empty where the run began in bf16 or fp32
            self.runtime.scaler.load_state_dict(saved["scaler"])


def prepare_parts(
    model: nn.Module, config: EngineConfig, runtime: Runtime, steps_per_epoch: int = 0
) -> Parts:
    """Put the model on its device, copy it for the EMA, build the optimizer, join the processes.

    ``steps_per_epoch`` times the epochs is the whole run, of which ``ema_share`` is a share.
    """
    model = runtime.place(model)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    ema = None
    decay = averaging_decay(config.ema_decay, config.ema_share, config.epochs * steps_per_epoch)
    if decay:
        ema = Ema(model, decay=decay, use_warmup=True, warmup_power=0.75)
    groups = group_parameters(
        model,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        head_lr_mult=config.head_lr_mult,
    )
    # MPS kernels of older versions apply the infinite gradients that the fp16 scaler refuses
    fused = runtime.device.type != "mps" or not runtime.scaler.is_enabled()
    optimizer = build_optimizer(config.optimizer, groups, config.lr, config.beta2, fused=fused)
    buffers = written_buffers(model.train())
    wrapped = runtime.wrap_ddp(model)
    if runtime.compiled:
        model.compile()
    micro = first_micro_batch(config, runtime)
    state = TrainState(micro_batch_size=micro, steps_per_epoch=steps_per_epoch)
    kept = [[b.clone() for b in group] for group in buffers]
    return Parts(model, ema, optimizer, runtime, state, wrapped, buffers, kept)


def written_buffers(model: nn.Module) -> list[list[torch.Tensor]]:
    """Return the buffers of modules in training mode by dtype; frozen norms write none.

    One copy of a list of one dtype is one kernel on a GPU, of a mixed list one a tensor.
    """
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for module in model.modules():
        for buffer in module.buffers(recurse=False) if module.training else ():
            groups.setdefault(buffer.dtype, []).append(buffer)
    return list(groups.values())


def first_micro_batch(config: EngineConfig, runtime: Runtime) -> int:
    """Return the rows on the device at once before memory is found too short.

    On a large card that is the whole batch: smaller passes leave it waiting for the host.
    """
    rows = -(-config.batch_size // runtime.num_processes)
    can_shrink = runtime.num_processes == 1
    if config.grow_micro_batch and can_shrink and is_large(runtime.device):
        return rows
    return config.micro_batch_size or rows


# What counts the steps and shapes the optimizer's state: not to be changed by --accept_changes.
FIXED = ("batch_size", "layer_decay", "optimizer", "metric", "ordinal")


def resume(parts: Parts, run: Run, config: EngineConfig, split_hash: str = "") -> None:
    """Restore the newest whole state, if there is one, and say so.

    Raises:
        UserError: the interrupted run had other options, named here, or other data; its weights
            are missing, older or another run's; or the processes found different states.
    """
    parts.state.identity = run_identity(config, run, split_hash)
    saved, troubles = load_state(run)
    for trouble in troubles:
        say(parts.runtime, f"warning: {trouble}; going on from the state before it")
    if saved is not None:
        restore(parts, saved, run, config, split_hash)
        if run.start.exists():
            refuse_foreign(run.start, parts.state.identity)
        if parts.state.best_epoch:
            refuse_foreign(run.best, parts.state.identity, parts.state.best_epoch)
    starts = parts.runtime.gather((parts.state.step, config_hash(config)))
    if len(set(starts)) > 1:
        steps = ", ".join(str(step) for step, _ in starts)
        raise UserError(
            f"{run.folder}: the processes would go on from different steps or options (steps "
            f"{steps}): give them one --output_dir that all machines share"
        )


def refuse_other_run(run: Run, config: EngineConfig, identity: str, split_hash: str) -> None:
    """Refuse a run that began with other options or data, before its records are written anew.

    The state is read only where ``runtime.json`` is not of the run of this ``identity``.

    Raises:
        UserError: naming the options, or that the data differ.
    """
    named = ""
    with contextlib.suppress(FileNotFoundError, UserError):
        named = read_json(run.tuned).get("run", identity)
    saved = None if named == identity else load_state(run)[0]
    if saved is not None:
        check_state(saved, run, config, split_hash)


def check_state(saved: SavedState, run: Run, config: EngineConfig, split_hash: str) -> list[str]:
    """Return the options that ``--accept_changes`` lets differ from those of a saved state.

    Raises:
        UserError: another fold, other data, or options that may not differ.
    """
    if saved.get("fold", run.folder.name) != run.folder.name:
        raise UserError(
            f"{run.last} is of {saved['fold']}, not of {run.folder.name}; restore it, or delete "
            f"{run.folder} to start afresh"
        )
    if not is_same_data(saved.get("split_hash", ""), split_hash):
        raise UserError(
            f"{run.folder} was started on other images or folds, as {run.last.name} says: restore "
            f"them{run.folds_again}, pass another --name, or delete the folder to start afresh"
        )
    if saved["config_hash"] == config_hash(config):
        return []
    own, other = learned_options(config), saved["config"]
    changed = [
        f"{k} {other.get(k)!r} → {own.get(k)!r}"
        for k in {**own, **other}
        if other.get(k) != own.get(k)
    ]
    if not config.accept_changes:
        raise UserError(
            f"{run.folder} was started with other options ({', '.join(changed)}): use them, "
            "pass --accept_changes or another --name, or delete the folder to start afresh"
        )
    fixed = [k for k in FIXED if own.get(k) != other.get(k)]
    if fixed:
        raise UserError(f"{run.folder}: --{fixed[0]} stays within a run: pass another --name")
    epochs = saved["state"].get("epoch", 0)
    if config.epochs <= epochs:  # it would never come to its end
        raise UserError(
            f"{run.folder} has had {counted(epochs, 'epoch')}, and --epochs {config.epochs} would "
            "have ended before: pass more, or another --name"
        )
    return changed


def restore(
    parts: Parts, saved: SavedState, run: Run, config: EngineConfig, split_hash: str
) -> None:
    """Restore ``saved`` unless it is of another run.

    Raises:
        UserError: other options, another network, or another number of steps an epoch.
    """
    changed = check_state(saved, run, config, split_hash)
    if changed:
        say(parts.runtime, f"going on with changed options: {', '.join(changed)}")
    then, now = saved["state"].get("steps_per_epoch", 0), parts.state.steps_per_epoch
    if then and now and then != now:
        raise UserError(
            f"{run.folder} was started with {then} steps an epoch and would now have {now}: go on "
            "with as many processes as then (their number settles the last batch), "
            "pass another --name, or delete the folder to start afresh"
        )
    micro_batch_size, identity = parts.state.micro_batch_size, parts.state.identity
    try:
        parts.unpack(saved)
        parts.state.steps_per_epoch = now
        parts.state.identity = parts.state.identity or identity  # earlier versions kept none
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):  # a card that others fill: the state is a good one
            raise
        raise UserError(
            f"{run.last}: of another network ({brief(error)}); restore classes and aliases, or "
            f"delete {run.folder} to start afresh"
        ) from None
    if saved["config"].get("micro_batch_size") != config.micro_batch_size:
        parts.state.micro_batch_size = micro_batch_size
    say(parts.runtime, f"resuming {run.folder} after step {parts.state.step}")
