from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.pool import fit_calibration, fit_floors, floored_losses
from src.metrics.classification import fit_temperature, softmax


def test_floor_by_hand():
    # all 99 rows right for sure, one imaginary row held impossible: (1 - w)^99 · w / 4 is largest
    # at w = 1/100, and of the two floors the uniform one is the likelier to have foreseen it
    prior = np.array([0.7, 0.1, 0.1, 0.1])
    right = np.zeros(99)
    floors = np.full((99, 2), -50.0)  # as if of no use to any real row
    np.testing.assert_allclose(
        fit_floors(right, floors, prior).weights, [0.99, 0.01, 0.0], atol=1e-5
    )
    # rows the prediction gets wrong and the class frequencies right call for more
    right[:33], floors[:33, 1] = -30.0, 0.0
    _, uniform, frequencies = fit_floors(right, floors, prior).weights
    assert frequencies == pytest.approx(0.33, abs=0.01) and uniform == pytest.approx(0.01, abs=0.01)


def example(num_mislabelled):
    """Return logits (R, 4) three times too sharp, and targets of which some are wrong."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 500)
    logits = rng.standard_normal((500, 4))
    logits[np.arange(500), targets] += 3.0
    targets[:num_mislabelled] = logits[:num_mislabelled].argmin(axis=1)
    return 3.0 * logits, targets


def test_a_faultless_answer_is_no_surer_than_its_rows_can_prove():
    logits, targets = np.eye(4)[np.arange(500) % 4] * 40.0, np.arange(500) % 4
    true_at = lambda t: np.log(softmax(logits, t)[np.arange(500), targets])  # noqa: E731
    floors = np.full((500, 2), np.log(0.25))
    _, shares = fit_calibration(true_at, floors, np.full(4, 0.25))
    assert sum(shares) == pytest.approx(1 / 501 * 4 / 3, rel=0.2)  # a floor's quarter is right


def test_with_a_floor_mislabelled_rows_hardly_soften_the_others():
    prior, floors = np.full(4, 0.25), np.full((500, 2), np.log(0.25))
    clean, targets = example(0)
    best = fit_temperature(clean, targets)
    logits, wrong = example(10)
    true_at = lambda t: np.log(softmax(logits, t)[np.arange(500), wrong])  # noqa: E731
    temperature, shares = fit_calibration(true_at, floors, prior)
    assert fit_temperature(logits, wrong) > 1.25 * best > 1.1 * temperature
    assert 0.01 < sum(shares) < 0.1
    with_floor = floored_losses(true_at(temperature), floors, shares)
    by_hand = (1 - sum(shares)) * np.exp(true_at(temperature)) + sum(shares) / 4
    np.testing.assert_allclose(with_floor, -np.log(by_hand))
    assert with_floor.mean() < -true_at(fit_temperature(logits, wrong)).mean()
