"""Shared by the benchmarks: photographs, contestants in turns, peak memory, Markdown tables."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "retina", "stereo_motorcycle")
PACKAGES = ("torch", "timm", "albumentations", "opencv-python-headless", "numpy", "scikit-learn")


def write_photographs(
    folder: Path, count: int, size: tuple[int, int] = (480, 640), quality: int = 90
) -> list[str]:
    """Save ``count`` different crops of scikit-image's photographs as JPEG; return their names.

    Each is tiled, where it is too small, to three halves of ``size`` (height, width) and cropped
    at a place of its own.
    """
    try:
        from skimage import data
    except ImportError:
        sys.exit("error: no photographs: pip install scikit-image")
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    tiled = []
    for name in PHOTOGRAPHS:
        image = getattr(data, name)()
        image = image[0] if isinstance(image, tuple) else image
        repeats = [-(-3 * size[axis] // (2 * image.shape[axis])) for axis in (0, 1)]
        tiled.append(np.tile(image, (*repeats, 1)))
    names = []
    for number in range(count):
        image = tiled[number % len(tiled)]
        top, left = (int(rng.integers(image.shape[axis] - size[axis] + 1)) for axis in (0, 1))
        crop = image[top : top + size[0], left : left + size[1], ::-1]
        names.append(f"{number:05d}.jpg")
        cv2.imwrite(str(folder / names[-1]), crop, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return names


def alternate(
    contestants: dict[str, Callable[[], float]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Let the contestants take turns; return what each returned, one number a round.

    The order turns round every time, so that nobody always runs on a core heated by the same one.
    """
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warmup, rounds):
        order = list(contestants) if number % 2 else list(contestants)[::-1]
        for name in order:
            value = contestants[name]()
            if number >= 0:
                results[name].append(value)
    return results


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def paired(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return ``median (least … most)``."""
    low, middle, high = (
        f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} … {high})"


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, first column left, the others right."""
    print(markdown_table([header, *rows]) + "\n", flush=True)


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """Return a table, first column left, the others right; the first row is the header."""
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, rule, *body))


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, MB (mapped files included)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def megabytes(max_rss: int) -> float:
    """Return what the system counts in bytes on a Mac, else in KiB."""
    return max_rss / 2**20 if sys.platform == "darwin" else max_rss / 2**10


def describe_machine() -> str:
    """Return processor, cores, memory, system and versions, as a Markdown list."""
    lines = [f"- {processor()}, {num_cores()} cores, {memory_gib():.0f} GiB, {platform.system()}"]
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "\n".join([*lines, "- " + ", ".join(found)])


def processor() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float:
    """Return the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def run_measured(arguments: Sequence[str]) -> str:
    """Run a script as a user does; return its wall and processor time and its peak memory."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"error: {arguments[0]} failed")
    return (
        f"{time.perf_counter() - started:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of "
        f"processor time), peak memory {megabytes(usage.ru_maxrss):,.0f} MB (mapped files included)"
    )


def run_python(arguments: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python on ``arguments`` from the project's root and return what it printed."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"error: {' '.join(arguments[:2])} failed:\n{done.stderr[-2000:]}")
    return done
