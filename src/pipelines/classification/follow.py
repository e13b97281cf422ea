"""Following a plan to its deadline: clock, trimming of schedules, what is blended when.

A loop over (member, fold) that takes what it does as functions, so that a test needs neither a
network nor a clock. Folds go round by round (all members on fold 0 first), and the schedule of
every fold is trimmed between epochs to its share of the time that is left: a cosine that ends in
time instead of one that is cut.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from src.config import MAX_MEMBERS
from src.ensemble.pool import log_softmax, true_losses
from src.ensemble.predictions import open_oof
from src.files import Json, sweep, write_json
from src.metrics.classification import Array, fit_temperature
from src.pipelines.classification.plan import (
    MIN_EPOCHS,
    RECIPES,
    Candidate,
    Member,
    Work,
    next_member,
    spare_probe,
)
from src.pipelines.classification.plan_files import read_state
from src.script import counted

BEAT_S = 2.0
STALL_S = 10.0  # a beat that comes so late says that the whole process was stopped
PROBE_CAUTION = 1.5  # a probe is begun where there is so many times what it should take
LEAST_FINAL_S = 12.0
SEARCHED = 3.0  # a blend with a search takes so many times as long as one without


@dataclass
class Clock:
    """Seconds spent on a plan, those of earlier, killed processes included."""

    path: Path  # file that remembers them
    hours: float  # all there are
    now: Callable[[], float] = time.monotonic
    began: float = 0.0  # when the process began, by that clock; 0 = now
    earlier: float = 0.0  # seconds that are known to be spent, should the file be lost
    state: Json = field(default_factory=dict)  # what else the file remembers
    stalled: float = 0.0  # seconds in which this process was stopped
    # held while the state changes, or is written
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Read what earlier processes left."""
        self.began = self.began or self.now()
        self.before, self.state = read_state(self.path, self.earlier)

    def spent(self) -> float:
        """Return the seconds spent so far."""
        return self.before + self.now() - self.began

    def worked(self) -> float:
        """Return the seconds spent without those in which the process was stopped."""
        return self.spent() - self.stalled

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.hours * 3600 - self.spent()

    def save(self) -> None:
        """Write seconds and state."""
        with self.lock:  # two threads would write under one temporary name
            write_json(self.path, {"spent_s": round(self.spent(), 2), **self.state})

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write the seconds every other moment while the block lasts, so that a kill loses few."""
        stop, failed = threading.Event(), threading.Event()

        def beat() -> None:
            asleep = self.now()
            while not stop.wait(BEAT_S) and not failed.is_set():
                before, asleep = asleep, self.now()
                late = asleep - before - BEAT_S
                self.stalled += late if late > STALL_S else 0.0
                try:
                    self.save()
                except RuntimeError:  # what it remembers grew in this moment
                    pass
                except OSError:  # whoever writes what matters will say so
                    failed.set()

        sweep(self.path.parent, self.path.name)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.save()


class CardLost(Exception):  # noqa: N818 (its folds are trained on the other cards)
    """A further card trains no more."""


# (member, fold, shorten) → trains the fold to its finished folder
Train: TypeAlias = Callable[[Member, int, Callable[[int, int], int]], None]


@dataclass(frozen=True)
class Steps:
    """What a plan does, as functions."""

    train: Train
    probe: Callable[[str], None]  # (member name) → fits a probe in every fold
    # (models, final) → (nested OOF loss, forecast) of the submission just written
    submit: Callable[[Sequence[str], bool], tuple[float, float]]
    is_finished: Callable[[str, int], bool]  # (member name, fold) → bool
    # (member name, fold) → calibrated loss of each held-out row
    losses: Callable[[str, int], Array]
    say: Callable[[str], None] = print  # prints a line
    elsewhere: Sequence[Train] = ()  # trains on further cards, at the same time


def trim(
    done: int, epochs: int, planned: int, epoch_s: float, tail_s: float,
    others: Sequence[tuple[int, Member]], seconds: float,
) -> int:  # fmt: skip
    """Return how many epochs a fold shall have in all, so that everything ends in time.

    Each fold gets the same share of its planned epochs. Where that is fewer than ``MIN_EPOCHS``,
    this one has those at the cost of the others.

    Args:
        done: epochs it has had.
        epochs: what its schedule has by now.
        planned: what its schedule had at first.
        epoch_s: seconds one takes, as measured.
        tail_s: what follows its last epoch.
        others: (planned epochs, member) of the folds still to come.
        seconds: until the deadline, what follows the last fold already taken off.
    """
    training = planned * epoch_s + sum(count * m.epoch_s for count, m in others)
    # with the epochs it has had, so that the share is the same after each of them
    available = done * epoch_s + seconds - tail_s - sum(m.tail_s for _, m in others)
    wanted = math.floor(planned * max(available, 0.0) / training + 1e-9)
    if wanted < MIN_EPOCHS:  # too little to be shared: this fold first, then others
        wanted = min(MIN_EPOCHS, done + math.floor(max(seconds - tail_s, 0.0) / epoch_s + 1e-9))
    return max(done, min(wanted, epochs))


def is_worse(losses: Array, others: Array) -> bool:
    """Tell whether losses (N,) of the same rows are beyond doubt worse than the others."""
    change = losses - others
    error = float(change.std()) / math.sqrt(len(change))
    return bool(change.mean() > 2 * error and losses.mean() > 1.25 * others.mean())


def calibrated_losses(path: Path) -> np.ndarray:
    """Return the loss (N,) of each held-out row: mean of the views' logits, best temperature.

    Of several labels an image, the mean over them.
    """
    oof = open_oof(path)
    num_rows, views = len(oof.ids), range(len(oof.views))
    pairs = oof.as_pairs() if oof.several else oof
    logits = np.mean([np.asarray(pairs.logits[v, :], dtype=np.float32) for v in views], axis=0)
    temperature = fit_temperature(log_softmax(logits), pairs.targets)
    losses = true_losses(log_softmax(logits, temperature), pairs.targets)
    return losses.reshape(num_rows, -1).mean(axis=1)


@dataclass
class Follower:
    """Follows a plan to its deadline."""

    members: list[Member]  # in the order of their rows; grows while there is time
    probes: list[Member]  # members that need no training; grow, too
    ranked: Sequence[Candidate]  # candidates for further members
    work: Work  # size of the job
    clock: Clock
    steps: Steps  # what is done
    seed: int = 0  # of the plan
    # called with all of them whenever the members change
    keep: Callable[[Sequence[Member]], object] = lambda members: None
    # called after every submission with (models, nested loss, forecast)
    after: Callable[[Sequence[str], float, float], None] = lambda models, loss, forecast: None
    blend_s: float = 5.0  # seconds a blend takes
    final_s: float = LEAST_FINAL_S  # seconds the last blend takes
    # of each member's ``tail_s``, what a fold spends before its first epoch
    starts: dict[str, float] = field(default_factory=dict)
    # (member name, fold) of what is trained now, on one card each
    running: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remember what the survey said of the members."""
        self.surveyed = {member.name: member for member in self.members}

    def run(self) -> None:
        """Train and submit until nothing more has time; then submit once more, with a search."""
        elsewhere = [
            threading.Thread(target=self.train_on, args=(train,), daemon=True)
            for train in self.steps.elsewhere
        ]
        for thread in elsewhere:
            thread.start()
        self.train_on(self.steps.train, submits=True)
        for thread in elsewhere:
            thread.join()
        if elsewhere:  # what a card that failed has left behind
            self.train_on(self.steps.train, submits=True)
        self.submit(final=True)

    def train_on(self, train: Train, *, submits: bool = False) -> None:
        """Train fold after fold on one card, until nothing more has time.

        A thread a card does this; the one that ``submits`` fits further probes, too.
        """
        while True:
            task = self.take()
            if task is None:
                if (submits and self.add_probe()) or self.extend():
                    continue
                return
            try:
                self.train(*task, train)
            except CardLost as error:
                self.steps.say(f"plan: {error}; nothing more is trained there")
                with self.clock.lock:  # the time is shared among fewer
                    self.work = replace(self.work, num_cards=self.work.num_cards - 1)
                return
            finally:
                self.running.remove((task[0].name, task[1]))
            self.judge()
            if submits and self.clock.left() > self.final_s + self.blend_s:
                self.submit(final=False)

    def take(self) -> tuple[Member, int] | None:
        """Return the next fold, which no other card trains from now on."""
        with self.clock.lock:
            task = self.next_task()
            if task is not None:
                name, fold = task[0].name, task[1]
                self.running.append((name, fold))
                if [name, fold] not in self.begun:
                    self.begun.append([name, fold])
                self.clock.save()
        return task

    @property
    def begun(self) -> list[list[object]]:
        """(member name, fold) of folds that are trained, or were when an earlier process ended."""
        return self.clock.state.setdefault("under_way", [])

    @property
    def dropped(self) -> list[str]:
        """Names of members that go no further."""
        return self.clock.state.setdefault("dropped", [])

    def tasks(self) -> list[tuple[Member, int]]:
        """Return what is still to train, round by round."""
        return [
            (member, fold)
            for fold in range(self.work.num_folds)
            for member in map(self.costed, self.members)
            if member.name not in self.dropped and not self.steps.is_finished(member.name, fold)
        ]

    def seconds(self) -> float:
        """Return the seconds until the last blend must begin."""
        return self.clock.left() - self.final_s

    def next_task(self) -> tuple[Member, int] | None:
        """Return the next fold that has time for a schedule worth its name."""
        tasks = self.tasks()
        is_first = len(tasks) == self.work.num_folds * len(self.members)
        least = self.work.first_epochs if is_first else MIN_EPOCHS
        for member, fold in tasks:
            if (member.name, fold) in self.running:
                continue
            need = least * member.epoch_s + member.tail_s
            if need <= self.seconds() or self.has_begun(member, fold):
                return member, fold
        return None

    def has_begun(self, member: Member, fold: int) -> bool:
        """Tell whether a fold was interrupted, so that some of its epochs are paid for."""
        begun = [member.name, fold] in self.begun
        return begun and self.seconds() > member.tail_s + member.epoch_s

    def train(self, member: Member, fold: int, train: Train) -> None:
        """Train a fold, and learn what it costs."""
        with self.clock.lock:
            waiting = [(m.epochs, m) for m, f in self.tasks() if (m.name, f) not in self.running]
        others = waiting[:: self.work.num_cards]  # what this card will have to train
        marks, epoch_s = [self.clock.worked()], member.epoch_s  # the begin of each epoch
        left = member.epochs
        tail_s = member.tail_s - self.starts.get(member.name, 0.0)  # who asks has begun

        def shorten(done: int, epochs: int) -> int:
            nonlocal epoch_s, left
            marks.append(self.clock.worked())
            spent = max(marks[-1] - marks[-2], 1e-3)
            # the first epoch also decodes the images and fits a head; what it cost without them
            # is seen after the second one, when there is time to trim still
            epoch_s = min(spent, epoch_s) if len(marks) == 2 else spent
            asked = trim(done, epochs, member.epochs, epoch_s, tail_s, others, self.seconds())
            left = asked - done
            return asked

        train(member, fold, shorten)
        self.begun.remove([member.name, fold])
        if len(marks) > 1:  # nobody asks after the last epoch, so it is in what follows the mark
            rest_s = max(self.clock.worked() - marks[-1] - min(left, 1) * epoch_s, 0.0)
            start_s = max(marks[1] - marks[0] - epoch_s, 0.0)  # loader processes, a head
            with self.clock.lock:
                self.starts[member.name] = start_s
                self.learn(member, epoch_s, start_s + rest_s + self.blend_s)

    def learn(self, member: Member, epoch_s: float, tail_s: float) -> None:
        """Take over what a fold has cost; what is not known yet is taken to be off by as much."""
        self.clock.state.setdefault("seconds", {})[member.name] = [epoch_s, tail_s]
        said = self.surveyed[member.name]
        self.clock.state["paces"] = [epoch_s / said.epoch_s, tail_s / said.tail_s]

    @property
    def paces(self) -> list[float]:
        """How many times slower than the survey said epochs are, and what follows them."""
        return self.clock.state.get("paces", [1.0, 1.0])

    def costed(self, member: Member) -> Member:
        """Return a member with the seconds it has cost so far."""
        known = self.clock.state.get("seconds", {}).get(member.name)
        slower, tails = self.paces
        epoch_s, tail_s = known or (member.epoch_s * slower, member.tail_s * tails)
        return replace(member, epoch_s=epoch_s, tail_s=tail_s)

    def judge(self) -> None:
        """Drop a recipe that the other leaves behind beyond doubt on the first fold."""
        first = [m for m in self.members[:2] if self.steps.is_finished(m.name, 0)]
        with self.clock.lock:
            if len(first) < 2 or self.clock.state.get("judged"):
                return
            self.clock.state["judged"] = True
        losses = {m.name: self.steps.losses(m.name, 0) for m in first}
        for loser, winner in (first, first[::-1]):
            mine, others = losses[loser.name], losses[winner.name]
            if is_worse(mine, others):
                self.dropped.append(loser.name)
                self.steps.say(
                    f"plan: {loser.name} goes no further: {mine.mean():.4f} against "
                    f"{others.mean():.4f} of {winner.name} on fold 0"
                )

    def paced(self) -> list[Candidate]:
        """Return the candidates, as fast as members have shown them to be."""
        slower, tails = self.paces
        return [
            replace(c, train_rate=c.train_rate / slower, infer_rate=c.infer_rate / tails)
            for c in self.ranked
        ]

    def add_probe(self) -> bool:
        """Fit a further probe if there is time for one that adds something; tell whether it was."""
        if len(self.members) >= MAX_MEMBERS:
            return False
        known = [probe.name for probe in self.probes]
        # nothing can be trimmed in a probe
        seconds = (self.seconds() - self.blend_s) / PROBE_CAUTION
        probe = spare_probe(self.paced(), known, self.work, seconds, self.seed)
        if probe is None:
            return False
        self.add(self.probes, probe)
        self.steps.say(f"plan: time for {probe.name}")
        self.steps.probe(probe.name)
        self.submit(final=False)
        return True

    def extend(self) -> bool:
        """Add a member if there is time for one; tell whether there is something to train."""
        with self.clock.lock:
            if self.next_task() is not None:  # another card was faster
                return True
            if len(self.members) >= MAX_MEMBERS:
                return False
            recipes, taken = self.recipes(), [member.name for member in self.members]
            member = next_member(self.paced(), taken, self.work, self.seconds(), self.seed, recipes)
            if member is None:
                return False
            slower, tails = self.paces
            member = replace(member, epoch_s=member.epoch_s / slower, tail_s=member.tail_s / tails)
            self.surveyed[member.name] = member
            self.add(self.members, member)
        epochs = counted(member.epochs, "epoch")
        self.steps.say(f"plan: time for {member.name}, {epochs} a fold")
        return True

    def add(self, members: list[Member], member: Member) -> None:
        """Add one to the probes, or to the members, and to the rows of the plan."""
        with self.clock.lock:
            members.append(member)
            self.keep([*self.probes, *map(self.costed, self.members)])

    def recipes(self) -> list[str]:
        """Return the recipes that go on, the one with the lower loss on fold 0 first."""
        known = {
            member.name.rpartition("_")[2]: float(self.steps.losses(member.name, 0).mean())
            for member in self.members[:2]
            if self.steps.is_finished(member.name, 0)
        }
        lost = {name.rpartition("_")[2] for name in self.dropped}
        left = [name for name in RECIPES if name not in lost]
        return sorted(left, key=lambda name: known.get(name, math.inf))

    def models(self) -> list[str]:
        """Return what to blend: probes, what goes on, and of the rest what is whole."""
        folds = set(range(self.work.num_folds))
        first = {m.name for m in self.members[:2]} - set(self.dropped)
        chosen, common = list[str](), folds
        for name in (member.name for member in self.members):
            done = {fold for fold in folds if self.steps.is_finished(name, fold)}
            if done == folds or (name in first and done & common):
                chosen.append(name)
                common = common & done
        return [*(p.name for p in self.probes if self.steps.is_finished(p.name, 0)), *chosen]

    def submit(self, *, final: bool) -> None:
        """Blend and write the submission; learn what that costs."""
        models = self.models()
        if not models:
            return
        begun = self.clock.worked()
        searched = final and self.clock.left() > self.final_s / 2  # a late one only blends
        loss, forecast = self.steps.submit(models, searched)
        if not final:
            self.blend_s = self.clock.worked() - begun
            self.final_s = max(LEAST_FINAL_S, SEARCHED * self.blend_s)
        self.after(models, loss, forecast)
        self.clock.save()
