"""Following a plan: that it ends in time, what is blended, and that a killed one goes on."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.config import MAX_MEMBERS
from src.ensemble.predictions import save_oof
from src.pipelines.classification import follow, plan
from src.pipelines.classification.follow import Clock, Follower, Steps, calibrated_losses
from src.pipelines.classification.plan import Member, Work
from tests.pipelines.classification.test_plan import LARGE, OTHER, SMALL, WORK

PROBE = Member("p", {"epochs": 0}, 0.0, 6.0)


class World:
    """Seconds that pass only where something is done, and what was done."""

    def __init__(
        self, slowness: float = 1.0, start: float = 0.0, blends: tuple[float, float] = (3, 8)
    ) -> None:
        self.time = 0.0
        self.blends = blends  # seconds of one, and of the last one
        self.start = start
        self.slowness = slowness
        self.finished: dict[tuple[str, int], int] = {}
        self.submitted: list[tuple[float, tuple[str, ...]]] = []
        self.searched: list[bool] = []
        self.probed = ["p"]
        self.losses: dict[str, Any] = {}
        self.kill_after = float("inf")

    def train(self, member: Member, fold: int, shorten: Any) -> None:
        """Train epoch by epoch, as fit() does."""
        epochs, done = member.epochs, 0
        cost = {"128": 600 / 80, "256": 600 / 20}[str(member.options["image_size"])]
        self.time += self.start * self.slowness
        while done < epochs:
            self.time += cost * self.slowness
            done += 1
            if self.time > self.kill_after:
                raise KeyboardInterrupt
            if done < epochs:
                epochs = shorten(done, epochs)
        self.time += 8 * self.slowness
        self.finished[member.name, fold] = done

    def probe(self, name: str) -> None:
        """Take the time of the features of 1,200 rows, seen twice."""
        self.time += 2400 / 400 * self.slowness
        self.probed.append(name)

    def submit(self, models: Any, final: bool) -> tuple[float, float]:
        """Take the time of a blend."""
        self.time += self.blends[final] * self.slowness
        self.submitted.append((self.time, tuple(models)))
        self.searched.append(final)
        return 0.1, 0.1

    def steps(self) -> Steps:
        """Return what a plan does here."""
        return Steps(
            train=self.train,
            probe=self.probe,
            submit=self.submit,
            is_finished=lambda name, fold: name in self.probed or (name, fold) in self.finished,
            losses=lambda name, fold: self.losses.get(name, np.linspace(0, 1, 300)),
            say=lambda line: None,
        )

    def follow(self, tmp_path: Path, hours: float, **options: Any) -> Follower:
        """Follow a plan to its end."""
        clock = Clock(tmp_path / "state.json", hours, now=lambda: self.time)
        found = options.pop("found", [SMALL, LARGE, OTHER])
        ranked = plan.rank(found, WORK, clock.left())
        members = options.pop("members", None) or plan.first_members(ranked, WORK, clock.left(), 0)
        follower = Follower(members, [PROBE], ranked, WORK, clock, self.steps(), **options)
        follower.run()
        return follower


def make_follower(tmp_path: Path, world: World, *names: str) -> Follower:
    """A follower of members of three epochs, which take 10 s each and 3 s after them."""
    members = [Member(name, {"epochs": 3, "image_size": 128}, 10.0, 3.0) for name in names]
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: world.time)
    return Follower(members, [PROBE], [SMALL, LARGE, OTHER], WORK, clock, world.steps())


def test_spare_time_goes_to_probes_first(tmp_path: Path) -> None:
    world, kept = World(), []
    found = [SMALL, LARGE, dataclasses.replace(OTHER, gain=0.1)]
    member = plan.make_member(LARGE, "near", 16, WORK, 0, "a")
    follower = world.follow(tmp_path, 0.5, found=found, members=[member], keep=kept.append)
    assert world.probed == ["p", "lite1_128_probe"]
    assert [m.name for m in kept[0]] == ["p", "lite1_128_probe", "a"], "plan.yaml has all rows"
    assert {"p", "lite1_128_probe", "a"} <= set(world.submitted[-1][1])
    assert len(follower.members) > 1 and world.time <= 1800
    assert len(world.submitted) == len(world.finished) + 2


def test_a_spare_probe_is_begun_only_where_it_has_time(tmp_path: Path) -> None:
    new = dataclasses.replace(OTHER, gain=0.1)  # 1,200 rows, seen twice, at 300 a second: 8 s

    def has_time(seconds: float) -> bool:
        return plan.spare_probe([SMALL, new], ["p"], WORK, seconds, 0) is not None

    assert has_time(8.0) and not has_time(7.9)
    world = World()
    member = Member("a", {"epochs": 9}, epoch_s=100.0, tail_s=100.0)
    for seconds, probed in ((28.0, False), (30.0, True)):  # 1.5 × 8, and blends of 5 and of 12
        clock = Clock(tmp_path / f"{seconds}.json", seconds / 3600, now=lambda: world.time)
        follower = Follower([member], [PROBE], [SMALL, new], WORK, clock, world.steps())
        assert follower.add_probe() == probed and (len(world.probed) == 2) == probed


def test_trim_shares_what_is_left() -> None:
    other = Member("b", {"epochs": 10}, epoch_s=10.0, tail_s=5.0)
    # 8 × 10 s here and 10 × 10 s there, tails of 5 s each: 190 s
    assert follow.trim(2, 10, 10, 10.0, 5.0, [(10, other)], 190.0) == 10
    # 110 of 200 s of training, the 20 it has had included: 5.5 epochs each
    assert follow.trim(2, 10, 10, 10.0, 5.0, [(10, other)], 100.0) == 5
    assert follow.trim(2, 10, 10, 10.0, 5.0, [], 0.0) == 2
    # 10 s for both: this one gets the third epoch that makes it worth its while
    assert follow.trim(1, 10, 10, 10.0, 5.0, [(10, other)], 30.0) == 3
    assert follow.trim(1, 10, 10, 10.0, 5.0, [(10, other)], 20.0) == 2


def test_a_schedule_is_trimmed_once_where_nothing_else_changes() -> None:
    """As a plan that hopes for a fifth more epochs than fit: the first fold gets what all get."""
    others = [(12, Member("b", {"epochs": 12}, epoch_s=10.0, tail_s=5.0))] * 5
    epochs, seconds, asked = 12, 6 * (10 * 10.0 + 5.0), []
    for done in range(1, 10):
        epochs = follow.trim(done, epochs, 12, 10.0, 5.0, others, seconds - done * 10.0)
        asked.append(epochs)
    assert asked == [10] * 9


@pytest.mark.parametrize("slowness", [0.4, 0.9, 1.0, 1.3, 2.5])
@pytest.mark.parametrize("hours", [0.1, 0.25, 0.6])
def test_the_deadline_is_kept_and_the_time_is_used(
    tmp_path: Path, slowness: float, hours: float
) -> None:
    world = World(slowness)
    follower = world.follow(tmp_path, hours)
    assert world.time <= hours * 3600
    whole = len(follower.members) == MAX_MEMBERS
    assert whole or world.time > 0.7 * hours * 3600  # what is left is too short for a fold
    assert world.submitted[-1][0] == world.time
    # after every fold, and at the end; that may be the one after the last fold
    assert 0 <= len(world.submitted) - len(world.finished) <= 1
    epoch_s, tail_s = follower.clock.state["seconds"][follower.members[0].name]
    assert epoch_s == pytest.approx(7.5 * slowness) or epoch_s == pytest.approx(30 * slowness)
    assert tail_s == pytest.approx(11 * slowness)  # 8 after the last epoch, 3 for the blend
    rounds = [fold for _, fold in world.finished][: 3 * 2]
    assert rounds == sorted(rounds)  # round by round


def test_the_last_blend_has_its_time_where_blends_are_slow(tmp_path: Path) -> None:
    world = World(blends=(20, 60))
    world.follow(tmp_path, 0.25)
    assert 0.7 * 900 < world.time <= 900


@pytest.mark.parametrize(
    ("left", "searched"), [(18, [False, True]), (16, [True]), (7, [True]), (5, [False])]
)
def test_a_late_end_leaves_out_what_has_no_time(
    tmp_path: Path, left: float, searched: list[bool]
) -> None:
    """A blend of 5 s before the last one of 12 s; and of that the search, where less than half."""
    world = World()

    def train(member: Member, fold: int, shorten: Any) -> None:
        world.time = 1000.0 - left
        world.finished[member.name, fold] = 1

    clock = Clock(tmp_path / "state.json", 1000 / 3600, now=lambda: world.time)
    member, work = Member("a", {"epochs": 3}, 1.0, 1.0), dataclasses.replace(WORK, num_folds=1)
    steps = dataclasses.replace(world.steps(), train=train)
    Follower([member], [], [], work, clock, steps).run()
    assert world.searched == searched


def test_a_fold_that_was_interrupted_goes_on_with_little_time(tmp_path: Path) -> None:
    member = Member("a", {"epochs": 9}, epoch_s=100.0, tail_s=10.0)
    for left, begun, expected in (
        (130, [["a", 1]], (member, 1)),  # an epoch of 100 s, 10 s after it, 12 s for the last blend
        (130, [["b", 0]], None),
        (120, [["a", 1]], None),
        (330, [], (member, 0)),  # three epochs
    ):
        clock = Clock(tmp_path / "state.json", left / 3600, now=lambda: 1.0)
        clock.state["under_way"] = begun
        follower = Follower([member], [], [], WORK, clock, World().steps())
        assert follower.next_task() == expected


def test_tails_that_the_survey_took_for_longer_leave_no_time_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card that was said to predict 69 images a second: ten times too few."""
    slow = [dataclasses.replace(c, infer_rate=c.infer_rate / 10) for c in (SMALL, LARGE, OTHER)]
    monkeypatch.setattr(plan, "rank", lambda found, work, seconds: slow)
    world = World()
    world.follow(tmp_path, 0.25)
    assert 0.8 * 900 < world.time <= 900


def test_a_long_start_is_paid_once(tmp_path: Path) -> None:
    """A head is fitted before the first epoch: those of folds that have begun are over."""
    world = World(start=40.0)
    member = plan.make_member(LARGE, "near", 30, WORK, 0, "a")
    follower = world.follow(tmp_path, 0.25, members=[member])
    epochs = [world.finished["a", fold] for fold in range(3)]
    # of 900 s 12 + 3 × (40 + 8 + 3) are spent beside the epochs of 30 s
    assert world.time <= 900 and sum(epochs) == (900 - 12 - 3 * 51) // 30
    assert follower.starts["a"] == 40


def test_only_the_first_fold_of_much_data_may_have_fewer_epochs(tmp_path: Path) -> None:
    world, large = World(), Work(10_000, 5_000, 100, 3)
    member = Member("a", {"epochs": 2}, epoch_s=100.0, tail_s=10.0)
    clock = Clock(tmp_path / "state.json", 200 / 3600, now=lambda: world.time)
    follower = Follower([member], [], [SMALL], large, clock, world.steps())
    assert follower.next_task() == (member, 0)  # one epoch has time, three have not
    world.finished["a", 0] = 1
    assert follower.next_task() is None


def test_a_killed_plan_keeps_its_deadline(tmp_path: Path) -> None:
    world = World()
    world.kill_after = 400.0
    with pytest.raises(KeyboardInterrupt):
        world.follow(tmp_path, 0.25)
    killed = world.time
    before = dict(world.finished)
    # the state was written when the fold began, at the latest
    state = Clock(tmp_path / "state.json", 0.25, now=lambda: 0.0)
    assert killed - 120 < state.spent() <= killed
    world.kill_after = float("inf")
    follower = world.follow(tmp_path, 0.25)
    assert follower.clock.spent() <= 0.25 * 3600 and before.items() <= world.finished.items()
    assert len(world.submitted[-1][1]) >= 3


def is_saved(path: Path, seconds: float) -> bool:
    """Wait until a beating clock has written so many seconds."""
    for _ in range(500):
        time.sleep(0.01)
        if path.exists() and Clock(path, 1.0, now=lambda: 0.0).spent() == seconds:
            return True
    return False


def test_a_beating_clock_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BEAT_S", 0.01)
    world = World()
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: world.time)
    with clock.beating():
        world.time = 50.0
        assert is_saved(tmp_path / "state.json", 50.0)


@pytest.mark.parametrize("stopped_after", [5, 13], ids=["in its midst", "behind its last epoch"])
def test_a_stopped_process_makes_no_fold_longer(tmp_path: Path, stopped_after: int) -> None:
    """400 of 900 s: where a fold was taken to need so long, none had time in the other 400."""
    world = World()
    plain = world.steps()

    def train(member: Member, fold: int, shorten: Any) -> None:
        def stop(done: int, epochs: int) -> int:
            wait(done)
            return shorten(done, epochs)

        plain.train(member, fold, stop)
        wait(world.finished[member.name, fold])

    def wait(done: int) -> None:
        if done == stopped_after and not clock.stalled:
            world.time += 400.0
            clock.stalled += 400.0

    clock = Clock(tmp_path / "state.json", 0.25, now=lambda: world.time)
    ranked = plan.rank([SMALL, LARGE, OTHER], WORK, clock.left())
    members = plan.first_members(ranked, WORK, clock.left(), 0)
    steps = dataclasses.replace(plain, train=train)
    Follower(members, [PROBE], ranked, WORK, clock, steps).run()
    assert clock.stalled and 800 < world.time <= 900 and len(world.finished) == 6


def test_a_clock_notes_how_long_its_process_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BEAT_S", 0.01)
    world = World()
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: world.time)
    with clock.beating():
        for seconds in (0.0, follow.STALL_S - 1, 300.0):
            world.time += seconds
            assert is_saved(tmp_path / "state.json", world.time)
    assert clock.stalled == pytest.approx(300.0, abs=0.1)
    assert clock.spent() == follow.STALL_S + 299 and clock.left() == 3600 - clock.spent()


def test_the_clock_is_saved_at_the_end(tmp_path: Path) -> None:
    world = World()
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: world.time)
    with clock.beating():
        world.time = 50.0
    assert Clock(tmp_path / "state.json", 1.0, now=lambda: 0.0).spent() == 50.0


def test_two_threads_save_the_clock_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "BEAT_S", 0.0)
    clock = Clock(tmp_path / "state.json", 1.0)
    with clock.beating():
        for number in range(100):  # without a lock one of them finds its file renamed away
            clock.state.setdefault("seconds", {})[str(number)] = [1.0, 1.0]
            clock.save()
    assert len(Clock(tmp_path / "state.json", 1.0).state["seconds"]) == 100


def test_a_recipe_left_behind_goes_no_further(tmp_path: Path) -> None:
    world = World()
    ranked = plan.rank([SMALL], WORK, 900)
    a, b = plan.first_members(ranked, WORK, 900, 0)
    rows = np.random.default_rng(0).exponential(1.0, 300)
    world.losses = {a.name: rows * 2, b.name: rows}
    follower = world.follow(tmp_path, 0.25, members=[a, b])
    assert follower.dropped == [a.name] and (a.name, 1) not in world.finished
    assert a.name not in world.submitted[-1][1] and b.name in world.submitted[-1][1]
    assert all(a.name.rpartition("_")[2] not in m.name for m in follower.members[2:])


def test_worse_is_beyond_noise_and_by_a_quarter() -> None:
    ones = np.ones(4)
    assert follow.is_worse(1.3 * ones, ones) and not follow.is_worse(1.2 * ones, ones)
    # 0.75 more in the mean, with a standard error of 0.96
    assert not follow.is_worse(np.array([4.0, 0, 0, 0]), np.array([0, 0, 0, 1.0]))


def test_a_blend_has_the_first_two_and_what_is_whole(tmp_path: Path) -> None:
    world = World()
    follower = make_follower(tmp_path, world, "a", "b", "c")
    world.finished = {("a", 0): 1, ("c", 0): 1, ("c", 1): 1}
    assert follower.models() == ["p", "a"]
    world.finished[("c", 2)] = 1
    assert follower.models() == ["p", "a", "c"]
    follower.dropped.append("a")
    follower.probes.append(Member("q", {"epochs": 0}, 0.0, 6.0))  # not fitted yet
    assert follower.models() == ["p", "c"]


def test_the_recipe_with_the_lower_loss_goes_on_first(tmp_path: Path) -> None:
    world = World()
    follower = make_follower(tmp_path, world, "x_near", "x_moving")
    world.losses = {"x_near": np.full(9, 0.2), "x_moving": np.full(9, 0.1)}
    assert follower.recipes() == ["near", "moving"], "nothing is known"
    world.finished = {("x_near", 0): 1, ("x_moving", 0): 1}
    assert follower.recipes() == ["moving", "near"]
    follower.dropped.append("x_moving")
    assert follower.recipes() == ["near"]


def test_what_one_member_costs_is_expected_of_the_others(tmp_path: Path) -> None:
    world = World()
    follower = make_follower(tmp_path, world, "a", "b")
    a, b = follower.members
    assert follower.extend() and len(follower.members) == 2, "there is something to train"
    world.finished = {(name, fold): 3 for name in "ab" for fold in range(3)}
    follower.learn(a, 20.0, 9.0)
    follower.learn(follower.costed(a), 20.0, 9.0)
    assert [(m.epoch_s, m.tail_s) for m in map(follower.costed, (a, b))] == [(20, 9), (20, 9)]
    assert follower.extend()
    new = follower.members[-1]
    costed = follower.costed(new)
    assert (costed.epoch_s, costed.tail_s) == (
        pytest.approx(2 * new.epoch_s), pytest.approx(3 * new.tail_s)
    )  # fmt: skip
    assert new.epoch_s == pytest.approx(600 / 80)
    slow = dataclasses.replace(SMALL, train_rate=40.0, infer_rate=400 / 3)
    epochs = plan.epochs_in(slow, WORK, 3600 - 12, 1)
    assert new.epochs == min(plan.MAX_EPOCHS, int(np.ceil(plan.OPTIMISM * epochs)))


def test_members_are_no_more_than_a_blend_takes(tmp_path: Path) -> None:
    world = World()
    follower = make_follower(tmp_path, world, *map(str, range(MAX_MEMBERS)))
    world.finished = {(m.name, fold): 3 for m in follower.members for fold in range(3)}
    assert not follower.extend()
    del follower.members[0]
    assert follower.extend()


def test_the_loss_of_an_image_is_the_mean_of_its_labels(tmp_path: Path) -> None:
    logits = np.array([[[0.0, 2.0], [-2.0, 0.0], [2.0, -2.0], [-2.0, 2.0]]])
    hot = np.array([[1, 1], [0, 0], [1, 0], [1, 1]])  # the last has one that is wrong
    save_oof(
        tmp_path / "oof.npz", logits=logits, ids=np.array(list("abcd")), targets=hot,
        views=("identity",), classes=("x", "y"), fold="0", config_hash="", folds_hash="",
    )  # fmt: skip
    losses = calibrated_losses(tmp_path / "oof.npz")
    # slope of the loss in 1 / T: 5 right and 1 wrong at 2, so the best temperature is 2 / log 5
    right, wrong, even = np.log(6 / 5), np.log(6), np.log(2)
    expected = [(even + right) / 2, (right + even) / 2, right, (wrong + right) / 2]
    assert losses == pytest.approx(expected, abs=1e-3)


def test_recipes_that_cannot_be_told_apart_both_go_on(tmp_path: Path) -> None:
    world = World()
    ranked = plan.rank([SMALL], WORK, 900)
    a, b = plan.first_members(ranked, WORK, 900, 0)
    rng = np.random.default_rng(0)
    world.losses = {a.name: rng.exponential(1.0, 300), b.name: rng.exponential(1.1, 300)}
    follower = world.follow(tmp_path, 0.25, members=[a, b])
    assert not follower.dropped and {a.name, b.name} <= set(world.submitted[-1][1])
