from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.calibration import (
    TestTally,
    adaptive_threshold,
    correct,
    estimate_shift,
    expected_accuracy,
    expected_loss,
    reliability,
    summarise_oof,
)
from src.ensemble.oof import load_oof
from src.ensemble.pool import Blend, entropy
from src.ensemble.test_predictions import Averaging
from src.ensemble.weights import OofSummary
from tests.ensemble.test_calibration_shift import predictions

PRIOR = np.array([0.9, 0.05, 0.05])


def test_summary_by_hand():
    probs = np.array([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
    summary = summarise_oof(np.log(probs).astype(np.float32), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(summary.implied_prior, [0.5, 0.5], rtol=1e-6)
    assert summary.loss == pytest.approx(-np.log(0.8 * 0.6 * 0.5 * 0.9) / 4, rel=1e-6)
    assert summary.accuracy == 0.75
    assert summary.confidence == pytest.approx((0.8 + 0.6 + 0.5 + 0.9) / 4)
    assert summary.entropy == pytest.approx(-(probs * np.log(probs)).sum() / 4, rel=1e-6)


def test_the_forecast_by_hand():
    # two folds that say .8 and .6 of class 0, as OOF rows of entropy .6 that lost .66 did
    folds = np.log([[0.8, 0.2], [0.6, 0.4]])
    mean = folds.mean(axis=0)
    gain = -np.log(np.exp(mean).sum())
    final = (mean + gain)[None]
    averaging = Averaging(np.array([gain]), np.array([entropy(folds).mean()]), entropy(final))
    summary = OofSummary(0.66, np.full(2, 0.5), 0.8, 0.6, 0.03, 0.8, 0.0, 4.0, 100.0, 3.0)
    tally = TestTally()
    tally.add(final, final)
    found = expected_loss(summary, tally, averaging)
    own, by_oof = entropy(final)[0], 0.66 / 0.6 * entropy(folds).mean() - gain
    assert found.value == pytest.approx((own + by_oof) / 2)
    p, surprise = np.exp(final[0]), -final[0]
    variance = 4 * (p @ surprise**2 - own**2) + 0.03**2  # groups: four times the chance
    assert found.high == pytest.approx(found.value + 2.919986 * np.sqrt(variance))  # t, 2 d. o. f.
    assert found.low == 0.0  # 2.92 standard errors reach below


def test_rows_of_a_group_are_one_piece_of_evidence():
    rng = np.random.default_rng(0)
    probs = np.tile(rng.dirichlet([1, 1], 30), (5, 1))
    targets = np.tile((rng.random(30) < probs[:30, 1]).astype(int), 5)  # every row five times
    groups = np.tile(np.char.mod("g%d", np.arange(30)), 5)
    plain = summarise_oof(np.log(probs), targets)
    grouped = summarise_oof(np.log(probs), targets, groups)
    once = summarise_oof(np.log(probs[:30]), targets[:30])
    assert (plain.design_effect, plain.num_units) == (1.0, 150)
    assert grouped.residual_error == pytest.approx(once.residual_error)
    assert grouped.confidence_error == pytest.approx(once.confidence_error)
    assert grouped.design_effect == pytest.approx(5 * 149 / 145, rel=1e-6)
    assert (grouped.num_rows, grouped.num_units) == (150, 30)


def test_reliability_by_hand():
    probs = np.array([[0.8, 0.2], [0.72, 0.28], [0.05, 0.95]])
    bins = reliability(np.log(probs), np.array([0, 1, 1]))
    np.testing.assert_allclose(bins[2], [2, 0.76, 0.5])
    np.testing.assert_allclose(bins[3], [1, 0.95, 1.0])


@pytest.mark.parametrize("corrected", [False, True])
def test_the_test_score_is_foreseen_under_shift(corrected):
    oof, oof_targets = predictions(PRIOR, PRIOR, num=5000)
    summary = summarise_oof(oof.astype(np.float32), oof_targets)
    inside = 0
    for seed in range(10):
        test, targets = predictions(PRIOR, np.full(3, 1 / 3), num=600, seed=100 + seed)
        shift = estimate_shift(test, summary.implied_prior, num_oof=5000)
        posterior = correct(test, shift)
        given = posterior if corrected else test
        tally = TestTally()
        for rows in (slice(0, 250), slice(250, 600)):
            tally.add(given[rows], posterior[rows])
        actual = -given[np.arange(600), targets].mean()
        assert actual > 1.15 * summary.loss  # what OOF alone would have promised
        own = entropy(given)
        estimate = expected_loss(summary, tally, Averaging(0 * own, own, own))
        assert estimate.low < estimate.value < estimate.high
        assert estimate.value == pytest.approx(actual, rel=0.25)
        inside += estimate.low <= actual <= estimate.high
        accuracy = expected_accuracy(summary, tally)
        right = (given.argmax(axis=1) == targets).mean()
        assert accuracy.low - 0.02 <= right <= accuracy.high + 0.02
    assert inside >= 7  # 165 and 180 of 200 such sets: the frequencies are estimated too


def test_adaptive_threshold_keeps_the_log_loss(make_world):
    world = make_world(num_rows=900)
    logits = world.logits(signal=6.0)
    logits[1] = logits[0] + 0.001 * world.rng.standard_normal(logits[0].shape)
    world.save("twins", logits)
    oof = load_oof(world.root, world.table)
    half, uniform = np.full(2, 0.5), np.full(4, 0.25)
    blend = Blend("linear", oof.members, half, np.ones(2), 1.0, (0.0, 0.0), uniform)
    assert adaptive_threshold(oof, blend)[0] == 0.5  # the second view says the same
    logits[1] = world.logits(signal=-3.0, views=1)[0]
    world.save("twins", logits)
    _, share = adaptive_threshold(load_oof(world.root, world.table), blend)
    assert share == 1.0  # the second view matters everywhere
