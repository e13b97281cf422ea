"""Experiment logging: progress bars, ``metrics.csv``, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from tqdm import tqdm

from src.engine.runtime import Runtime
from src.files import write_text
from src.reader import ROOT
from src.runs import Run
from src.script import one_line


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


Value = float | np.ndarray  # a number, or a picture (H, W, 3) uint8 RGB
Tracker = Callable[[Mapping[str, Value], int], None]  # log(row, step)


@contextmanager
def open_trackers(
    run: Run, runtime: Runtime, asked: Sequence[str], options: Mapping[str, object]
) -> Iterator[list[Tracker]]:
    """Yield functions ``log(row, step)``: TensorBoard where installed, others where asked for.

    All get the same scalars, pictures and options under the same names. There are none but in the
    main process. A run that goes on adds to what it wrote before, and stops for no tracker's error.
    ``asked`` are of ``wandb`` and ``mlflow``.
    """
    openers = {"TensorBoard": _open_board} | {name: TRACKERS[name] for name in asked}
    logs, stack = [], ExitStack()
    for name, opener in openers.items() if runtime.is_main else ():
        tracker = _tolerant(name, opener)(run, options, stack)
        if tracker is not None:
            logs.append(_named(_tolerant(name, tracker)))
    try:
        yield logs
    finally:
        _tolerant("trackers", stack.close)()


def _tolerant(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let no error of a tracker stop the run: it is said once, and the tracker left out."""
    failed = False

    def call(*args: Any) -> Any:
        nonlocal failed
        if failed:
            return None
        try:
            return function(*args)
        except Exception as error:  # a server that is gone, a damaged file, a full disk
            failed = True
            said = f"{type(error).__name__} ({one_line(error)[:150]})"
            tqdm.write(f"note: {name}: {said}; the run goes on without it")
            return None

    return call


def _named(tracker: Tracker) -> Tracker:
    """Let a tracker see only names that all of them accept, numbers and pictures."""

    def log(row: Mapping[str, Value], step: int) -> None:
        kept: dict[str, Value] = {}
        for name, value in row.items():
            if isinstance(value, int | float | np.ndarray):
                kept[clean_name(name)] = value if isinstance(value, np.ndarray) else float(value)
        tracker(kept, step)

    return log


def clean_name(name: str) -> str:
    """Return ``name`` with ``_`` for what not every tracker accepts: ``map@3`` is ``map_3``."""
    return re.sub(r"[^-/\w.]", "_", name, flags=re.ASCII)


def _open_board(run: Run, options: Mapping[str, object], stack: ExitStack) -> Tracker | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    fresh = not run.tensorboard.exists()
    show = threading.excepthook
    stack.callback(setattr, threading, "excepthook", show)
    # its thread keeps an error for the next call, which is told in one line: it prints none itself
    threading.excepthook = lambda told: (
        None if "tensorboard" in type(told.thread).__module__ else show(told)
    )
    board = SummaryWriter(str(run.tensorboard))
    stack.callback(board.close)
    for name, value in options.items() if fresh else ():
        board.add_text(name, str(value))

    def log(row: Mapping[str, Value], step: int) -> None:
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                board.add_image(name, value, step, dataformats="HWC")
            else:
                board.add_scalar(name, value, step)
        board.flush()

    return log


def _open_wandb(run: Run, options: Mapping[str, object], stack: ExitStack) -> Tracker:
    import wandb

    session = wandb.init(
        project=run.folder.parent.name,
        name=run.folder.name,
        id=f"{run.folder.parent.name}-{run.folder.name}",
        dir=str(run.folder),
        resume="allow",
        config=dict(options),
    )
    stack.callback(session.finish)

    def log(row: Mapping[str, Value], step: int) -> None:
        shown = {n: wandb.Image(v) if isinstance(v, np.ndarray) else v for n, v in row.items()}
        session.log(shown, step=step)

    return log


def _open_mlflow(run: Run, options: Mapping[str, object], stack: ExitStack) -> Tracker:
    """Log to ``MLFLOW_TRACKING_URI``, else to a SQLite file beside the models' folders."""
    from mlflow import MlflowClient

    place = run.folder.resolve().parent.parent / "mlflow.db"
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}")
    name = run.folder.parent.name
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name)
    mine = f"tags.mlflow.runName = '{run.folder.name}'"
    found = client.search_runs([experiment], mine, max_results=1)
    started = found[0] if found else client.create_run(experiment, run_name=run.folder.name)
    number = started.info.run_id
    if not found:
        for option, value in options.items():
            client.log_param(number, option, value)
    stack.callback(client.set_terminated, number)

    def log(row: Mapping[str, Value], step: int) -> None:
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                client.log_image(number, value, key=name, step=step)
            else:
                client.log_metric(number, name, value, step=step)

    return log


TRACKERS = {"wandb": _open_wandb, "mlflow": _open_mlflow}


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
            git, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", check=True,
            timeout=5,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or no repository: an unpacked archive
    return found
