"""Check of the whole toolkit on a CUDA card: correctness, speed, memory, in eight minutes.

    python benchmarks/gpu_check.py --out benchmarks/gpu.md
    python benchmarks/gpu_check.py --only layouts presets --nets resnet152d    (some of it)
    python benchmarks/gpu_check.py --device cpu --tiny         (tries the script itself, no card)

Every step runs in a process of its own under a time limit, so that one that fails or hangs does
not end the others; PASS or FAIL is printed as it ends. Steps about correctness run side by side,
steps about speed one after another; what has not begun after eight minutes is skipped. Images are
generated, weights are random. Without a card the script says so and ends well; the exit status is
1 where a step failed or was skipped.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_report import NUM_CLASSES, Report, Setting, read_report
from benchmarks.timing import ROOT, describe_machine, markdown_table, num_cores
from src.files import write_text

GRACE_S = 5.0  # between SIGTERM and SIGKILL
ON_A_CPU = 10.0  # times a card's limits
RUNNING: set[subprocess.Popen[bytes]] = set()  # steps, each the leader of a group


@dataclass(frozen=True)
class Step:
    """One step: the function ``name`` of ``module``, its time limit, whether it runs alone."""

    name: str
    module: str
    limit_s: float
    alone: bool


RUNS, SPEED = "benchmarks.gpu_runs", "benchmarks.gpu_speed"
STEPS = [
    Step("machine", RUNS, 40, alone=True),
    Step("way", RUNS, 120, alone=False),
    Step("resume", RUNS, 100, alone=False),
    Step("tests", RUNS, 150, alone=False),
    Step("loaders", SPEED, 60, alone=True),
    Step("throughput", SPEED, 80, alone=True),
    Step("presets", SPEED, 120, alone=True),
    Step("layouts", SPEED, 100, alone=True),
    Step("compiling", SPEED, 150, alone=True),
    Step("search", SPEED, 80, alone=True),
]


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    step: Step
    status: str  # PASS, FAIL or SKIP
    seconds: float
    report: Report
    trouble: str = ""  # how the process ended, if not well

    @property
    def found(self) -> str:
        """What failed, then what was found."""
        return "; ".join([*filter(None, [self.trouble]), *self.report.failures, *self.report.facts])


Command = Callable[[Step], Sequence[str]]


def run_step(step: Step, command: Command, folder: Path, deadline: float, threads: int) -> Result:
    """Run one step in a process of its own, end it at its limit, print how it ended."""
    report = folder / f"{step.name}.json"
    limit = min(step.limit_s, deadline - time.monotonic())
    if limit <= 0:
        result = Result(step, "SKIP", 0.0, Report(report), "no time was left")
    else:
        started = time.monotonic()
        trouble = run_process(command(step), folder / f"{step.name}.log", limit, threads)
        seconds = time.monotonic() - started
        found = read_report(report)
        status = "FAIL" if trouble or found.failures else "PASS"
        result = Result(step, status, seconds, found, trouble)
    print(f"{result.status} {step.name:10} {result.seconds:5.1f} s  {result.found}", flush=True)
    return result


def run_process(command: Sequence[str], log: Path, limit_s: float, threads: int) -> str:
    """Run ``command`` and whatever it starts; return how it ended, "" if well."""
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        RUNNING.add(process)
        late = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            kill_group(process)
            RUNNING.discard(process)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    if late:
        return f"stopped after {limit_s:.0f} s ({lines[-1][:200]})"
    if process.returncode:
        return f"exit status {process.returncode}: {lines[-1][:400]}"
    return ""


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


def stop_all(signum: int, frame: FrameType | None) -> None:
    """End every step, then this process."""
    for process in tuple(RUNNING):
        kill_group(process)
    os._exit(128 + signum)  # without waiting for the threads


def run_steps(
    steps: Sequence[Step], command: Command, folder: Path, *, seconds: float, jobs: int,
    after_each: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:  # fmt: skip
    """Run all steps: those that run alone one by one, runs of others side by side."""
    deadline = time.monotonic() + seconds
    results: list[Result] = []
    waiting = list(steps)
    while waiting:
        size = next((i for i, step in enumerate(waiting) if step.alone), len(waiting)) or 1
        group, waiting = waiting[:size], waiting[size:]
        threads = max(1, num_cores() // min(jobs, len(group)))
        with ThreadPoolExecutor(jobs) as pool:
            running = [
                pool.submit(run_step, step, command, folder, deadline, threads) for step in group
            ]
            for future in running:
                results.append(future.result())
                after_each(results)
    return results


def write_images(folder: Path, count: int, size: tuple[int, int], *, test: bool = True) -> None:
    """Write a competition of ``count`` JPEG images (height, width) of ten classes.

    A tint tells the class; smooth patterns and noise make the files about as hard to decode as
    photographs. One in ten is a test image, if there are any.
    """
    import cv2

    high, wide = size
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, (2 * high, 2 * wide, 1), dtype=np.int16)
    tints = rng.integers(0, 256, (NUM_CLASSES, 3), dtype=np.int16)

    def write(row: int) -> tuple[str, int]:
        own = np.random.default_rng(row)
        coarse = own.integers(0, 256, (high // 40 + 2, wide // 40 + 2, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (wide, high), interpolation=cv2.INTER_CUBIC)
        top, left = own.integers(high), own.integers(wide)
        pixels = smooth // 2 + tints[row % NUM_CLASSES] // 2 + noise[top:, left:][:high, :wide]
        label = -1 if test and row % NUM_CLASSES == row // NUM_CLASSES % NUM_CLASSES else row
        place = "test" if label < 0 else f"train/class{row % NUM_CLASSES}"
        path = folder / place / f"{row:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coded = cv2.imencode(".jpg", pixels.clip(0, 255).astype(np.uint8))[1]
        path.write_bytes(coded.tobytes())
        return path.name, label

    with ThreadPoolExecutor(num_cores()) as pool:
        names = [name for name, label in pool.map(write, range(count)) if label < 0]
    ids = [name.removesuffix(".jpg") for name in names]
    classes = ",".join(f"class{k}" for k in range(NUM_CLASSES))
    tables = {
        "test.csv": ["ID,img_path", *(f"{i},./test/{i}.jpg" for i in ids)],
        "sample_submission.csv": [f"ID,{classes}", *(f"{i}{',0.1' * NUM_CLASSES}" for i in ids)],
    }
    for name, lines in tables.items() if test else ():
        write_text(folder / name, "\n".join(lines) + "\n")


def write_data(setting: Setting) -> None:
    """Generate every step's images."""
    write_images(
        setting.folder / "data", setting.pick(2000, 120), setting.pick((480, 640), (48, 64))
    )
    write_images(
        setting.folder / "small", setting.pick(400, 80), setting.pick((120, 160), (40, 48))
    )
    size = setting.pick((1080, 1920), (90, 160))
    write_images(setting.folder / "large", setting.pick(192, 10), size, test=False)


def write_markdown(path: Path, results: Sequence[Result], flags: str) -> None:
    """Write how every step ended and all tables."""
    rows = [[r.step.name, r.status, f"{r.seconds:.0f}", r.found.replace("|", "/")] for r in results]
    parts = [
        f"# Check on a GPU\n\n`python benchmarks/gpu_check.py{flags}`\n\n{describe_machine()}\n",
        markdown_table([["step", "result", "s", "found"], *rows]) + "\n",
    ]
    for result in results:
        for title, table in result.report.tables.items():
            parts.append(f"## {title}\n\n{markdown_table(table)}\n")
    write_text(path, "\n".join(parts))


def stop(signum: int, frame: FrameType | None) -> None:
    """Say where a step stood, and let it end its own children."""
    traceback.print_stack(frame)
    sys.exit(128 + signum)


def perform(step: Step, setting: Setting) -> None:
    """Run a step in this process; what it expected in vain stands in its report."""
    signal.signal(signal.SIGTERM, stop)
    function = getattr(importlib.import_module(step.module), step.name)
    function(setting, Report(setting.folder / f"{step.name}.json"))


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="STEP",
                        help=" ".join(names))  # fmt: skip
    parser.add_argument("--nets", nargs="+", default=[], metavar="NET",
                        help="networks of the steps about speed; none = all")  # fmt: skip
    parser.add_argument("--out", type=Path, help="Markdown file of the results")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny nets and images")
    parser.add_argument("--minutes", type=float, default=8.0, help="no step runs longer than that")
    parser.add_argument("--jobs", type=int, default=max(1, min(4, num_cores() // 2)),
                        help="steps about correctness that run side by side")  # fmt: skip
    parser.add_argument("--step", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu: a CPU takes hours at full size; add --tiny")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, run the steps, write the report; return the exit status."""
    args = parse_flags(argv)
    if args.step:
        (step,) = (step for step in STEPS if step.name == args.step)
        perform(step, Setting(args.device, args.tiny, args.work, tuple(args.nets)))
        return 0
    if args.device == "auto":
        import torch

        if not torch.cuda.is_available():
            print("skipped: no CUDA card here; --device cpu --tiny tries the script itself")
            return 0
        args.device = "cuda"
    signal.signal(signal.SIGTERM, stop_all)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        setting = Setting(args.device, args.tiny, Path(folder), tuple(args.nets))
        results = check(args, setting)
    return int(any(result.status != "PASS" for result in results))


def check(args: argparse.Namespace, setting: Setting) -> list[Result]:
    """Generate the images, run the steps, print and write what they found."""
    begun = time.monotonic()
    write_data(setting)
    print(f"images generated in {time.monotonic() - begun:.1f} s", flush=True)
    chosen = ["--tiny"] * setting.tiny + (["--nets", *args.nets] if args.nets else [])
    own = ["--work", str(setting.folder), "--device", setting.device, *chosen]
    flags = "".join(f" {word}" for word in chosen + (["--only", *args.only] if args.only else []))

    def command(step: Step) -> list[str]:
        return [sys.executable, "benchmarks/gpu_check.py", "--step", step.name, *own]

    def write(results: list[Result]) -> None:
        if args.out:
            write_markdown(args.out, results, flags)

    patience = ON_A_CPU if setting.device == "cpu" else 1.0
    steps = [
        replace(step, limit_s=patience * step.limit_s)
        for step in STEPS
        if step.name in args.only or not args.only
    ]
    left = patience * 60 * args.minutes - (time.monotonic() - begun)
    results = run_steps(
        steps, command, setting.folder, seconds=left, jobs=args.jobs, after_each=write
    )
    for result in results:
        if result.trouble and result.status == "FAIL":
            log = (setting.folder / f"{result.step.name}.log").read_text("utf-8", "replace")
            print(f"\n== {result.step.name}: {result.trouble}\n{log[-3000:]}")
    for title, table in (pair for r in results for pair in r.report.tables.items()):
        print(f"\n### {title}\n\n{markdown_table(table)}")
    print(f"\n{time.monotonic() - begun:.0f} s in all", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
