"""Watching of running folds: epoch, last loss and score, time left; in the terminal and on a page.

Reads ``config.yaml``, ``metrics.csv`` and ``finished.json`` of runs whose files have changed since
the last look, and nothing else. Files carry no clock times (reruns are identical), so time left
comes from the times of the files: since the run's start at first, then from epochs seen to end.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.files import write_text
from src.page import note, page, table
from src.pipelines.report import RunSummary, curves, monitored, read_run, run_folders, run_tables
from src.runs import Output, Run
from src.script import UserError, counted, format_table

SECONDS = 5  # between two looks
IDLE_SECONDS = 30  # without a process that trains, after which watching ends: folds follow folds
REFRESH = 10  # seconds after which the page loads itself again
HEADER = ("run", "fold", "epoch", "train_loss", "score", "score is", "s/epoch", "left", "state")
CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True)
class Progress:
    """How far one run has come."""

    run: RunSummary  # what it has written
    epoch: int  # the last one that ended
    epochs: int  # of the whole run
    loss: float  # training loss of that epoch, nan before the first
    score: float  # last value of what chooses the epoch
    pace: float  # seconds an epoch, nan while unknown
    left: float  # seconds to the end, nan while unknown
    state: str  # ``running``, ``stopped`` or ``finished``

    def cells(self) -> list[object]:
        """Return the row of a table."""
        of = f"{self.epoch}/{self.epochs}" if self.epochs else str(self.epoch)
        pace = f"{self.pace:.3g}" if self.pace == self.pace else ""
        left = clock_time(self.left) if self.state == "running" else ""
        what = self.run.monitor or monitored(self.run)
        return [self.run.name, self.run.fold, of, self.loss, self.score, what, pace, left,
                self.state]  # fmt: skip


@dataclass
class Watch:
    """Runs below an output folder, read again only where their files change."""

    output: Output
    now: Callable[[], float] = time.time
    known: dict[Path, tuple[object, RunSummary]] = field(default_factory=dict)
    first: dict[Path, tuple[int, float]] = field(default_factory=dict)  # epoch, and when it ended
    changed: bool = False  # at the last look

    def look(self) -> list[Progress]:
        """Return the progress of every run, those that run first."""
        self.changed = False
        found = [self._progress(run) for run in map(self._read, run_folders(self.output)) if run]
        order = ("running", "stopped", "finished")
        return sorted(found, key=lambda p: (order.index(p.state), p.run.name, p.run.fold))

    def _read(self, folder: Path) -> RunSummary | None:
        run = Run(folder)
        mark = tuple(_stamp(path) for path in (run.config, run.metrics, run.finished))
        if folder not in self.known or self.known[folder][0] != mark:
            try:
                name = folder.parent.relative_to(self.output.root).as_posix()
                self.known[folder] = (mark, read_run(run, name))
            except UserError:  # being written, or damaged: the report says so
                return self.known[folder][1] if folder in self.known else None
            self.changed = True
        return self.known[folder][1]

    def _progress(self, run: RunSummary) -> Progress:
        folder, last = run.run.folder, run.metrics[-1] if run.metrics else {}
        epoch = int(float(last.get("epoch") or 0))
        epochs = int(run.done.get("epochs", run.options.get("epochs", 0)))
        ended = _stamp(run.run.metrics if epoch else run.run.config)[0] / 1e9
        begun, start = self.first.setdefault(folder, (epoch, ended))
        if epoch < begun:  # started afresh
            begun, start = self.first[folder] = (epoch, ended)
        pace = (ended - start) / (epoch - begun) if epoch > begun else float("nan")
        if epoch and pace != pace:
            pace = max(ended - _stamp(run.run.config)[0] / 1e9, 0.0) / epoch
        left = max(pace * (epochs - epoch) - (self.now() - ended), 0.0) if epoch else float("nan")
        what = run.monitor or monitored(run)
        score = last.get(f"valid_{what}") or last.get(f"ema_{what}") or "nan"
        state = "finished" if run.done else "running" if is_alive(run.run.lock) else "stopped"
        loss = float(last.get("train_loss") or "nan")
        return Progress(run, epoch, epochs, loss, float(score), pace, left, state)


def watch(
    output: Output,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> None:
    """Show the runs below ``output`` until none has been trained for half a minute, or Ctrl-C.

    A terminal gets one table that is drawn again, anything else a line for each epoch that ended.
    """
    seen, shown, idle = Watch(output, now), Lines(), now()
    path = output.report / "watch.html"
    print(f"watching {output.root}; the page is {path}; Ctrl-C ends it", flush=True)
    found: list[Progress] = []
    try:
        while True:
            found = seen.look()
            if sys.stdout.isatty():
                print(CLEAR + live_table(found), flush=True)
            else:
                for line in shown.new(found):
                    print(line, flush=True)
            if seen.changed or not path.exists():
                write_page(path, output, found, refresh=REFRESH)
            idle = now() if is_training(output) else idle
            if now() - idle >= IDLE_SECONDS:
                break
            sleep(SECONDS)
    except KeyboardInterrupt:
        print()
    write_page(path, output, found, refresh=0)
    states = [p.state for p in found]
    said = ", ".join(f"{states.count(s)} {s}" for s in ("running", "stopped", "finished"))
    print(
        f"watched {counted(len(found), 'run')}: {said}; scripts/report.py writes the whole report"
    )


class Lines:
    """Lines for a log: each run once at first, then whenever it has come further."""

    def __init__(self) -> None:
        self.before: dict[Path, tuple[int, str]] = {}

    def new(self, found: Sequence[Progress]) -> list[str]:
        """Return lines of the runs that have come further since the last call."""
        lines, at_first = [], not self.before
        for p in found:
            folder, at = p.run.run.folder, (p.epoch, p.state)
            before, self.before[folder] = self.before.get(folder), at
            if before == at or (p.state == "finished" and at_first):
                continue
            cells = zip(HEADER[2:], p.cells()[2:], strict=True)
            shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in cells
                     if v not in ("",) and v == v]  # fmt: skip
            lines.append(f"{p.run.name} fold {p.run.fold}: " + ", ".join(shown))
        return lines


def live_table(found: Sequence[Progress]) -> str:
    """Return the table of what is not finished, and how many runs are."""
    open_runs = [p for p in found if p.state != "finished"]
    num = len(found) - len(open_runs)
    rows = [p.cells() for p in open_runs]
    shown = format_table(HEADER, rows) if rows else "nothing is training"
    return f"{shown}\n\n{num} finished; Ctrl-C ends watching, not training"


def write_page(path: Path, output: Output, found: Sequence[Progress], *, refresh: int) -> None:
    """Write the page of the runs; it loads itself again after ``refresh`` seconds, 0 = never."""
    rows = [p.cells() for p in found]
    runs = [p.run for p in found]
    progress = table(HEADER, rows, caption="runs and the time they have left")
    sections = {"Progress": [progress if rows else note("no run yet")]}
    sections |= {"Runs": run_tables(runs) if runs else [], "Learning curves": curves(runs)}
    about = f"as of {time.strftime('%H:%M:%S')}" + (", loads itself again" if refresh else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(f"Runs of {output.root}", sections, about=about, refresh=refresh))


def is_training(output: Output) -> bool:
    """Tell whether a process works on a run that is not finished, started to train or not yet."""
    locks = [lock for pattern in ("*/fold*/.lock", "*/*/fold*/.lock")
             for lock in output.root.glob(pattern)]  # fmt: skip
    return any(not Run(lock.parent).finished.exists() and is_alive(lock) for lock in locks)


def is_alive(lock: Path) -> bool:
    """Tell whether the process that the lock file names goes on; another machine's counts an hour.

    The lock itself is not tried: a run that starts at that moment would find it taken.
    """
    try:
        text = lock.read_text(encoding="utf-8", errors="replace")
        age = time.time() - max(_stamp(path)[0] for path in lock.parent.iterdir()) / 1e9
    except (OSError, ValueError):
        return False
    found = re.match(r"process (\d+) on (.*)", text)
    if found is None or found[2] != platform.node() or os.name == "nt":
        return found is not None and age < 3600
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's
    return True


def clock_time(seconds: float) -> str:
    """Return ``h:mm:ss``; an empty text where it is unknown."""
    if seconds != seconds:
        return ""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
