"""One optimizer step: gradient accumulation, mixed precision, memory and non-finite guards."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from src.engine import cpu
from src.engine.checkpoint import Parts
from src.engine.log import say
from src.engine.runtime import Runtime, is_out_of_memory, peers, release_memory, seed_step
from src.files import write_json
from src.runs import Run
from src.script import MachineError, UserError, brief
from src.tasks.protocols import Batch, BatchSampler, Task

Terms = dict[str, Tensor]  # name → scalar on the device; "loss" is what is minimised

# On CUDA a loss is read this many steps late, so that the host never waits for the device.
LAG = 2


def train_step(
    parts: Parts, task: Task, batch: Batch, guard: LossGuard, *, epoch: int, seed: int, clip: float
) -> Terms | None:
    """Make one step; return the mean loss terms, or None if the step was passed over.

    Raises:
        UserError: memory is too short for one row, or more losses than allowed are not finite.
    """
    runtime, step = parts.runtime, parts.state.step
    parts.keep_buffers()
    try:
        with peers():
            terms = gradient(parts, task, batch, (seed, step, runtime.rank))
    except MachineError:  # nothing has been stepped: the state is that before the batch
        parts.restore_buffers()
        raise
    scaler, optimizer = runtime.scaler, parts.optimizer
    scaler.unscale_(optimizer)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    norm = gradient_norm([p.grad for p in params if p.grad is not None])
    bad = ~torch.isfinite(suspect(terms["loss"], norm, runtime))
    if scaler.is_enabled() and runtime.num_processes > 1:  # skip together or not at all
        bad = runtime.accelerator.reduce(bad.float(), "sum") > 0  # type: ignore[union-attr]
    if not guard.admit(bad, terms["loss"], batch["index"], step, epoch):
        scaler.update()
        parts.restore_buffers()
        return None
    if not scaler.is_enabled():
        # fused optimizers leave the weights alone where this device-side flag is set
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    if clip:
        clip_gradient(optimizer, params, norm, clip, runtime)
    scaler.step(optimizer)
    scaler.update()
    return terms


def clip_gradient(
    optimizer: Optimizer, params: Sequence[Tensor], norm: Tensor, limit: float, runtime: Runtime
) -> None:
    """Let the next step see a gradient whose norm is at most ``limit``."""
    if cpu.is_on(runtime.device) and not runtime.scaler.is_enabled():  # its own place otherwise
        cpu.clip_inside(optimizer, norm, limit)
    else:
        torch.nn.utils.clip_grads_with_norm_(params, limit, norm)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together."""
    if gradients and cpu.is_on(gradients[0].device):
        return cpu.gradient_norm(gradients)
    return torch.nn.utils.get_total_norm(gradients)


def suspect(loss: Tensor, norm: Tensor, runtime: Runtime) -> Tensor:
    """Return the scalar whose finiteness decides about a step, of its mean loss and its norm.

    In fp16 an infinite gradient is the scaler's daily work; between processes only the shared
    gradient is the same for all.
    """
    if runtime.scaler.is_enabled():
        return loss
    return norm if runtime.num_processes > 1 else loss + norm


def check_scale(runtime: Runtime) -> None:
    """Refuse to go on where fp16 gradients overflow at any scale.

    Raises:
        UserError: they do.
    """
    if runtime.scaler.is_enabled() and runtime.scaler.get_scale() < 1:
        raise UserError("fp16 gradients overflow at every scale: pass --precision bf16 or fp32")


def gradient(parts: Parts, task: Task, batch: Batch, key: tuple[int, ...]) -> Terms:
    """Leave the batch's gradient in ``.grad`` and return its mean loss terms.

    When memory is short the micro-batch is halved and the whole batch is done again: the same
    effective batch from the same random state.
    """
    while True:
        parts.optimizer.zero_grad(set_to_none=True)
        seed_step(*key)
        try:
            return accumulate(parts, task, batch)
        except (RuntimeError, MemoryError) as error:
            if type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
                raise UserError(
                    f"the network cannot be compiled here ({brief(error)}): leave --compile out"
                ) from error
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "BatchNorm cannot learn from one value: pass a --micro_batch_size of 2 or more, or "
                "larger images"
            ) from None
        halve_micro_batch(parts, len(batch["image"]), reason)


def halve_micro_batch(parts: Parts, rows: int, reason: str) -> None:
    """Make the micro-batch half as large, or give up in one line."""
    runtime, state = parts.runtime, parts.state
    size = min(state.micro_batch_size, rows)
    if runtime.num_processes > 1:
        raise UserError(
            f"out of memory at --micro_batch_size {size}: pass a smaller one (several processes "
            "cannot shrink it on their own)"
        )
    if size == 1:
        first = (reason.splitlines() or ["out of memory"])[0][:150]
        raise UserError(
            f"out of memory with one image at a time ({first}): lower --image_size or pass "
            "--grad_checkpointing"
        )
    state.micro_batch_size = (size + 1) // 2
    parts.optimizer.zero_grad(set_to_none=True)
    parts.restore_buffers()
    release_memory(runtime.device)
    say(
        runtime,
        f"out of memory at step {state.step}: micro-batch {size} → {state.micro_batch_size}, "
        "same effective batch",
    )


def accumulate(parts: Parts, task: Task, batch: Batch) -> Terms:
    """Run forward and backward over equal micro-batches; return Σ terms × share of rows."""
    runtime = parts.runtime
    rows = len(batch["image"])
    count = -(-rows // parts.state.micro_batch_size)
    pieces = [dict(zip(batch, values, strict=True)) for values in zip(
        *(value.tensor_split(count) for value in batch.values()), strict=True
    )]  # fmt: skip
    totals: Terms = {}
    for number, piece in enumerate(pieces, 1):
        share = len(piece["image"]) / rows
        alone = number == count or runtime.num_processes == 1
        with nullcontext() if alone else parts.wrapped.no_sync():  # type: ignore[operator]
            with runtime.autocast():
                terms = task.loss(parts.wrapped, piece)
            runtime.scaler.scale(terms["loss"] * share).backward()
        for name, value in terms.items():
            value = value.detach().float() * share
            totals[name] = totals[name] + value if name in totals else value
    return totals


class LossGuard:
    """Watches for a loss or gradient that is not finite and names the rows that made it.

    On CUDA (with none allowed) the flag is read ``LAG`` steps late; the weights are safe, because
    the optimizer itself skips a flagged step, and ``settle()`` is called before anything is saved.
    """

    def __init__(
        self, run: Run, runtime: Runtime, names: Sequence[str], allowed: int,
        order: BatchSampler | None = None,
    ) -> None:  # fmt: skip
        self.run, self.runtime, self.names, self.allowed = run, runtime, names, allowed
        self.order = order if runtime.num_processes > 1 else None
        self.lag = LAG if runtime.device.type == "cuda" and not allowed else 0
        self.pending: deque[tuple[Tensor, Tensor, Tensor, int, int, torch.cuda.Event]] = deque()
        self.skipped = 0
        self.shown = float("nan")

    def admit(self, bad: Tensor, loss: Tensor, index: Tensor, step: int, epoch: int) -> bool:
        """Return whether the step may be made, as far as is known by now.

        Args:
            bad: () bool on the device, whether the step must not be made.
            loss: () mean loss of the batch.
            index: (B,) rows of this process, on the host.
            step: number of the step, from 0.
            epoch: number of the epoch, from 0.

        Raises:
            UserError: a step is bad and no more are allowed.
        """
        if self.lag:
            bad, loss = (x.to("cpu", non_blocking=True) for x in (bad, loss))
            event = torch.cuda.Event()
            event.record()
            self.pending.append((bad, loss, index, step, epoch, event))
            while len(self.pending) > self.lag:
                self.check(*self.pending.popleft())
            return True
        return self.check(bad, loss, index, step, epoch)

    def settle(self) -> None:
        """Check every step not yet looked at, as :meth:`check` does."""
        while self.pending:
            self.check(*self.pending.popleft())

    def check(
        self,
        bad: Tensor,
        loss: Tensor,
        index: Tensor,
        step: int,
        epoch: int,
        event: torch.cuda.Event | None = None,
    ) -> bool:
        """Look at one step's flag; record and count the step if it is set.

        Takes what :meth:`admit` takes, and on CUDA the ``event`` after which the host may read it.

        Returns:
            Whether the step is a good one.

        Raises:
            UserError: it is not, and no more are allowed.
        """
        if event is not None:
            event.synchronize()
        self.shown = float(loss)
        if not bool(bad):
            return True
        ids = [self.names[i] for i in index.tolist()]
        self.skipped += 1
        where = f"epoch {epoch + 1}, step {step}"
        if self.runtime.is_main:
            record = {"epoch": epoch + 1, "step": step, "loss": str(self.shown), "ids": ids}
            if self.order:  # the rows of any process may have made it
                rows = self.order.rows(epoch, step - epoch * len(self.order)).tolist()
                record["ids"] = [self.names[i] for i in rows]
            write_json(self.run.nonfinite, record)
        if self.skipped > self.allowed:
            raise UserError(
                f"loss or gradient not finite at {where} (images {', '.join(ids[:4])}"
                f"{', …' if len(ids) > 4 else ''}; all in {self.run.nonfinite}): lower --lr "
                f"(with --accept_changes), or "
                f"pass --skip_nonfinite {self.skipped} to go on past it"
            )
        say(
            self.runtime,
            f"warning: loss or gradient not finite at {where}: passed over ({self.skipped} of at "
            f"most {self.allowed})",
        )
        return False
