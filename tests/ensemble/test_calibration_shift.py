from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.calibration import correct, estimate_shift, no_shift


def predictions(train_prior, test_prior, num=4000, gap=2.0, seed=0):
    """Return calibrated log predictions under the train frequencies for rows of the test ones."""
    rng = np.random.default_rng(seed)
    num_classes = len(train_prior)
    targets = rng.choice(num_classes, num, p=test_prior)
    features = rng.standard_normal((num, num_classes))
    features[np.arange(num), targets] += gap
    scores = gap * features + np.log(train_prior)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)), targets


TRAIN, TEST = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])


def test_agrees_with_em_run_by_hand():
    log_probs, _ = predictions(TRAIN, TEST, num=500)
    prior = TRAIN.copy()
    for _ in range(3000):  # Saerens et al., equation 2.9
        posterior = np.exp(log_probs) * prior / TRAIN
        prior = (posterior / posterior.sum(axis=1, keepdims=True)).mean(axis=0)
    shift = estimate_shift(log_probs, TRAIN)
    np.testing.assert_allclose(shift.prior, (prior * 500 + 1) / 503, atol=1e-4)


def test_a_shift_is_found_with_its_gain():
    log_probs, targets = predictions(TRAIN, TEST)
    shift = estimate_shift(log_probs, TRAIN)
    assert shift.significant and shift.p_value < 1e-50
    np.testing.assert_allclose(shift.prior, TEST, atol=0.04)
    corrected = correct(log_probs, shift)
    np.testing.assert_allclose(np.exp(corrected).sum(axis=1), 1.0, rtol=1e-5)
    rows = np.arange(len(targets))
    actual = (corrected[rows, targets] - log_probs[rows, targets]).mean()
    assert shift.gain == pytest.approx(actual, abs=0.03) and shift.gain > 0.05


def test_no_shift_is_not_invented():
    found = [estimate_shift(predictions(TRAIN, TRAIN, 300, seed=s)[0], TRAIN) for s in range(40)]
    assert sum(shift.significant for shift in found) <= 6
    quiet = next(shift for shift in found if not shift.significant)
    np.testing.assert_array_equal(quiet.prior, TRAIN)
    assert quiet.gain == 0.0


def test_too_few_rows_say_nothing_and_no_class_is_declared_impossible():
    log_probs, _ = predictions(TRAIN, TEST, num=5)
    assert not estimate_shift(log_probs, TRAIN).significant
    gone = np.array([0.5, 0.5, 0.0])
    shift = estimate_shift(predictions(TRAIN, gone)[0], TRAIN)
    assert shift.significant and 0 < shift.prior[2] < 0.02
    assert np.isfinite(correct(np.log(TRAIN)[None], shift)).all()
    assert no_shift(TRAIN).gain == 0.0
