"""Diagnosis of OOF predictions against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.calibration import reliability
from src.ensemble.diagnosis import costliest, diagnose, mean_blend
from src.ensemble.oof import load_oof
from src.ensemble.pool import Blend

CLASSES = 3


@pytest.fixture
def found(make_world):
    """Two models of two views on 12 rows in two folds; model ``b`` weighs nothing."""
    world = make_world(num_rows=12, num_classes=CLASSES, num_folds=2)
    world.targets[:] = np.arange(12) % CLASSES
    probs = np.full((2, 12, CLASSES), 0.1)
    probs[:, np.arange(12), world.targets] = 0.8
    probs[0, 0] = probs[1, 0] = (0.2, 0.7, 0.1)  # a 0 taken for a 1
    probs[0, 3] = probs[1, 3] = (0.3, 0.6, 0.1)  # another
    probs[0, 1] = probs[1, 1] = (0.9, 0.05, 0.05)  # a 1 taken for a 0
    world.save("a", np.log(probs))
    world.save("b", np.log(probs[:, :, ::-1]))
    oof = load_oof(world.root, world.table)
    weights = np.array([0.5, 0.5, 0.0, 0.0])
    blend = Blend("linear", oof.members, weights, np.ones(4), 1.0, (0.0, 0.0), np.full(3, 1 / 3))
    return diagnose(oof, blend), {int(i): row for row, i in enumerate(oof.ids.tolist())}


def test_losses_and_choices_of_the_blend_are_its_own(found) -> None:
    diagnosis, place = found
    rows = [place[0], place[3], place[1], place[2]]
    expected = -np.log([0.2, 0.3, 0.05, 0.8])
    assert diagnosis.losses[rows] == pytest.approx(expected, abs=2e-3)
    assert diagnosis.true_probs[rows] == pytest.approx([0.2, 0.3, 0.05, 0.8], abs=2e-3)
    assert diagnosis.chosen[rows].tolist() == [1, 1, 0, 2]
    assert diagnosis.confidence[rows] == pytest.approx([0.7, 0.6, 0.9, 0.8], abs=2e-3)
    assert int((~diagnosis.right).sum()) == 3
    assert costliest(diagnosis.losses, 2) == [place[1], place[0]]


def test_members_are_scored_one_by_one(found) -> None:
    diagnosis = found[0]
    assert diagnosis.oof.members[0] == ("a", "identity")
    assert diagnosis.member_right.sum(axis=0).tolist() == [9, 9, 3, 3], "b mirrors the classes"
    folds, by_fold = diagnosis.fold_losses()
    assert folds.tolist() == [0, 1] and by_fold.shape == (5, 2)
    assert by_fold[0] == pytest.approx(by_fold[4], abs=1e-6), "the blend is model a"
    sizes = np.bincount(diagnosis.oof.folds)
    assert (by_fold[4] * sizes).sum() == pytest.approx(diagnosis.losses.sum())


def test_confusions_count_both_directions_and_name_the_more_frequent(found) -> None:
    diagnosis, _ = found
    assert diagnosis.confusions(5) == [(0, 1, 3)]
    assert diagnosis.mistaken_for() == {0: (1, 2), 1: (0, 1)}


def test_agreement_is_of_first_views_and_the_blend(found) -> None:
    shares = found[0].agreement()
    assert shares.shape == (3, 2)
    assert shares[0, 0] == shares[1, 1] == 1.0 and shares[0, 1] == shares[1, 0]
    assert shares[2].tolist() == shares[0].tolist(), "the blend is model a"


def test_the_temperature_stands_between_the_two_reliabilities(make_world) -> None:
    world = make_world(num_rows=400)
    world.save("a", world.logits(scale=3.0))
    oof = load_oof(world.root, world.table)
    prior = np.full(4, 0.25)
    blend = Blend("linear", oof.members, np.array([1.0, 0.0]), np.ones(2), 3.0, (0.0, 0.0), prior)
    diagnosis = diagnose(oof, blend)
    raw = oof.read(oof.members[0], np.arange(400))
    before, after = diagnosis.reliability()
    assert before == pytest.approx(reliability(raw, oof.targets), abs=1e-6)
    cooler = oof.read(oof.members[0], np.arange(400), 3.0)
    assert after == pytest.approx(reliability(cooler, oof.targets), abs=1e-6)
    assert diagnosis.raw_confidence.mean() > diagnosis.confidence.mean() + 0.02


def test_a_view_that_helps_gains_and_one_that_cannot_does_not(make_world) -> None:
    world = make_world(num_rows=500)
    logits = world.logits(views=2)
    logits[1] = 0.0  # says nothing
    world.save("a", logits)
    diagnosis = diagnose(oof := load_oof(world.root, world.table), mean_blend(oof))
    gains = {row[1]: row[4] for row in diagnosis.gains() if row[0] == "view"}
    assert gains["identity"] > 0.5 and gains["hflip"] < 0.01
