"""Experiment logging: progress bars, ``metrics.csv``, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from src.engine.runtime import Runtime
from src.files import write_text
from src.runs import Run


def say(runtime: Runtime, text: str) -> None:
    """Print one line from the main process, above any bar."""
    if runtime.is_main:
        tqdm.write(text)
        sys.stdout.flush()


def bar_options(runtime: Runtime) -> dict[str, Any]:
    """Return tqdm's options: a live bar on a terminal, none in a log file."""
    quiet = not runtime.is_main or not sys.stderr.isatty()
    return {"dynamic_ncols": True, "mininterval": 0.5, "disable": quiet}


def write_metrics(run: Run, history: Sequence[Mapping[str, float]]) -> None:
    """Write ``metrics.csv``: one row a validated epoch. No clock times, so reruns are identical."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(run.metrics, text.getvalue())


Tracker = Callable[[Mapping[str, float], int], None]


@contextmanager
def open_trackers(
    run: Run, runtime: Runtime, wandb: bool, config: Mapping[str, object]
) -> Iterator[list[Tracker]]:
    """Yield functions ``log(row, step)``: TensorBoard where installed, W&B where asked for.

    There are none but in the main process.
    """
    if not runtime.is_main:
        yield []
        return
    trackers: list[Tracker] = []
    board = session = None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        pass
    else:
        board = writer = SummaryWriter(str(run.tensorboard))

        def log_board(row: Mapping[str, float], step: int) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        trackers.append(log_board)
    if wandb:
        import wandb as weights_and_biases

        session = log = weights_and_biases.init(
            project=run.folder.parent.name,
            name=run.folder.name,
            id=f"{run.folder.parent.name}-{run.folder.name}",
            dir=str(run.folder),
            resume="allow",
            config=dict(config),
        )
        trackers.append(lambda row, step: log.log(dict(row), step=step))
    try:
        yield trackers
    finally:  # each holds a thread and open files
        if board:
            board.close()
        if session:
            session.finish()


def versions() -> dict[str, str]:
    """Return the versions a result depends on, and the commit of the code where git knows it."""
    import platform
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "timm", "albumentations", "opencv-python-headless", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    try:
        git = ["git", "rev-parse", "HEAD"]
        found["commit"] = subprocess.run(
            git, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or no repository: an unpacked archive
    return found
