"""Calibration and thresholds of labels."""

from __future__ import annotations

import numpy as np
import pytest

from src.metrics.contest import binary_log_loss, find_metric, samples_f1
from src.metrics.decisions import (
    GRID,
    calibrate_labels,
    decide_labels,
    fit_decision,
    fit_thresholds,
    plain_decision,
    read_decision,
    sigmoid,
)


def make_rows(num: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated log odds (N, 3) and targets drawn from them."""
    rng = np.random.default_rng(seed)
    odds = rng.normal([0.0, -1.0, -2.0], 2.0, (num, 3))
    return odds, (rng.random((num, 3)) < sigmoid(odds)).astype(np.int64)


def test_what_distorts_the_odds_of_a_label_is_undone() -> None:
    odds, targets = make_rows()
    distorted = (odds - [0.5, -1.0, 0.0]) / [2.0, 0.5, 1.0]
    slopes, offsets = calibrate_labels(distorted, targets)
    np.testing.assert_allclose(slopes, [2.0, 0.5, 1.0], rtol=0.15)
    np.testing.assert_allclose(offsets, [0.5, -1.0, 0.0], atol=0.2)
    before = binary_log_loss(sigmoid(distorted), targets)
    after = binary_log_loss(sigmoid(distorted * slopes + offsets), targets)
    assert after < before - 0.01
    assert after == pytest.approx(binary_log_loss(sigmoid(odds), targets), abs=2e-3)


def test_the_calibration_is_where_the_gradient_is_zero() -> None:
    from scipy.optimize import minimize

    odds, targets = make_rows(60)

    def loss(x: np.ndarray) -> float:
        scaled = x[0] * odds[:, 0] + x[1]
        penalty = ((x[0] - 1) / 0.5) ** 2 / 2 + x[1] ** 2 / 2
        return float((np.logaddexp(0, scaled) - targets[:, 0] * scaled).sum() + penalty)

    slopes, offsets = calibrate_labels(odds, targets)
    np.testing.assert_allclose(
        [slopes[0], offsets[0]], minimize(loss, [1.0, 0.0], tol=1e-10).x, atol=1e-4
    )


def test_a_label_that_hardly_any_image_has_stays_finite() -> None:
    odds, targets = make_rows(50)
    for value in (0, 1):
        slopes, offsets = calibrate_labels(odds, np.full_like(targets, value))
        assert (slopes > 0).all() and np.abs(slopes).max() < 10 and np.abs(offsets).max() < 10
    huge = np.where(targets == 1, 1e4, -1e4)
    assert np.isfinite(calibrate_labels(huge, targets)).all()


def test_labels_are_given_from_their_thresholds() -> None:
    odds = np.log(np.array([[0.3, 0.6], [0.1, 0.4]]) / np.array([[0.7, 0.4], [0.9, 0.6]]))
    np.testing.assert_allclose(decide_labels(odds, ()), [[0.3, 0.6], [0.1, 0.4]])
    assert decide_labels(odds, (0.25, 0.5)).tolist() == [[1, 1], [0, 0]]
    assert decide_labels(odds, (0.25, 0.5), least=1).tolist() == [[1, 1], [0, 1]]
    assert decide_labels(odds, (0.12, 0.9), least=1).tolist() == [[1, 0], [1, 0]]


def test_thresholds_are_the_best_of_the_grid() -> None:
    odds, targets = make_rows(600)
    found = fit_thresholds(odds, targets)
    score = samples_f1(decide_labels(odds, found), targets)
    common = max(samples_f1(decide_labels(odds, (cut,) * 3), targets) for cut in GRID)
    assert score >= common > samples_f1(decide_labels(odds, (0.5,) * 3), targets)
    assert set(found) <= set(GRID)


def test_a_label_gets_a_threshold_of_its_own_only_where_that_is_sure() -> None:
    rng = np.random.default_rng(3)
    odds, targets = make_rows(3000)
    odds[:, 2] += 3.0  # as no calibration would leave it
    found = fit_thresholds(odds, targets)
    assert found[2] > found[0] + 0.2
    noise = rng.integers(0, 2, targets.shape)  # nothing to know: one threshold for all
    assert len(set(fit_thresholds(rng.normal(0, 1e-3, (3000, 3)), noise))) == 1


def test_a_decision_is_fitted_applied_and_read_back() -> None:
    from dataclasses import asdict

    odds, targets = make_rows(500)
    pairs = np.stack([np.log(sigmoid(-odds)), np.log(sigmoid(odds))], -1).reshape(-1, 2)
    f1 = find_metric("f1_samples", ("a", "b", "c"), several=True)
    rule = fit_decision(f1, pairs, targets.ravel())
    assert rule.rule == "labels" and rule.least == 0 and len(rule.cuts) == 3
    marks = rule.apply(pairs)
    assert marks.shape == (1500,) and set(marks) == {0, 1}
    plain = plain_decision(f1, targets.ravel(), 2)
    assert f1.measure(marks, targets.ravel()) >= f1.measure(plain.apply(pairs), targets.ravel())
    assert read_decision(asdict(rule)) == rule
    some = targets.copy()
    some[:, 0] = 1
    assert fit_decision(f1, pairs, some.ravel()).least == 1
    loss = find_metric("log_loss", ("a", "b", "c"), several=True)
    rule = fit_decision(loss, pairs, targets.ravel())
    assert rule.cuts == () and 0 < rule.apply(pairs).min() < rule.apply(pairs).max() < 1
