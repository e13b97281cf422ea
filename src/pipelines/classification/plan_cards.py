"""Cards of a plan: folds trained at the same time, each in a process of its own.

One for each further CUDA card of the machine; on a CPU, whose threads a small net does not fill,
one more. All decisions are made in the first process: the others ask it how long a schedule shall
be.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from src.data.cache import free_memory
from src.engine.cpu import use_threads
from src.engine.interrupt import Interrupted
from src.engine.runtime import Runtime, start_runtime
from src.pipelines.classification.follow import CardLost, Train
from src.pipelines.classification.plan import Member, Work
from src.pipelines.classification.plan_runs import Place
from src.pipelines.grid import card_environment, find_cards
from src.script import explain, steady_streams
from src.tool_config import PlanConfig

STOPS_IN_S = 60.0  # a process that was asked to save and end
CPU_PACE = 0.62  # of a CPU's rate, what each of two has at the same time (docs/experiments.md)
LEAST_FREE = 3 << 30  # bytes that a further process on a CPU must find


@dataclass
class Cards:
    """Where folds are trained at the same time."""

    further: Mapping[str, Mapping[str, str]]  # name of a card → environment of its process
    threads: int = 0  # of a CPU, shared by the folds that train; 0 = each card has its own
    folds: int = 0  # that train at the moment
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def threads_each(self) -> int:
        """Threads of a fold while all cards train; 0 = those there are."""
        return self.threads // (1 + len(self.further))

    def share(self, work: Work) -> Work:
        """Return the size of the job for so many cards."""
        pace = CPU_PACE if self.threads and self.further else 1.0
        return replace(work, num_cards=1 + len(self.further), pace=pace)

    @contextmanager
    def training(
        self, place: Place, work: Work, members: Sequence[Member]
    ) -> Iterator[tuple[Train, list[Train], Work]]:
        """Yield how this process trains, how the further ones do, and the size of the job.

        The processes live as long as the block; where an error ends it, they save and end.
        Without ``members`` there is nothing to train, and without memory no room for one.
        """
        short = self.threads and free_memory() < max(LEAST_FREE, _most_used())
        if short or not members:
            self.further = {}
            work = self.share(work)
        logs = place.output.logs
        logs.mkdir(parents=True, exist_ok=True)
        cards: list[Card] = []
        now = True
        try:
            for name, environment in self.further.items():
                log = logs / f"plan_{name.replace(' ', '')}.log"
                cards.append(Card(name, place, environment, log, self))
                print(
                    f"plan: {name} trains folds at the same time, and prints into {log}", flush=True
                )
            yield self.here(place.train), [card.train for card in cards], work
            now = False
        finally:
            for card in cards:
                card.end(now=now)

    def here(self, train: Train) -> Train:
        """Return ``train`` of this process, with its share of the threads."""

        def train_one(member: Member, fold: int, shorten: Callable[[int, int], int]) -> None:
            def ask(done: int, epochs: int) -> int:
                asked = shorten(done, epochs)
                use_threads(self.each())
                return asked

            with self.counted():
                use_threads(self.each())
                train(member, fold, ask)
            use_threads(self.threads)  # for a blend

        return train_one

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a fold among those that share the threads."""
        with self.lock:
            self.folds += 1
        try:
            yield
        finally:
            with self.lock:
                self.folds -= 1

    def each(self) -> int:
        """Return the threads of each fold that trains now; 0 = as it is."""
        return self.threads // max(self.folds, 1) if self.threads else 0


def start_cards(config: PlanConfig) -> tuple[Runtime, Cards]:
    """Return the runtime of this process, and where else folds are trained."""
    found = find_cards() if config.device in ("auto", "cuda") else []
    alone = {f"card {card}": card_environment(card, len(found)) for card in found}
    if len(found) > 1:
        os.environ.update(alone.pop(f"card {found[0]}"))
    runtime = start_runtime(config.device, config.precision)
    if runtime.device.type != "cpu":
        return runtime, Cards(alone if len(found) > 1 else {})
    threads = torch.get_num_threads()
    shared = threads > 1 and free_memory() >= 2 * LEAST_FREE
    return runtime, Cards({"process 2": {"LOCAL_WORLD_SIZE": "2"}} if shared else {}, threads)


class Card:
    """A process that trains folds on a card of its own."""

    def __init__(
        self, name: str, place: Place, environment: Mapping[str, str], log: Path, cards: Cards
    ) -> None:
        """Start it with ``environment`` beside this process's own; it prints into ``log``."""
        self.name, self.log, self.cards = name, log, cards
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
            with self.cards.counted():
                self.pipe.send((member, fold, self.cards.each()))
                while isinstance(said := self.pipe.recv(), tuple):
                    self.pipe.send((shorten(*said), self.cards.each()))
        except (EOFError, OSError):
            said = "its process has ended"
        if said:
            raise CardLost(f"{member.name} fold {fold} on {self.name}: {said} (log: {self.log})")
        print(f"plan: {member.name} fold {fold} finished on {self.name}", flush=True)

    def end(self, *, now: bool) -> None:
        """Let the process end; ``now`` also where it trains, which saves its state."""
        if now:
            self.process.terminate()
        else:
            self.pipe.close()
        self.process.join(STOPS_IN_S)
        if self.process.is_alive():
            self.process.kill()
        self.pipe.close()


def serve(place: Place, choice: tuple[str, bool], pipe: Any, log: Path) -> None:
    """Train the folds that come through ``pipe`` until it closes: what a card's process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    steady_streams()
    failed = ""
    while not failed:
        try:
            member, fold, threads = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return

        def shorten(done: int, epochs: int) -> int:
            pipe.send((done, epochs))
            asked, threads = pipe.recv()
            use_threads(threads)
            return int(asked)

        try:
            use_threads(threads)
            if place.runtime is None:
                found = start_runtime(place.config.device, place.config.precision)
                place = replace(place, runtime=found.with_choice(*choice))
            place.train(member, fold, shorten)
        except Interrupted as stop:
            failed = str(stop)
        except Exception as error:
            failed = explain(error)[0].removeprefix("error: ")
            if not failed:
                pipe.send(f"{type(error).__name__}")
                raise
        pipe.send(failed)


def _most_used() -> int:
    """Return the most bytes this process has held at once, 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _end_with_parent() -> None:
    """End this process when the one that started it has, however that ended."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
