"""Every model on every fold on a Ray cluster, then the blend: scripts/cluster.py.

    python scripts/cluster.py --models convnext_base vit_base --folds 0 1 2 -- --epochs 15

One task a (model, fold). Code, data and output lie on a disk that all machines share. A task whose
worker or machine is lost is started again and goes on from its last state, to the same bits; the
same command after any stop does so for all of them. What follows ``--`` goes to train_fold.py.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.option import option
from src.pipelines.grid import Cell, Grid, GridConfig, count_states, read_grid
from src.script import UserError, run_script

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(GridConfig, group="hardware"):
    """A grid, and what each of its runs is given."""

    address: str = option("auto", "the cluster: `auto`, `local` (this machine alone), HOST:PORT")
    num_gpus: float = option(1.0, "cards of a run; 0 = the CPU", least=0, most=1)
    num_cpus: int = option(4, "cores of a run", least=1, most=1024)
    local_cpus: int = option(0, "cores of --address local; 0 = all", least=0, most=1024)
    retries: int = option(5, "times a run is started again after a lost worker", least=0, most=1000)
    table_seconds: float = option(30.0, "from one table to the next", above=0, most=86_400)


def main(argv: list[str]) -> int:
    """Train, blend and predict what ``argv`` asks for."""
    config, grid = read_grid(ClusterConfig, argv, "scripts/cluster.py", __doc__ or "")
    if not config.num_gpus:  # Ray leaves a machine's cards visible then
        grid = replace(grid, device="cpu")
    ray = connect(config)
    grid.output.logs.mkdir(parents=True, exist_ok=True)
    options = {
        "num_gpus": config.num_gpus, "num_cpus": config.num_cpus, "max_retries": config.retries,
        # a fresh process for each run; what the machine did to it may pass
        "max_calls": 1, "retry_exceptions": [OSError],
    }  # fmt: skip
    task = ray.remote(**options)(call)
    states = follow(ray, task, grid, config.table_seconds)
    failed = [
        f"{model}/fold{fold}" for (model, fold), state in states.items() if state != "finished"
    ]
    if failed:
        print(f"failed: {' '.join(failed)}; mend them and start this again", file=sys.stderr)
        return 1
    for script, *words in grid.last_steps():
        log = grid.output.logs / f"{script[:-3]}.log"
        status, said = ray.get(task.remote(str(ROOT), script[:-3], words, str(log.resolve())))
        print(f"{script}: {said or log}", flush=True)
        if status:
            return int(status)
    return 0


def connect(config: ClusterConfig) -> Any:
    """Return the ray package, connected.

    Raises:
        UserError: no such package, no cluster, or a machine that no run fits on.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of the change
    try:
        import ray
    except ImportError:
        raise UserError('scripts/cluster.py needs Ray: pip install "ray[default]"') from None
    cores = {"num_cpus": config.local_cpus or None} if config.address == "local" else {}
    try:
        ray.init(address=config.address, log_to_driver=False, **cores)
    except ConnectionError:
        raise UserError(
            f"--address {config.address}: no Ray cluster there; run ray start --head, or pass "
            "--address local"
        ) from None
    has = ray.cluster_resources()
    for name, wanted in (("gpu", config.num_gpus), ("cpu", config.num_cpus)):
        here = has.get(name.upper(), 0)
        if config.address == "local" and here < wanted:  # a cluster may still grow
            raise UserError(
                f"--num_{name}s {wanted:g}: Ray has {here:g} here, and no run would ever start; "
                f"pass --num_{name}s {here:g}"
            )
    return ray


def follow(ray: Any, task: Any, grid: Grid, seconds: float) -> dict[Cell, str]:
    """Start every run, print the table now and then, and return how each ended."""
    written = {cell: size_of(grid.log(cell)) for cell in grid.cells}
    pending = {start(task, grid, cell): cell for cell in grid.cells}
    states: dict[Cell, str] = {}
    due = 0.0
    while pending:
        for cell in pending.values():
            states[cell] = "running" if size_of(grid.log(cell)) > written[cell] else "waiting"
        if time.monotonic() >= due:
            show(grid, states)
            due = time.monotonic() + seconds
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=min(seconds, 2.0))
        for reference in ready:
            cell = pending.pop(reference)
            states[cell] = end(ray, reference, cell)
    show(grid, states)
    return states


def start(task: Any, grid: Grid, cell: Cell) -> Any:
    """Start one run; return the reference of its result."""
    return task.remote(str(ROOT), "train_fold", grid.arguments(cell), str(grid.log(cell).resolve()))


def size_of(path: Path) -> int:
    """Return a file's size, 0 without one."""
    return path.stat().st_size if path.exists() else 0


def show(grid: Grid, states: dict[Cell, str]) -> None:
    """Print the table of all runs."""
    print(f"\n{grid.table(states)}\n{count_states(states, grid.cells)}", flush=True)


def end(ray: Any, reference: Any, cell: Cell) -> str:
    """Return ``finished`` or ``failed``; why, is printed."""
    try:
        status, said = ray.get(reference)
    except ray.exceptions.RayError as error:
        status, said = 1, str(error).strip().splitlines()[-1]
    if status:
        print(f"{cell[0]} fold {cell[1]}: {said}", flush=True)
    return "failed" if status else "finished"


def call(root: str, script: str, words: Sequence[str], log: str) -> tuple[int, str]:
    """Run a script's ``main(words)`` in this worker; what it prints is appended to ``log``.

    In the worker itself, so that a run ends with its worker, and the next one finds no orphan.

    Returns:
        Exit status, and one line that says why where it is not 0.
    """
    if not Path(root, f"{script}.py").is_file():
        return 2, f"{root} is not on {socket.gethostname()}: put it on a disk that all share"
    sys.path.insert(0, root)
    os.chdir(root)  # input/weights is looked for here
    from src.script import MachineError, UserError

    with (
        Path(log).open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} on {socket.gethostname()}, process {os.getpid()}: {script}")
        try:
            status = importlib.import_module(script).main(list(words))
        except UserError as error:
            print(f"error: {error}")
            return 2, str(error)
        except MachineError as error:
            raise OSError(str(error)) from None  # is tried again
    return status or 0, f"stopped with status {status} (log: {log})" if status else ""


if __name__ == "__main__":
    run_script(main)
