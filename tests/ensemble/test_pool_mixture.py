from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.pool import mixture_losses, solve_mixture


def test_two_members_by_hand():
    # rows: (0.8, 0.2) three times, (0.2, 0.6) once. With weight w on the first:
    # f = -(3 ln(.2 + .6 w) + ln(.6 - .4 w)) / 4; f' = 0 at 1.8 (.6 - .4 w) = .4 (.2 + .6 w)
    probs = np.array([[0.8, 0.2]] * 3 + [[0.2, 0.6]])
    solution = solve_mixture(np.log(probs), tolerance=1e-12)
    best = (1.8 * 0.6 - 0.4 * 0.2) / (1.8 * 0.4 + 0.4 * 0.6)  # 1.0417: outside, so the corner
    assert best > 1
    np.testing.assert_allclose(solution.weights, [1, 0], atol=1e-9)
    probs = np.array([[0.9, 0.1], [0.1, 0.9]])
    np.testing.assert_allclose(solve_mixture(np.log(probs)).weights, [0.5, 0.5], atol=1e-6)


def test_inner_optimum_by_hand():
    # 2 rows (1, 1/2), 1 row (1/4, 1): 2 (1/2) / (1/2 + w/2) = (3/4) / (1 - 3w/4)
    # → 1 - 3w/4 = 3/4 (1/2 + w/2) → w = 5/9
    probs = np.array([[1, 0.5], [1, 0.5], [0.25, 1]])
    solution = solve_mixture(np.log(probs), tolerance=1e-13)
    np.testing.assert_allclose(solution.weights, [5 / 9, 4 / 9], atol=1e-7)
    expected = -(2 * np.log(5 / 9 + 2 / 9) + np.log(5 / 36 + 4 / 9)) / 3
    assert solution.loss == pytest.approx(expected, abs=1e-12)


def test_gap_bounds_the_distance_to_the_optimum():
    rng = np.random.default_rng(0)
    log_probs = -rng.gamma(0.5, 1.0, (400, 6))
    exact = solve_mixture(log_probs, tolerance=1e-12)
    rough = solve_mixture(log_probs, tolerance=1e-2)
    assert exact.gap <= 1e-12
    assert 0 <= rough.loss - exact.loss <= rough.gap <= 1e-2
    probs = np.exp(log_probs)
    gain = (probs / (probs @ exact.weights)[:, None]).mean(axis=0)
    assert gain.max() - 1 <= 1e-11  # the certificate, recomputed
    assert exact.weights.min() >= 0 and exact.weights.sum() == pytest.approx(1)


def test_agrees_with_em_run_long():
    rng = np.random.default_rng(1)
    probs = rng.beta(2, 1, (200, 5))
    weights = np.full(5, 0.2)
    for _ in range(20000):
        weights = weights * (probs / (probs @ weights)[:, None]).mean(axis=0)
    solution = solve_mixture(np.log(probs), tolerance=1e-11)
    np.testing.assert_allclose(solution.weights, weights, atol=1e-4)


def test_survives_tiny_probabilities_duplicates_and_one_row():
    log_probs = np.array([[-800.0, -900.0, -800.0]])
    solution = solve_mixture(log_probs)
    assert solution.loss == pytest.approx(800, abs=1e-5)
    rng = np.random.default_rng(2)
    twice = np.repeat(-rng.gamma(1, 1, (50, 3)), 2, axis=1)
    assert solve_mixture(twice).gap <= 1e-6


def test_warm_start_does_not_lock_a_zero():
    probs = np.array([[0.9, 0.1], [0.1, 0.9]])
    solution = solve_mixture(np.log(probs), start=np.array([1.0, 0.0]))
    np.testing.assert_allclose(solution.weights, [0.5, 0.5], atol=1e-6)


def test_mixture_losses():
    losses = mixture_losses(np.log([[0.5, 0.25], [0.1, 0.3]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(losses, -np.log([0.375, 0.2]))
