"""Runs of a plan: a fold trained by its row, in this process or in one for each further card.

:class:`Place` trains where it stands; a :class:`Card` has a process of its own do so, and passes on
how long a schedule shall be, which the plan alone decides.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import FoldConfig, InferConfig
from src.data.folds import Folds
from src.data.index import Index
from src.engine.interrupt import Interrupted
from src.files import Json
from src.pipelines.classification.follow import CardLost
from src.pipelines.classification.plan import Member
from src.pipelines.classification.plan_files import PLAN_AGAIN
from src.pipelines.run_folder import drop_damaged, finished, recover_finished
from src.reader import fill
from src.runs import Output, read_done
from src.script import UserError, explain, steady_streams
from src.tool_config import PlanConfig
from src.views import view_names

if TYPE_CHECKING:
    from src.engine.runtime import Runtime

STOPS_IN_S = 60.0  # a process that was asked to save and end


@dataclass(frozen=True)
class Place:
    """Data, options and device: what the steps of a plan work on."""

    config: PlanConfig
    output: Output
    base: Json
    index: Index
    folds: Folds
    test: Index
    runtime: Runtime

    @property
    def flags(self) -> Json:
        """What goes before the rows of plan.yaml."""
        rows_own = ["seed", "precision", *["pretrained"] * (self.config.pretrained == "auto")]
        return {key: value for key, value in self.base.items() if key not in rows_own}

    def row(self, name: str, fold: int) -> FoldConfig:
        """Return the options of a row of plan.yaml, as train_fold.py reads them."""
        own = {"config": str(self.output.plan), "model": name, "fold": str(fold)}
        return fill(FoldConfig, self.flags | own, row_by="model")

    def check_rows(self, names: Iterable[str]) -> None:
        """Refuse rows that could not be trained, and mend what finished folds have lost."""
        for name in names:
            self.check(name)
            self.mend(name)

    def check(self, name: str) -> None:
        """Refuse a row that has not begun and could not be trained, before anything is.

        Raises:
            UserError: no such weights, or an option that its backbone does not take.
        """
        from src.pipelines.classification.train import find_backbone

        if self.output.run(name, 0).folder.is_dir():
            return
        try:
            find_backbone(self.row(name, 0))
        except UserError as error:
            raise UserError(f"{self.output.plan}: {name}: {error}; {PLAN_AGAIN}") from None

    def mend(self, name: str) -> None:
        """Make again what finished folds of a member have lost; without weights, they begin anew.

        What a fold that is not finished has written of its OOF logits is taken away: no blend
        must use it.
        """
        from src.pipelines.classification.train import train_fold

        for fold in range(self.folds.num_folds):
            run, row = self.output.run(name, fold), self.row(name, fold)
            if not run.folder.is_dir():
                continue
            with run.hold():
                try:
                    read_done(run)
                except FileNotFoundError:
                    run.oof.unlink(missing_ok=True)
                    if lost := drop_damaged(run):
                        how = "goes on without" if run.has_state else "begun anew"
                        print(f"note: {run.folder}: {', '.join(lost)} damaged; {how}", flush=True)
                    continue
                except UserError as error:
                    print(f"note: {str(error).partition(';')[0]}; trained again", flush=True)
                    run.finished.unlink()
                    run.oof.unlink(missing_ok=True)
                    drop_damaged(run)
                    continue
                if not row.epochs or finished(run, row, self.folds.folds_hash):
                    continue  # a probe's files are looked at where it is fitted
                if recover_finished(run) is not None:
                    drop_damaged(run)
                    train_fold(row, self.output, run, self.index, self.folds, fold, self.runtime)

    def train_probe(self, name: str) -> None:
        """Fit the probe of every fold."""
        from src.pipelines.classification.probe import train_probes

        row = self.row(name, 0)
        train_probes(row, self.output, self.index, self.folds, self.test, self.runtime)

    def train(self, member: Member, fold: int, shorten: Callable[[int, int], int]) -> None:
        """Train a fold to its finished folder, and predict the test images once for all blends."""
        from src.pipelines.classification.infer import has_logits, hash_images, infer_fold
        from src.pipelines.classification.train import train_fold

        run, row = self.output.run(member.name, fold), self.row(member.name, fold)
        with run.hold():
            if not finished(run, row, self.folds.folds_hash):
                train_fold(
                    row, self.output, run, self.index, self.folds, fold, self.runtime, shorten
                )
            views = view_names(row.tta_steps, row.tta_scale)
            if not has_logits(run, hash_images(self.test), views):
                infer_fold(infer_options(self.config), run, self.test, views, None)


def infer_options(config: PlanConfig) -> InferConfig:
    """Return the options of inference."""
    # a plan's models are what to choose from
    return InferConfig(**config.shared(InferConfig) | {"models": ()})


class Card:
    """A process that trains folds on a card of its own."""

    def __init__(self, name: str, place: Place, environment: Mapping[str, str], log: Path) -> None:
        """Start it with ``environment`` beside this process's own; it prints into ``log``."""
        self.name, self.log = name, log
        context = get_context("spawn")
        self.pipe, there = context.Pipe()
        runtime = place.runtime.precision, place.runtime.channels_last
        # nothing of this process's own card goes there
        alone = replace(place, runtime=None)  # type: ignore[arg-type]
        self.process = context.Process(target=serve, args=(alone, runtime, there, log))
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        there.close()

    def train(self, member: Member, fold: int, shorten: Callable[[int, int], int]) -> None:
        """Have a fold trained, as :meth:`Place.train` does.

        Raises:
            CardLost: that failed, or the process has ended.
        """
        try:
            self.pipe.send((member, fold))
            while isinstance(said := self.pipe.recv(), tuple):
                self.pipe.send(shorten(*said))
        except (EOFError, OSError):
            said = "its process has ended"
        if said:
            raise CardLost(f"{member.name} fold {fold} on {self.name}: {said} (log: {self.log})")

    def end(self, *, now: bool) -> None:
        """Let the process end; ``now`` also where it trains, which saves its state."""
        if now:
            self.process.terminate()
        self.pipe.close()
        self.process.join(STOPS_IN_S)
        if self.process.is_alive():
            self.process.kill()


@contextmanager
def further_cards(
    place: Place, environments: Mapping[str, Mapping[str, str]]
) -> Iterator[list[Card]]:
    """Start a process for each name of a card with its environment; they end with the block."""
    logs = place.output.logs
    logs.mkdir(parents=True, exist_ok=True)
    cards: list[Card] = []
    now = True
    try:
        for name, environment in environments.items():
            log = logs / f"plan_{name.replace(' ', '')}.log"
            cards.append(Card(name, place, environment, log))
        yield cards
        now = False
    finally:
        for card in cards:
            card.end(now=now)


def serve(place: Place, choice: tuple[str, bool], pipe: Any, log: Path) -> None:
    """Train the folds that come through ``pipe`` until it closes: what a card's process does."""
    from src.engine.runtime import start_runtime

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    steady_streams()
    runtime = None
    while True:
        try:
            member, fold = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return

        def shorten(done: int, epochs: int) -> int:
            pipe.send((done, epochs))
            return int(pipe.recv())

        failed = ""
        try:
            if runtime is None:
                found = start_runtime(place.config.device, place.config.precision)
                runtime = found.with_choice(*choice)
                place = replace(place, runtime=runtime)
            place.train(member, fold, shorten)
        except Interrupted as stop:
            failed = str(stop)
        except Exception as error:
            failed = explain(error)[0].removeprefix("error: ")
            if not failed:
                pipe.send(f"{type(error).__name__}")
                raise
        pipe.send(failed)
        if failed:
            return


def _end_with_parent() -> None:
    """End this process when the one that started it has, however that ended."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
