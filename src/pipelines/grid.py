"""Grid of runs, models × folds: options, order, commands, logs and one progress table.

What scripts/overnight.py trains on the cards of a machine and scripts/cluster.py on many machines.
Nothing heavy is imported here.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import FoldConfig, OutsideConfig, PlaceConfig
from src.option import option
from src.pipelines.run_folder import read_table
from src.reader import build_parser, parse, read_rows
from src.runs import Output, Run, read_done, safe_name
from src.script import UserError, format_table

Cell = tuple[str, str]  # model, fold
OWN = ("model", "fold", "data_dir", "output_dir")  # flags that the grid itself gives


@dataclass(frozen=True, kw_only=True)
class GridConfig(PlaceConfig, OutsideConfig, group="run"):
    """Which runs; what follows ``--`` goes to train_fold.py."""

    models: tuple[str, ...] = option(
        (), "rows of the presets, or timm ids; none = every row", first=True
    )
    folds: tuple[str, ...] = option(("0", "1", "2", "3", "4"), "folds, or `full`", first=True)


@dataclass(frozen=True)
class Grid:
    """Runs in the order they start: all models on one fold first, so that a blend is early."""

    models: tuple[str, ...]
    folds: tuple[str, ...]  # numbers, or ``full``
    data_dir: str  # of train_fold.py
    output_dir: str  # of train_fold.py
    flags: tuple[str, ...] = ()  # further words for train_fold.py
    allow_outside: bool = False  # of the scripts that read tables of images
    device: str = ""  # of the scripts that compute networks; "" = what they find

    @property
    def output(self) -> Output:
        """Folder of everything."""
        return Output(Path(self.output_dir))

    @property
    def cells(self) -> list[Cell]:
        """Every (model, fold)."""
        return [(model, fold) for fold in self.folds for model in self.models]

    @property
    def places(self) -> list[str]:
        """Flags that say where data and results are."""
        return ["--data_dir", self.data_dir, "--output_dir", self.output_dir]

    @property
    def images(self) -> list[str]:
        """Flags of the scripts that read tables of images, and compute networks."""
        device = ["--device", self.device] if self.device else []
        return [*self.places, *["--allow_outside"] * self.allow_outside, *device]

    def arguments(self, cell: Cell) -> list[str]:
        """Return the words of train_fold.py for one run."""
        return ["--model", cell[0], "--fold", cell[1], *self.images, *self.flags]

    def last_steps(self) -> list[list[str]]:
        """Return what follows the training: scripts and their words."""
        infer = ["infer_ensemble.py", "--tta_steps", "5", *self.images]
        return [["optimize_weights.py", *self.places], infer]

    def run(self, cell: Cell) -> Run:
        """Return the folder of one run."""
        return self.output.run(cell[0], None if cell[1] == "full" else int(cell[1]))

    def log(self, cell: Cell) -> Path:
        """Return the file that keeps what one run prints."""
        return self.output.logs / f"{safe_name(cell[0])}_fold{cell[1]}.log"

    def table(self, states: Mapping[Cell, str]) -> str:
        """Return the progress of all runs: state, epochs validated, best score."""
        rows = [
            [*cell, *_progress(self.run(cell), states.get(cell, "waiting"))] for cell in self.cells
        ]
        return format_table(["model", "fold", "state", "epoch", "monitor", "score"], rows)


def read_grid(
    config_class: Any, argv: Sequence[str], prog: str, description: str
) -> tuple[Any, Grid]:
    """Read the options of a grid and, behind ``--``, the words for train_fold.py.

    Raises:
        UserError: an unknown flag on either side, or one that the grid itself gives.
    """
    cut = list(argv).index("--") if "--" in argv else len(argv)
    config = parse(config_class, argv[:cut], prog=prog, description=description)
    flags = tuple(argv[cut + 1 :])
    given = vars(build_parser(FoldConfig, prog, "").parse_known_args(flags)[0])
    doubled = [f"--{name}" for name in OWN if name in given]
    if doubled:
        raise UserError(f"{', '.join(doubled)} behind --: give it to {prog} itself, before the --")
    if "name" in given:
        raise UserError("--name behind --: the runs of a grid are named by their models")
    shaped = parse(
        FoldConfig, ["--model", *config.models[:1], *flags] if config.models else flags,
        prog="train_fold.py", description="", row_by="model",
    )  # fmt: skip
    models = config.models or tuple(read_rows(Path(shaped.config), FoldConfig)[1])
    for fold in config.folds:
        if fold != "full" and not (fold.isascii() and fold.isdigit()):
            raise UserError(f"--folds {fold}: numbers from 0, or `full`")
    outside = config.allow_outside or shaped.allow_outside
    return config, Grid(models, config.folds, config.data_dir, config.output_dir, flags, outside)


def count_states(states: Mapping[Cell, str], cells: Collection[Cell]) -> str:
    """Return ``3 finished, 2 running, 5 waiting``."""
    found = [states.get(cell, "waiting").split()[0] for cell in cells]
    return ", ".join(f"{found.count(name)} {name}" for name in dict.fromkeys(found))


def _progress(run: Run, state: str) -> list[object]:
    """Return state, epochs, monitored score and its value."""
    try:
        done = read_done(run)
        return ["finished", done.get("epochs", ""), done.get("monitor", ""), done.get("score", "")]
    except (OSError, UserError):
        pass
    rows = read_table(run.metrics)
    return [state, rows[-1].get("epoch", "") if rows else "", "", ""]


def find_cards() -> list[str]:
    """Return the cards of this machine, as CUDA_VISIBLE_DEVICES takes them; none = the CPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(dict.fromkeys(name.strip() for name in named.split(",") if name.strip()))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.decode().split() if listed.returncode == 0 else []


def card_environment(card: str, num_cards: int) -> dict[str, str]:
    """Return what lets a process see one card alone of those that :func:`find_cards` found."""
    # cores and memory are shared with the other cards' processes
    found = {"CUDA_VISIBLE_DEVICES": card, "LOCAL_WORLD_SIZE": str(num_cards)}
    if "CUDA_VISIBLE_DEVICES" not in os.environ:  # nvidia-smi counts by the bus
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return found
