"""Training speed-ups for CPUs alone, where they were measured, behind one switch: :func:`is_on`.

They are off on every other device: there nobody has seen that they pay. The network's own part
(BatchNorm applied inside frozen convolutions, depthwise gradients in float32) is its method
``tune_for_cpu``. Measurements: docs/experiments.md.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# mallopt's names for two thresholds, from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def is_on(device: torch.device) -> bool:
    """Tell whether the shortcuts are used on ``device``."""
    return device.type == "cpu"


def tune_for_cpu(model: nn.Module, device: torch.device) -> None:
    """Let ``model``, or the network inside it, train by the ways that are faster on a CPU.

    In place; parameters, buffers and their names stay, results change in their last bits.
    """
    for module in model.modules() if is_on(device) else ():
        if hasattr(module, "tune_for_cpu"):
            module.tune_for_cpu()  # type: ignore[operator]


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Compute with so many threads while the block lasts; 0 = with those there are."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@contextmanager
def with_fastest_threads(device: torch.device) -> Iterator[None]:
    """Compute with fewer threads while the block lasts, where those are faster on a CPU now."""
    with with_threads(0):
        use_threads(torch.get_num_threads() if is_on(device) else 0)
        yield


def use_threads(most: int) -> None:
    """Let this process compute with so many threads, or fewer where those are faster now.

    Beside other programs each operation waits for its slowest thread, and half of the threads were
    seen to be two to three times as fast. 0 = as it is.
    """
    if most:
        while most > 1 and seconds_with(most // 2) < seconds_with(most):
            most //= 2
        torch.set_num_threads(most)


def seconds_with(threads: int) -> float:
    """Return how long a small convolution takes with so many threads, measured for .05 s."""
    image, kernel = torch.ones(4, 32, 56, 56), torch.ones(64, 32, 3, 3)
    with with_threads(threads), torch.inference_mode():
        nn.functional.conv2d(image, kernel)  # starts the threads
        begun, count = time.perf_counter(), 0
        while time.perf_counter() < begun + 0.05:
            nn.functional.conv2d(image, kernel)
            count += 1
        return (time.perf_counter() - begun) / count


def keep_freed_memory() -> None:
    """Tell glibc to keep freed activations for the next step instead of returning them.

    Every step frees and takes the same gigabytes; asking the kernel for them anew cost 8 to 21 %
    of a step. Without glibc this does nothing.
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


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, by dot products.

    They read memory nearly twice as fast as torch's norms.
    """
    flat = [  # a view in either layout
        (g if g.is_contiguous() or g.ndim != 4 else g.permute(0, 2, 3, 1)).reshape(-1)
        for g in gradients
    ]
    return torch.stack([torch.dot(g, g) for g in flat]).sum().sqrt()


def clip_inside(optimizer: Optimizer, norm: Tensor, limit: float) -> None:
    """Let a fused optimizer's next step divide the gradient by what ``norm`` exceeds ``limit``.

    It does so while it reads the gradient, which saves a pass over it.
    """
    excess = (norm + 1e-6) / limit  # as torch's own clipping has it
    optimizer.grad_scale = None if bool(excess <= 1) else excess  # type: ignore[attr-defined]
