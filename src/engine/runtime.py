"""Device, precision, memory layout, processes, and out-of-memory errors: what the loop runs on.

Accelerate finds the device and joins the processes; autocast and the fp16 scaler are torch's own,
because the precision is chosen by measurement after the process has started.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import default_generator, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.engine import cpu
from src.files import Json
from src.script import MachineError, UserError, is_launched, says_short_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Not MPS, asked for or not: it is slower there, and gradients of BatchNorm and of activations are
# wrong in versions of torch before mid-2026 (PyTorch #175189, #107214).
CHANNELS_LAST = ("cuda", "cpu", "xpu")
T = TypeVar("T")
LARGE_CARD = 40e9  # bytes
# Passes from which cuDNN's search for the fastest algorithms may pay: on an H200 it took 8 to 30 s
# a network and size, and gained nothing on two EfficientNets (docs/hardware.md).
SEARCH_STEPS = 2000


@dataclass(frozen=True)
class Alone:
    """A single process on its device, where Accelerate's handle says the same of all there are."""

    device: torch.device
    is_main_process: bool = True
    process_index: int = 0
    num_processes: int = 1

    def wait_for_everyone(self) -> None:
        """Return: nobody else is there."""


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed."""

    accelerator: Accelerator | Alone  # handle on the device and the other processes
    precision: str = "fp32"  # ``fp32``, ``bf16`` or ``fp16``
    channels_last: bool = False  # whether images and convolution weights are laid out NHWC
    # whether training steps run through ``torch.compile``; predictions never do
    compiled: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "channels_first"
        return f"{self.precision} {layout}"

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.accelerator.is_main_process

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.accelerator.process_index

    @property
    def num_processes(self) -> int:
        """Processes that train together."""
        return self.accelerator.num_processes

    def agree(self, said: int) -> int:
        """Return the maximum over the processes, which must all call this equally often.

        The hosts reduce it, so that no device is waited for.

        Raises:
            MachineError: another process has ended.
        """
        if self.num_processes == 1:
            return said
        word = torch.tensor(said, dtype=torch.int64)
        with peers():
            distributed.all_reduce(word, distributed.ReduceOp.MAX, group=hosts())
        return int(word)

    def from_main(self, value: T) -> T:
        """Return the main process's ``value`` (plain, picklable) in every process."""
        if self.num_processes == 1:
            return value
        held = [value]
        with peers():
            distributed.broadcast_object_list(held, group=hosts(), device=torch.device("cpu"))
        return held[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's ``value`` (plain, picklable), by rank, in every process."""
        if self.num_processes == 1:
            return [value]
        values: list[Any] = [None] * self.num_processes
        with peers():
            distributed.all_gather_object(values, value, group=hosts())
        return values

    def join_rows(self, array: np.ndarray) -> None:
        """Sum ``array`` over the processes: each has 0 in the rows that others computed."""
        if self.num_processes > 1:
            view = torch.from_numpy(array.reshape(-1).view(np.uint8))  # byte + 0 is exact
            with peers():
                distributed.all_reduce(view, group=hosts())

    @torch.no_grad()
    def share_buffers(self, model: nn.Module) -> None:
        """Broadcast the main process's buffers (running statistics) to the others."""
        if self.num_processes > 1:
            with peers():
                for buffer in model.buffers():
                    distributed.broadcast(buffer, 0)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Return ``model`` in DistributedDataParallel, which averages gradients over the processes.

        Running statistics stay each process's own until :meth:`share_buffers`: in training they
        are written, never read.
        """
        if self.num_processes == 1:
            return model
        ids = None if self.device.type == "cpu" else [self.device]
        names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        # torch 2.14 gave the option another name
        name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        off: dict[str, Any] = {name: False}
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, **off)

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler, at work in fp16 only.

        Raises:
            UserError: this torch has none for the device.
        """
        if self.device.type == "mps" and self.precision == "fp16" and torch.__version__ < "2.8":
            raise UserError(
                "--precision fp16 trains on MPS from torch 2.8 on: use fp32, or a newer torch"
            )
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context a forward pass runs in."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def eagerly(self) -> AbstractContextManager[object]:
        """Return the context of predictions: their sizes vary, and each would be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move ``model`` to the device in the chosen memory layout."""
        if self.device.type == "mps":
            keep_maps_contiguous(model)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]

    def upload(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy a batch to the device; ``index`` stays where it is, the host reads it."""
        moved = {}
        for key, value in batch.items():
            if key == "index":
                moved[key] = value
                continue
            value = value.to(self.device, non_blocking=self.device.type == "cuda")
            if key == "image" and self.channels_last:
                value = value.contiguous(memory_format=torch.channels_last)
            moved[key] = value
        return moved

    def with_choice(self, precision: str, channels_last: bool, compiled: bool = False) -> Runtime:
        """Return this runtime with another precision and layout, compiled or not."""
        layout = channels_last and self.device.type in CHANNELS_LAST
        return replace(self, precision=precision, channels_last=layout, compiled=compiled)

    def as_recorded(self, record: Json) -> Runtime:
        """Return this runtime with a record's precision and layout, if this device has them.

        ``record`` has ``device``, ``precision`` and ``channels_last`` of an earlier run.
        """
        kind, precision = record["device"].split(":")[0], record["precision"]
        if kind != self.device.type or not computes_natively(kind, precision):
            return self
        return self.with_choice(precision, record["channels_last"])

    def describe_device(self) -> dict[str, str]:
        """Return the kind of device and, of a CUDA card, its name and capability."""
        if self.device.type != "cuda":
            return {"device": self.device.type}
        major, minor = torch.cuda.get_device_capability(self.device)
        name = torch.cuda.get_device_name(self.device)
        return {"device": "cuda", "card": name, "capability": f"sm_{major}{minor}"}


def start_runtime(
    device: str = "auto", precision: str = "auto", channels_last: str = "auto"
) -> Runtime:
    """Join the processes and settle what ``auto`` means on this device, before any measurement.

    Raises:
        UserError: the device is not there, or cannot compute in that precision.
    """
    check_device(device)
    accelerator = join_processes(cpu=device == "cpu")
    if accelerator.num_processes > 1:
        hosts()
    kind = accelerator.device.type
    if device not in ("auto", kind):
        raise UserError(f"--device {device}: this process runs on {kind}; use --device auto")
    chosen = default_precision(kind) if precision == "auto" else precision
    if chosen == "fp16" and kind == "cpu":
        raise UserError("--precision fp16 does not train on a CPU; use bf16 or fp32")
    if not computes_natively(kind, chosen):
        name = torch.cuda.get_device_name(accelerator.device)
        raise UserError(
            f"--precision bf16: {name} only emulates it, many times slower; use fp16 or fp32"
        )
    if cpu.is_on(accelerator.device):
        cpu.keep_freed_memory()
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return Runtime(accelerator, chosen, kind in CHANNELS_LAST and channels_last != "off")


# Where Accelerate reads that there are other processes to wait for.
LAUNCHER = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def join_processes(*, cpu: bool) -> Accelerator | Alone:
    """Return the handle; variables that a launcher or a cluster left behind join nobody.

    Accelerate keeps the first device of a process for good. It is not asked for the CPU beside a
    card: a plan fits its tabular member there, an export is opened there before it is moved.

    Raises:
        UserError: this is one of several processes, and cannot find the others or share a device.
    """
    if is_launched():
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise UserError(
                    f"LOCAL_RANK and WORLD_SIZE are set as torchrun does, {name} is not: start "
                    "this with torchrun, or unset them to train in one process"
                )
        # without a card Accelerate joins nobody unless it is told to compute on the CPU
        accelerator = Accelerator(cpu=cpu or not torch.accelerator.is_available())
        if accelerator.num_processes == 1:
            kind = accelerator.device.type
            raise UserError(
                f"several processes do not train together on {kind}: leave torchrun out, or pass "
                "--device cpu"
            )
        return accelerator
    if cpu:
        return Alone(torch.device("cpu"))
    left = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        return Accelerator()
    finally:
        os.environ.update(left)


@cache
def hosts() -> distributed.ProcessGroup:
    """Return the process group of the hosts (gloo on the CPU), made once."""
    atexit.register(distributed.destroy_process_group)
    group = distributed.new_group(backend="gloo", timeout=timedelta(hours=6))
    return cast(distributed.ProcessGroup, group)


@contextmanager
def peers() -> Iterator[None]:
    """Say in one line that another process has gone, where torch has a page.

    Raises:
        MachineError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, distributed.DistBackendError)
        if not known and not any(word in str(error) for word in ("by peer", "gloo/")):
            raise
        raise MachineError("another process of this run ended without a word") from error


def check_device(device: str) -> None:
    """Refuse a device this machine lacks."""
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": torch.xpu.is_available,
    }
    if device in there and not there[device]():
        raise UserError(f"--device {device}: none on this machine; use --device auto")


def keep_maps_contiguous(model: nn.Module) -> None:
    """Let every BatchNorm of ``model`` see contiguous maps alone.

    Of others, such as a decoder behind a transformer has, its gradient on MPS raises or is wrong
    in versions of torch before mid-2026 (PyTorch #175189, #188371).
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not module._forward_pre_hooks:
            module.register_forward_pre_hook(_make_contiguous)


def _make_contiguous(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].contiguous()


def default_precision(kind: str) -> str:
    """Return the precision a device computes fastest without losing accuracy."""
    if kind == "cuda":
        return "bf16" if computes_natively(kind, "bf16") else "fp16"
    return "bf16" if kind == "xpu" else "fp32"


def computes_natively(kind: str, precision: str) -> bool:
    """Tell whether a device has arithmetic of that precision; cards before sm_80 emulate bf16."""
    if kind == "cuda" and precision == "bf16":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind != "cpu" or precision != "fp16"


def free_on_card(device: torch.device) -> int:
    """Return the bytes that this process may take of a CUDA card; 0 of any other device.

    What the allocator keeps of an earlier fold or pass is free, too, though the driver calls it
    used: else the second fold of a command would go on in smaller parts than the first.
    """
    if device.type != "cuda":
        return 0
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def is_large(device: torch.device) -> bool:
    """Tell whether ``device`` is a card of 40 GB and more that is nearly free."""
    return free_on_card(device) >= 0.9 * LARGE_CARD


def search_algorithms(device: torch.device, on: bool) -> None:
    """Let cuDNN time its algorithms for every new shape, or take the first it thinks of.

    A search costs seconds for a whole network: it pays for shapes that come hundreds of times.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = on


def seed_step(*key: int) -> None:
    """Set torch's generators from ``key``, so that dropout is a function of (seed, step).

    The words of the key are mixed as 64-bit FNV-1a does (Fowler, Noll, Vo).
    """
    state = 0xCBF29CE484222325
    for word in key:
        state = ((state ^ (word & 0xFFFFFFFF)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    # torch.manual_seed writes down the call stack for each kind of device that has not started
    seed = torch.manual_seed if torch.accelerator.is_available() else default_generator.manual_seed
    seed(state >> 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is any device's way to say that memory is short."""
    return isinstance(error, torch.OutOfMemoryError) or says_short_memory(error)


def release_memory(device: torch.device) -> None:
    """Collect garbage and empty the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
