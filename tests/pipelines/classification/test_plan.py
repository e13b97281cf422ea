"""A plan: what it chooses for a time, and in which order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from src.config import FoldConfig
from src.data.folds import Folds
from src.pipelines.classification import plan
from src.pipelines.classification.plan import Candidate, Member, Work
from src.reader import fill

WORK = Work(train_rows=600, valid_rows=300, test_rows=300, num_folds=3)
SMALL = Candidate("tf_efficientnet_lite0.in1k", 128, 0.40, 0.9, 80.0, 400.0)
LARGE = Candidate("tf_efficientnet_lite0.in1k", 256, 0.30, 0.9, 20.0, 100.0)
OTHER = Candidate("tf_efficientnet_lite1.in1k", 128, 0.38, 0.9, 60.0, 300.0)


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
    assert [plan.has_cheap_probe(c, WORK, 290.0) for c in (best, other)] == [False, True]
    assert names(30.0, SMALL, other, best) == ["lite0_128_probe"], "the cheapest, none is cheap"
    four = [dataclasses.replace(SMALL, timm_id=f"net{n}", gain=1 / (n + 1)) for n in range(4)]
    assert len(names(9000.0, *four)) == 3
    assert len(names(80.0, *four)) == 2, "6 s each, a fifth of the time together"


def test_much_data_are_trained_on_for_less_than_three_epochs() -> None:
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


def test_members_follow_by_backbone_then_size_then_seed() -> None:
    taken: list[str] = []
    seeds = []
    for _ in range(8):
        member = plan.next_member([SMALL, LARGE, OTHER], taken, WORK, 9e3, 5)
        assert member is not None
        taken.append(member.name)
        seeds.append(member.options["seed"])
    places = ["lite0_128", "lite1_128", "lite0_256"]
    both = [f"{place}_{recipe}" for place in places for recipe in ("near", "moving")]
    assert taken == [*both, "lite0_128_near_2", "lite0_128_moving_2"]
    assert seeds == [5, 5, 6, 6, 7, 7, 8, 8]


def test_two_recipes_begin_where_one_could_have_eight_epochs() -> None:
    # 80 images a second, three folds of 600 images with 13.9 s beside them: 222 s
    assert len(plan.first_members([SMALL], WORK, 221, 0)) == 1
    assert len(plan.first_members([SMALL], WORK, 223, 0)) == 2


def test_a_row_costs_what_its_own_backbone_does() -> None:
    options = {"timm_id": SMALL.timm_id, "image_size": 130, "epochs": 3}
    assert plan.known_member("mine", options, [OTHER, LARGE], WORK).epoch_s == 600 / 20


def test_external_images_are_trained_on_in_every_fold() -> None:
    fold = np.array([0, 0, 1, 1, 2, 2, -1, -2])
    work = plan.size_of_work(Folds({}, fold, 3, "", ""), 7)
    assert work == Work(train_rows=5, valid_rows=2, test_rows=7, num_folds=3)


def test_what_is_planned_says_when_it_is_done() -> None:
    member = Member("a", {"epochs": 6}, epoch_s=10.0, tail_s=10.0)  # 5 epochs fit: 60 s a fold
    lines = plan.describe([member, member], WORK, 0.5, 60.0, {}).splitlines()
    assert lines[0] == "0.5 hours, 1.0 minutes spent; 3 folds"
    assert [line.rpartition(", ")[2] for line in lines[2:]] == [
        "done at 4.0 min",
        "done at 7.0 min",
    ]
    probes = [Member(name, {"epochs": 0}, epoch_s=0.0, tail_s=10.0) for name in "bc"]
    with_probes = plan.describe([*probes, member, member], WORK, 0.5, 60.0, {}).splitlines()
    assert with_probes == [*lines[:2], "probes: b, c", *lines[2:]]
    assert plan.describe(probes, WORK, 0.5, 60.0, {}).endswith("the linear probe alone")
    for folds, when in ((2, "done at 2.0 min"), (3, "done")):  # of three
        assert plan.describe([member], WORK, 0.5, 60.0, {"a": folds}).endswith(f", {when}")


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
