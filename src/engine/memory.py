"""Running out of memory: recognise it on every device and give back what can be given back."""

from __future__ import annotations

import ctypes
import gc

import torch

# What allocators say where torch raises a plain RuntimeError.
MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "cublas_status_alloc_failed",
)


# mallopt's names for two thresholds, from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Tell glibc to keep freed activations for the next step instead of returning them.

    On a CPU every step frees and takes the same gigabytes; asking the kernel for them anew cost
    9 to 21 % of a step (docs/experiments.md). Elsewhere this does nothing.
    """
    set_thresholds(mmap=1 << 30, trim=(1 << 31) - 1)


def set_thresholds(*, mmap: int, trim: int) -> None:
    """Set from how many bytes on glibc maps a block of its own, and returns free ones."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, mmap)
    mallopt(M_TRIM_THRESHOLD, trim)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is any device's way to say that memory is short."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(m in str(error).lower() for m in MESSAGES)


def release_memory(device: torch.device) -> None:
    """Collect garbage and empty the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
