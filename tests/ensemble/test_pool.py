from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.pool import (
    MAX_LOSS,
    Blend,
    log_softmax,
    member_log_probs,
    merge_columns,
    pool_arrays,
    pool_rows,
    true_losses,
)

PRIOR = np.array([0.5, 0.3, 0.2])
A, B = np.array([[0.7, 0.2, 0.1]]), np.array([[0.1, 0.6, 0.3]])
BOTH = np.log(np.stack([A, B])).astype(np.float32)


def test_linear_pool_by_hand():
    pooled = pool_arrays("linear", BOTH, np.array([0.5, 0.2]), np.array([0.1, 0.2]), PRIOR)
    expected = 0.5 * A + 0.2 * B + 0.1 / 3 + 0.2 * PRIOR
    np.testing.assert_allclose(np.exp(pooled), expected, rtol=1e-5)


def test_log_pool_by_hand():
    pooled = pool_arrays("log", BOTH, np.array([1.0, 2.0]), np.array([0.0, 0.5]), PRIOR)
    expected = A * B**2 * PRIOR**0.5
    np.testing.assert_allclose(np.exp(pooled), expected / expected.sum(), rtol=1e-5)


def test_pool_rows_reads_only_what_has_weight_and_tempers_twice():
    seen = []

    def read(member, rows, temperature):
        seen.append((member, temperature))
        return log_softmax(np.log(A[rows]), temperature)

    members = (("a", "identity"), ("b", "identity"))
    blend = Blend("linear", members, np.array([1.0, 0.0]), (0.0, 0.0), np.full(2, 2.0), 0.5, PRIOR)
    answer = pool_rows(blend, read, np.array([0]))
    assert seen == [(members[0], 2.0)]
    np.testing.assert_allclose(np.exp(answer), A, rtol=1e-5)  # T = 2, then T = 1/2


def test_a_member_with_zero_probability_leaves_no_infinity():
    impossible = np.array([[[0.0, -np.inf, -200.0]]], dtype=np.float32)
    pooled = pool_arrays("linear", impossible, np.array([1.0]), np.zeros(2), PRIOR)
    assert np.isfinite(pooled).all()
    assert true_losses(pooled, np.array([1]))[0] == pytest.approx(MAX_LOSS)


def test_merging_adds_probabilities_and_then_tempers():
    log_probs = np.log([[0.5, 0.3, 0.2]]).astype(np.float32)
    merged = merge_columns(log_probs, [0, 1, 0], 2)
    np.testing.assert_allclose(np.exp(merged), [[0.7, 0.3]], rtol=1e-6)
    tempered = np.exp(member_log_probs(log_probs, 2.0, [0, 1, 0], 2))
    root = np.sqrt([0.7, 0.3])
    np.testing.assert_allclose(tempered[0], root / root.sum(), rtol=1e-5)
