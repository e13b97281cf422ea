from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.pool import (
    MAX_LOSS,
    Blend,
    add_floors,
    log_softmax,
    member_log_probs,
    merge_columns,
    pool_arrays,
    true_losses,
)

PRIOR = np.array([0.5, 0.3, 0.2])
A, B = np.array([[0.7, 0.2, 0.1]]), np.array([[0.1, 0.6, 0.3]])
BOTH = np.log(np.stack([A, B])).astype(np.float32)


def test_linear_pool_by_hand():
    pooled = pool_arrays("linear", BOTH, np.array([0.7, 0.3]))
    np.testing.assert_allclose(np.exp(pooled), 0.7 * A + 0.3 * B, rtol=1e-5)


def test_log_pool_by_hand():
    pooled = pool_arrays("log", BOTH, np.array([1.0, 2.0]))
    np.testing.assert_allclose(np.exp(pooled), A * B**2 / (A * B**2).sum(), rtol=1e-5)


def test_floors_by_hand():
    mixed = add_floors(np.log(A), (0.1, 0.2), PRIOR)
    np.testing.assert_allclose(np.exp(mixed), 0.7 * A + 0.1 / 3 + 0.2 * PRIOR, rtol=1e-6)
    np.testing.assert_array_equal(add_floors(BOTH[0], (0.0, 0.0), PRIOR), BOTH[0])


def test_a_blend_takes_the_used_members_and_tempers_before_the_floor():
    members = (("a", "identity"), ("b", "identity"))
    blend = Blend("linear", members, np.array([1.0, 0.0]), np.full(2, 2.0), 0.5, (0.3, 0.0), PRIOR)
    assert blend.used == [0]
    prediction = blend.predict(log_softmax(np.log(A), 2.0)[None])
    np.testing.assert_allclose(np.exp(prediction), 0.7 * A + 0.1, rtol=1e-5)  # T = 2, then T = 1/2


def test_a_member_with_zero_probability_leaves_no_infinity():
    impossible = np.array([[[0.0, -np.inf, -200.0]]], dtype=np.float32)
    pooled = pool_arrays("linear", impossible, np.array([1.0]))
    assert np.isfinite(pooled).all()
    assert true_losses(pooled, np.array([1]))[0] == pytest.approx(MAX_LOSS)


def test_merging_adds_probabilities_and_then_tempers():
    log_probs = np.log([[0.5, 0.3, 0.2]]).astype(np.float32)
    merged = merge_columns(log_probs, [0, 1, 0], 2)
    np.testing.assert_allclose(np.exp(merged), [[0.7, 0.3]], rtol=1e-6)
    tempered = np.exp(member_log_probs(log_probs, 2.0, [0, 1, 0], 2))
    root = np.sqrt([0.7, 0.3])
    np.testing.assert_allclose(tempered[0], root / root.sum(), rtol=1e-5)
