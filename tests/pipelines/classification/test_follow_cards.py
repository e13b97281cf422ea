"""Following a plan on several cards: who trains what, and who submits."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import time
from pathlib import Path
from typing import Any

from src.pipelines.classification.follow import CardLost, Clock, Follower
from src.pipelines.classification.plan import Member
from tests.pipelines.classification.test_follow import PROBE, World, make_follower
from tests.pipelines.classification.test_plan import SMALL, WORK


def test_cards_share_the_folds(tmp_path: Path) -> None:
    """900 s, of which a two-hundredth passes here: two cards train about twice as much."""
    threads: set[tuple[str, str]] = set()  # what was done, on which thread

    class Busy(World):
        """Seconds that pass by themselves."""

        @property
        def time(self) -> float:
            return 200 * (time.monotonic() - began) if began else 0.0

        @time.setter
        def time(self, value: float) -> None:
            if began:
                threads.add((inspect.stack()[1].function, threading.current_thread().name))
                time.sleep(max(0.0, value - self.time) / 200)

    epochs = []
    for cards in (1, 2):
        began = 0.0
        world, work = Busy(), dataclasses.replace(WORK, num_cards=cards)
        began = time.monotonic()
        clock = Clock(tmp_path / f"{cards}.json", 0.25, now=lambda world=world: world.time)
        members = [Member(n, {"epochs": 16, "image_size": 128}, 10.0, 10.0) for n in "ab"]
        steps = dataclasses.replace(world.steps(), elsewhere=[world.train] * (cards - 1))
        follower = Follower(members, [PROBE], [SMALL], work, clock, steps)
        follower.run()
        epochs.append(sum(world.finished.values()))
        assert world.time < 950 and not follower.running and not follower.begun
        assert len(world.submitted[-1][1]) >= 3
    assert epochs[1] > 1.4 * epochs[0], epochs
    done = [name for name, _ in threads]
    assert done.count("train") == 2 and done.count("submit") == 1, "one thread submits"


def test_a_card_that_fails_leaves_its_folds_to_the_others(tmp_path: Path) -> None:
    world, said = World(), list[str]()

    def fail(member: Member, fold: int, shorten: Any) -> None:
        raise CardLost(f"{member.name} fold {fold} on card 1: out of memory")

    steps = dataclasses.replace(world.steps(), elsewhere=[fail], say=said.append)
    clock = Clock(tmp_path / "state.json", 0.25, now=lambda: world.time)
    work = dataclasses.replace(WORK, num_cards=2)
    members = [Member(n, {"epochs": 3, "image_size": 128}, 7.5, 8.0) for n in "ab"]
    Follower(members, [PROBE], [], work, clock, steps).run()
    assert len(world.finished) == 6 and "out of memory; the other cards go on" in said[0]


def test_members_without_a_fold_in_common_are_not_blended(tmp_path: Path) -> None:
    world = World()
    follower = make_follower(tmp_path, world, "a", "b")
    world.finished = {("a", 1): 3, ("b", 0): 3}
    assert follower.models() == ["p", "a"]
    world.finished["b", 1] = 3
    assert follower.models() == ["p", "a", "b"]
