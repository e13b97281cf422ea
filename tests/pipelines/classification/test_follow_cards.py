"""Following a plan on several cards: who trains what, and who submits."""

from __future__ import annotations

import dataclasses
import sys
import threading
from pathlib import Path
from typing import Any

from src.pipelines.classification.follow import CardLost, Clock, Follower
from src.pipelines.classification.plan import Member
from tests.pipelines.classification.test_follow import PROBE, World, make_follower
from tests.pipelines.classification.test_plan import SMALL, WORK


class Shared(World):
    """Seconds that pass when every thread waits for some of them; notes who did what."""

    def __init__(self) -> None:
        self.passed, self.waiting = 0.0, dict[str, float]()
        self.turn = threading.Condition()
        self.threads: set[tuple[str, str]] = set()
        super().__init__()

    @property
    def time(self) -> float:
        """The same for all threads."""
        return self.passed

    @time.setter
    def time(self, until: float) -> None:
        name = threading.current_thread().name
        self.threads.add((sys._getframe(1).f_code.co_name, name))
        with self.turn:
            self.waiting[name] = until
            self.turn.notify_all()
            while True:
                first = until <= min(self.waiting.values())
                if first and len(self.waiting) == len({name for _, name in self.threads}):
                    break
                if not self.turn.wait(0.05) and first:  # a thread has ended, or waits for another
                    break
            del self.waiting[name]
            self.passed = max(self.passed, until)
            self.turn.notify_all()


def test_cards_share_the_folds(tmp_path: Path) -> None:
    epochs = []
    for cards in (1, 2):
        world, work = Shared(), dataclasses.replace(WORK, num_cards=cards)
        clock = Clock(tmp_path / f"{cards}.json", 0.25, now=lambda world=world: world.passed)
        members = [Member(n, {"epochs": 16, "image_size": 128}, 7.5, 8.0) for n in "ab"]
        steps = dataclasses.replace(world.steps(), elsewhere=[world.train] * (cards - 1))
        follower = Follower(members, [PROBE], [SMALL], work, clock, steps)
        follower.run()
        epochs.append(sum(world.finished.values()))
        assert world.time < 930 and not follower.running and not follower.begun
        assert len(world.submitted[-1][1]) >= 3
    assert epochs[1] > 1.5 * epochs[0], epochs
    done = [name for name, _ in world.threads]
    assert done.count("train") == 2 and done.count("submit") == 1, "one thread submits"


def test_a_card_that_fails_leaves_its_folds_to_the_others(tmp_path: Path) -> None:
    world, said = World(), list[str]()

    def fail(member: Member, fold: int, shorten: Any) -> None:
        raise CardLost(f"{member.name} fold {fold} on card 1: out of memory")

    steps = dataclasses.replace(world.steps(), elsewhere=[fail], say=said.append)
    clock = Clock(tmp_path / "state.json", 0.25, now=lambda: world.time)
    work = dataclasses.replace(WORK, num_cards=2)
    members = [Member(n, {"epochs": 3, "image_size": 128}, 7.5, 8.0) for n in "ab"]
    follower = Follower(members, [PROBE], [], work, clock, steps)
    follower.run()
    assert len(world.finished) == 6 and "out of memory; nothing more is trained there" in said[0]
    assert follower.work.num_cards == 1, "the time is shared among fewer"


def test_members_without_a_fold_in_common_are_not_blended(tmp_path: Path) -> None:
    world = World()
    follower = make_follower(tmp_path, world, "a", "b")
    world.finished = {("a", 1): 3, ("b", 0): 3}
    assert follower.models() == ["p", "a"]
    world.finished["b", 1] = 3
    assert follower.models() == ["p", "a", "b"]
