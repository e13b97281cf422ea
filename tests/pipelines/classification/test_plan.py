"""A plan: what it chooses, that it ends in time, and that a killed one goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.config import MAX_MEMBERS, FoldConfig
from src.ensemble.predictions import save_oof
from src.pipelines.classification import follow, plan
from src.pipelines.classification.follow import Clock, Follower, Steps, calibrated_losses
from src.pipelines.classification.plan import Candidate, Member, Work
from src.reader import fill

WORK = Work(train_rows=600, valid_rows=300, test_rows=300, num_folds=3)
SMALL = Candidate("tf_efficientnet_lite0.in1k", 128, 0.40, 0.9, 80.0, 400.0)
LARGE = Candidate("tf_efficientnet_lite0.in1k", 256, 0.30, 0.9, 20.0, 100.0)
OTHER = Candidate("tf_efficientnet_lite1.in1k", 128, 0.38, 0.9, 60.0, 300.0)
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


def test_sizes_are_ranked_by_what_the_time_allows() -> None:
    long = plan.rank([SMALL, LARGE], WORK, 3600)
    assert long[0] is LARGE  # both have epochs enough, so the probe decides
    assert plan.rank([SMALL, LARGE], WORK, 300)[0] is SMALL
    assert plan.epochs_in(SMALL, WORK, 900.0, 2) == pytest.approx(
        # views: two, and two of 1.25² times the pixels; a probe of half the time; two validations
        (900 - 6 * (300 / 400 + 7.125 * 300 / 400 + 5.125 * 300 / 400 + 4)) * 80 / 3600
    )


def test_pixels_and_epochs_weigh_about_as_trained_nets_had_them() -> None:
    """Probe losses of hand signs and of kinds of object at equal compute (docs/experiments.md)."""

    def cost(log_loss: float, epochs: int) -> float:
        return plan.expected_loss(dataclasses.replace(SMALL, log_loss=log_loss), epochs)

    objects = [cost(*pair) for pair in ((1.69, 16), (1.20, 9), (0.90, 6), (0.74, 4), (0.62, 3))]
    assert objects == sorted(objects, reverse=True)  # the more pixels, the better
    assert cost(0.465, 6) < 1.02 * cost(0.528, 16)  # hand signs: 160 px no worse than 96


def test_small_sizes_cost_a_trained_net_more_than_its_probe() -> None:
    """Crops of street scenes: probes of 96 and 160 px are alike, trained nets are not."""
    crops = dataclasses.replace(SMALL, log_loss=0.997, image_size=96, useful_size=160)
    large = dataclasses.replace(crops, log_loss=0.976, image_size=160)
    assert plan.expected_loss(crops, 11.7) > plan.expected_loss(large, 5.0)
    patches = dataclasses.replace(crops, useful_size=64)  # images of 64 px have no more to show
    assert plan.expected_loss(patches, 11.7) < plan.expected_loss(large, 5.0)


def test_probes_have_time_for_what_they_take_off_the_loss() -> None:
    # 1,200 rows, seen twice: 24 s at LARGE's 100 images a second, 8 s at OTHER's 300
    best, other = (dataclasses.replace(c, gain=g) for c, g in ((LARGE, 1.0), (OTHER, 0.03)))

    def names(seconds: float, *found: Candidate) -> list[str]:
        return [probe.name for probe in plan.pick_probes(found, WORK, seconds, 0)]

    assert names(400.0, SMALL, other, best) == ["lite0_256_probe", "lite1_128_probe"]
    little = dataclasses.replace(other, gain=0.009)  # 2 % of 400 s are 8 s: not for so little
    assert names(400.0, SMALL, little, best) == ["lite0_256_probe"]
    assert names(290.0, SMALL, little, best) == ["lite1_128_probe"], "8 % of 290 s, at most"
    assert names(30.0, SMALL, other, best) == ["lite0_128_probe"], "the cheapest, none is cheap"
    four = [dataclasses.replace(SMALL, timm_id=f"net{n}", gain=1 / (n + 1)) for n in range(4)]
    assert len(names(9000.0, *four)) == 3
    assert len(names(80.0, *four)) == 2, "6 s each, a fifth of the time together"


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
        assert follower.extend() == probed and (len(world.probed) == 2) == probed


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


def test_much_data_are_trained_on_for_less_than_three_epochs(tmp_path: Path) -> None:
    small, large = Work(1000, 500, 100, 3), Work(10_000, 5_000, 100, 3)
    assert (small.first_epochs, large.first_epochs) == (3, 1)
    first = plan.next_member([SMALL], [], large, 300.0, 0)
    assert first is not None and first.epochs == 2  # one of one fold fits; a fifth more is planned
    assert plan.next_member([SMALL], ["a"], large, 300.0, 0) is None  # no second one like that
    assert plan.next_member([SMALL], [], large, 100.0, 0) is None  # not one epoch of one fold
    # where there is time for three of one fold, that beats one of each
    first = plan.next_member([SMALL], [], large, 700.0, 0)
    assert first is not None and first.epochs == 4
    # an epoch of ten thousand is worth ten: more pixels pay where there are few epochs
    assert plan.rank([SMALL, LARGE], large, 4000.0)[0] is LARGE
    assert plan.rank([SMALL, LARGE], small, 400.0)[0] is SMALL


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


def test_earlier_maps_are_pooled_where_the_backbone_gives_them() -> None:
    for candidate, near, probe in (
        (SMALL, "stages", "stages"),
        (dataclasses.replace(SMALL, stages=False), None, "avg"),
    ):
        rows = [plan.make_member(candidate, recipe, 7, WORK, 0, "row") for recipe in plan.RECIPES]
        assert [row.options.get("pool") for row in rows] == [near, None]  # None: gem
        assert plan.probe_member(candidate, WORK, 0).options["pool"] == probe
    (alone,) = plan.first_members([SMALL], WORK, 150, 0)  # one recipe has time
    assert alone.name.endswith("_near")


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
