from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.pool import MAX_POOL_SUM, fit_log_pool, solve_mixture
from src.metrics.classification import fit_temperature, log_loss, softmax


def test_one_member_is_temperature_scaling():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 500)
    logits = rng.standard_normal((500, 3)) * 2
    logits[np.arange(500), targets] += 1.0
    log_probs = np.log(softmax(logits)).astype(np.float32)
    weights = fit_log_pool(log_probs[:, None], targets, tolerance=1e-10)
    assert weights[0] == pytest.approx(1 / fit_temperature(logits, targets), rel=1e-3)


def test_optimum_beats_its_neighbours_and_drops_noise():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 4, 800)
    logits = rng.standard_normal((800, 3, 4))
    logits[np.arange(800), 0, targets] += 2
    logits[np.arange(800), 1, targets] += 1
    logits[np.arange(800), 2, targets] -= 1  # worse than chance: no non-negative weight helps
    log_probs = np.log(softmax(logits)).astype(np.float32)
    weights = fit_log_pool(log_probs, targets, tolerance=1e-10)

    def loss(w):
        return log_loss(softmax(np.tensordot(log_probs.astype(float), w, (1, 0))), targets)

    assert weights[2] == 0 and weights[0] > weights[1] > 0
    for m in range(3):
        for change in (-0.02, 0.02):
            moved = weights.copy()
            moved[m] = max(moved[m] + change, 0)
            assert loss(moved) >= loss(weights) - 1e-9


def test_a_lumped_class_with_the_log_of_its_size_stands_for_equal_ones():
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 5, 600)
    logits = rng.standard_normal((600, 2, 5)) + 1.5 * np.eye(5)[targets][:, None]
    logits[..., 2:] = logits[..., 2:].mean(axis=-1, keepdims=True)  # three classes of equal chance
    log_probs = np.log(softmax(logits)).astype(np.float32)
    whole = fit_log_pool(log_probs, targets, tolerance=1e-10)
    lumped, truth = log_probs[..., :3], np.minimum(targets, 2)
    bias = np.log([1.0, 1.0, 3.0])
    assert fit_log_pool(lumped, truth, bias=bias, tolerance=1e-10) == pytest.approx(whole, rel=1e-4)
    assert fit_log_pool(lumped, truth, tolerance=1e-10) != pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("noise", [1e-3, 1e-4])
def test_members_that_are_nearly_one_another(noise):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 300)
    base = 3 * np.eye(5)[targets] + rng.standard_normal((300, 5))
    logits = base[:, None] + noise * rng.standard_normal((300, 5, 5))
    logits = logits.astype(np.float16).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = fit_log_pool(log_probs, targets)
    assert np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0.1


@pytest.mark.parametrize(("veto", "winner"), [(0.0, "log"), (0.1, "linear")])
def test_log_pool_wins_on_independent_noise_and_loses_where_members_are_surely_wrong(
    veto: float, winner: str
) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 6, 2000)
    evidence = rng.standard_normal((2000, 1, 6)) + 2.0 * np.eye(6)[targets][:, None]
    logits = evidence + rng.standard_normal((2000, 4, 6))  # each of 4 members adds its own noise
    wrong = rng.random((2000, 4)) < veto
    logits[wrong, rng.integers(0, 6, wrong.sum())] += 20.0
    log_probs = np.log(softmax(logits)).astype(np.float32)
    weights = fit_log_pool(log_probs, targets)
    rows = np.arange(2000)
    pooled = log_loss(softmax(np.tensordot(log_probs.astype(float), weights, (1, 0))), targets)
    losses = {"log": pooled, "linear": solve_mixture(log_probs[rows, :, targets]).loss}
    assert min(losses, key=losses.__getitem__) == winner, losses


def test_weights_stay_finite_where_every_row_is_right():
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    logits = rng.normal(size=(60, 2, 3)) * 0.01
    logits[np.arange(60), :, targets] += 0.1  # right everywhere, never sure
    log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    weights = fit_log_pool(log_probs, targets, max_steps=200, tolerance=1e-12)
    assert weights.sum() == pytest.approx(MAX_POOL_SUM, rel=1e-6)
