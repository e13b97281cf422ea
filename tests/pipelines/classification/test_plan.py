"""A plan: what it chooses, that it ends in time, and that a killed one goes on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.config import MAX_MEMBERS, FoldConfig
from src.pipelines.classification import follow, plan, plan_files
from src.pipelines.classification.follow import Clock, Follower, Steps
from src.pipelines.classification.plan import Member, Work
from src.pipelines.classification.survey import Candidate, steady_rates
from src.reader import fill

WORK = Work(train_rows=600, valid_rows=300, test_rows=300, num_folds=3)
SMALL = Candidate("tf_efficientnet_lite0.in1k", 128, 0.40, 0.9, 80.0, 400.0)
LARGE = Candidate("tf_efficientnet_lite0.in1k", 256, 0.30, 0.9, 20.0, 100.0)
OTHER = Candidate("tf_efficientnet_lite1.in1k", 128, 0.38, 0.9, 60.0, 300.0)


class World:
    """Seconds that pass only where something is done, and what was done."""

    def __init__(self, slowness: float = 1.0) -> None:
        self.time = 0.0
        self.slowness = slowness
        self.finished: dict[tuple[str, int], int] = {}
        self.submitted: list[tuple[float, tuple[str, ...]]] = []
        self.losses: dict[str, Any] = {}
        self.kill_after = float("inf")

    def train(self, member: Member, fold: int, shorten: Any) -> None:
        """Train epoch by epoch, as fit() does."""
        epochs, done = member.epochs, 0
        cost = {"128": 600 / 80, "256": 600 / 20}[str(member.options["image_size"])]
        while done < epochs:
            self.time += cost * self.slowness
            done += 1
            if self.time > self.kill_after:
                raise KeyboardInterrupt
            if done < epochs:
                epochs = shorten(done, epochs)
        self.time += 8 * self.slowness
        self.finished[member.name, fold] = done

    def submit(self, models: Any, final: bool) -> tuple[float, float]:
        """Take the time of a blend."""
        self.time += (8 if final else 3) * self.slowness
        self.submitted.append((self.time, tuple(models)))
        return 0.1, 0.1

    def steps(self) -> Steps:
        """Return what a plan does here."""
        return Steps(
            train=self.train,
            submit=self.submit,
            is_finished=lambda name, fold: name == "p" or (name, fold) in self.finished,
            losses=lambda name, fold: self.losses.get(name, np.linspace(0, 1, 300)),
            say=lambda line: None,
        )

    def follow(self, tmp_path: Path, hours: float, **options: Any) -> Follower:
        """Follow a plan to its end."""
        clock = Clock(tmp_path / "state.json", hours, now=lambda: self.time)
        ranked = plan.rank([SMALL, LARGE, OTHER], WORK, clock.left())
        members = options.pop("members", None) or plan.first_members(ranked, WORK, clock.left(), 0)
        follower = Follower(members, ["p"], ranked, WORK, clock, self.steps(), **options)
        follower.run()
        return follower


def test_sizes_are_ranked_by_what_the_time_allows() -> None:
    long = plan.rank([SMALL, LARGE], WORK, 3600)
    assert long[0] is LARGE  # both have epochs enough, so the probe decides
    assert plan.rank([SMALL, LARGE], WORK, 300)[0] is SMALL
    assert plan.epochs_in(SMALL, WORK, 900.0, 2) == pytest.approx(
        # views: two, and two of 1.25² times the pixels; a probe of half the time; two validations
        (900 - 6 * (300 / 400 + 7.125 * 300 / 400 + 5.125 * 300 / 400 + 4)) * 80 / 3600
    )


def test_trim_shares_what_is_left() -> None:
    other = Member("b", {"epochs": 10}, epoch_s=10.0, tail_s=5.0)
    # 8 × 10 s here and 10 × 10 s there, tails of 5 s each: 190 s
    assert follow.trim(2, 10, 10.0, 5.0, [(10, other)], 190.0) == 10
    # half of the training: four of the eight epochs that are left
    assert follow.trim(2, 10, 10.0, 5.0, [(10, other)], 100.0) == 6
    assert follow.trim(2, 10, 10.0, 5.0, [], 0.0) == 2
    # 10 s for both: this one gets the third epoch that makes it worth its while
    assert follow.trim(1, 10, 10.0, 5.0, [(10, other)], 30.0) == 3
    assert follow.trim(1, 10, 10.0, 5.0, [(10, other)], 20.0) == 2


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
    assert len(world.submitted) == len(world.finished) + 1  # after every fold, and at the end
    epoch_s, tail_s = follower.clock.state["seconds"][follower.members[0].name]
    assert epoch_s == pytest.approx(7.5 * slowness) or epoch_s == pytest.approx(30 * slowness)
    assert tail_s == pytest.approx(11 * slowness)  # 8 after the last epoch, 3 for the blend
    rounds = [fold for _, fold in world.finished][: 3 * 2]
    assert rounds == sorted(rounds)  # round by round


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


def test_a_beating_clock_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BEAT_S", 0.01)
    world = World()
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: world.time)
    with clock.beating():
        world.time = 50.0
        again = 0.0
        for _ in range(500):
            again = Clock(tmp_path / "state.json", 1.0, now=lambda: 0.0).spent()
            if again == 50.0:
                break
            import time

            time.sleep(0.01)
    assert again == 50.0


def test_damaged_state_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"spent_s": ')
    assert Clock(tmp_path / "state.json", 1.0, now=lambda: 0.0).spent() == 0


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


def test_recipes_that_cannot_be_told_apart_both_go_on(tmp_path: Path) -> None:
    world = World()
    ranked = plan.rank([SMALL], WORK, 900)
    a, b = plan.first_members(ranked, WORK, 900, 0)
    rng = np.random.default_rng(0)
    world.losses = {a.name: rng.exponential(1.0, 300), b.name: rng.exponential(1.1, 300)}
    follower = world.follow(tmp_path, 0.25, members=[a, b])
    assert not follower.dropped and {a.name, b.name} <= set(world.submitted[-1][1])


def test_rows_are_what_train_fold_takes(tmp_path: Path) -> None:
    member = plan.make_member(SMALL, "near", 7, WORK, 3, "row")
    probe = plan.probe_member(LARGE, WORK, 3)
    path = tmp_path / "plan.yaml"
    plan.write_plan(path, [probe, member], plan.COMMON, "two\nlines")
    config = fill(
        FoldConfig, {"config": str(path), "model": member.name, "fold": "1"}, row_by="model"
    )
    assert (config.epochs, config.image_size, config.norms) == (7, 128, "frozen")
    assert (config.seed, config.batch_size, config.timm_id) == (3, 16, SMALL.timm_id)
    config = fill(FoldConfig, {"config": str(path), "model": probe.name}, row_by="model")
    assert (config.epochs, config.image_size, config.head_start) == (0, 256, "probe")
    known = plan.known_member(member.name, member.options, [LARGE, SMALL], WORK)
    assert known.epoch_s == pytest.approx(600 / 80)


def test_history_has_a_row_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    plan_files.add_history(path, 90.0, ["a", "b"], 0.25, 0.26)
    plan_files.add_history(path, 180.0, ["a"], 0.125, 0.25)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["minutes"]) for row in rows] == [1.5, 3.0]
    assert rows[0]["models"] == "a b" and float(rows[1]["nested_oof_log_loss"]) == 0.125


def test_a_disturbed_timing_rules_no_size_out() -> None:
    """5 images/s at 96 px beside 21 at 192: the small size takes a share of the best pixel rate."""
    slow, fast = (
        Candidate("net", 96, 0.5, 0.9, 5.0, 50.0),
        Candidate("net", 192, 0.4, 0.9, 21.0, 20.0),
    )
    small, large = steady_rates([slow, fast])
    assert small.train_rate == pytest.approx(0.6 * 21 * 4) and large.train_rate == 21
