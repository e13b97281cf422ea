"""Every model on every fold, one run a card at a time, then the blend: scripts/overnight.py.

    python scripts/overnight.py --models convnext_base vit_base --folds 0 1 2 -- --epochs 15

Cards are those that nvidia-smi lists, or that CUDA_VISIBLE_DEVICES names; without any, one run at a
time. Start it again after any stop: finished folds are skipped, a half-trained one goes on. What
each run prints lies in output/logs/; what follows ``--`` goes to train_fold.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.pipelines.grid import Cell, Grid, GridConfig, card_environment, find_cards, read_grid
from src.script import PARENT, run_script

ROOT = Path(__file__).resolve().parent.parent
STOPPED = {129, 130, 143}  # exit statuses of a run that somebody stopped


def main(argv: list[str]) -> int:
    """Train, blend and predict what ``argv`` asks for."""
    _, grid = read_grid(GridConfig, argv, "scripts/overnight.py", __doc__ or "")
    grid.output.logs.mkdir(parents=True, exist_ok=True)
    night = Night(grid, find_cards())
    night.train()
    if night.signum:
        print(f"stopped by {signal.Signals(night.signum).name}; the same command goes on from here")
        return 128 + night.signum
    if night.failed:
        print(f"\n{grid.table(night.states)}\n")
        names = [f"{model}/fold{fold}" for model, fold in night.failed]
        print(f"failed: {' '.join(names)}; mend them and start this again", file=sys.stderr)
        return 1
    for script, *words in grid.last_steps():
        status = night.wait(night.start(script, words, grid.output.logs / f"{script[:-3]}.log"))
        if status:
            return status
    return 0


class Night:
    """The runs of a grid, as many at once as there are cards."""

    def __init__(self, grid: Grid, cards: Sequence[str]) -> None:
        """Let ``cards`` train ``grid``."""
        self.grid, self.cards = grid, list(cards)
        self.states: dict[Cell, str] = {}
        self.failed: list[Cell] = []  # runs that ended with an error
        self.signum = 0  # signal that asked to stop, 0 without any
        self._printers: dict[int, threading.Thread] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):  # Windows has no SIGHUP
                signal.signal(getattr(signal, name), self._ask_to_stop)

    def train(self) -> None:
        """Train every run that is not finished; a signal lets those under way save and end."""
        waiting, free = deque(self.grid.cells), deque(self.cards or [""])
        running: dict[str, tuple[Cell, subprocess.Popen[str]]] = {}
        while (waiting and not self.signum) or running:
            while waiting and free and not self.signum:
                card, cell = free.popleft(), waiting.popleft()
                running[card] = (cell, self._start_run(cell, card))
            for card, (cell, process) in list(running.items()):
                if process.poll() is not None:
                    del running[card]
                    free.append(card)
                    self._end_run(cell, self.wait(process))
            if self.signum:
                for _, process in running.values():
                    ask_to_save(process)
                for cell, process in running.values():
                    self._end_run(cell, self.wait(process))
                running.clear()
            time.sleep(0.1)

    def start(
        self, script: str, words: Sequence[str], log: Path, card: str = "", label: str = ""
    ) -> subprocess.Popen[str]:
        """Start a script whose lines go to ``log`` and, behind ``label``, to the screen."""
        # Windows would write the machine's own encoding into a pipe
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        if os.name != "nt":  # where a virtual environment's Python is a child of its own
            environment[PARENT] = str(os.getpid())
        if card:
            environment |= card_environment(card, len(self.cards))
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *words], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )  # fmt: skip
        printer = threading.Thread(target=_copy, args=(process.stdout, log, label), daemon=True)
        printer.start()
        self._printers[process.pid] = printer
        return process

    def wait(self, process: subprocess.Popen[str]) -> int:
        """Return a script's exit status, as a shell gives it, when all it printed is written."""
        asked = False
        while process.poll() is None:
            if self.signum and not asked:
                ask_to_save(process)
                asked = True
            time.sleep(0.1)
        self._printers.pop(process.pid).join(timeout=10)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _start_run(self, cell: Cell, card: str) -> subprocess.Popen[str]:
        log, where = self.grid.log(cell), f" on card {card}" if card else ""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} {cell[0]} fold {cell[1]}{where} (log: {log})", flush=True)
        self.states[cell] = f"running{where}"
        label = f"[{cell[0]} {cell[1]}] " if len(self.cards) > 1 else ""
        return self.start("train_fold.py", self.grid.arguments(cell), log, card, label)

    def _end_run(self, cell: Cell, status: int) -> None:
        self.states[cell] = "finished" if status == 0 else "stopped"
        if status in STOPPED:  # somebody stopped the one: no other is begun
            self.signum = self.signum or status - 128
        elif status:
            self.states[cell] = "failed"
            if not self.signum:
                self.failed.append(cell)

    def _ask_to_stop(self, signum: int, _: object) -> None:
        self.signum = signum


def ask_to_save(process: subprocess.Popen[str]) -> None:
    """Let a run save its state and end; on Windows, which kills here, Ctrl-C has told it too."""
    if os.name != "nt":
        process.terminate()


def _copy(lines: Iterable[str], log: Path, label: str) -> None:
    """Write lines to a log and to the screen until the process ends.

    Whatever becomes of the log, they are taken: a run whose pipe is full would wait for ever.
    """
    told = False
    for line in lines:
        print(f"{label}{line}", end="", flush=True)
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if not told:
                print(f"note: {log}: {error.strerror}; the run goes on without it", flush=True)
            told = True


if __name__ == "__main__":
    run_script(main)
