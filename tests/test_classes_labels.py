"""Several labels an image as text and as pairs."""

from __future__ import annotations

import numpy as np

from src.classes import PairedLogits, to_hot
from src.metrics.classification import softmax


def test_texts_of_labels_become_zeros_and_ones() -> None:
    hot = to_hot(["b|a", "", "c", "b|unknown"], ("a", "b", "c"))
    assert hot.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_a_sigmoid_is_the_softmax_of_a_pair() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float16)
    pairs = PairedLogits(logits)
    assert pairs.shape == (2, 15, 2)
    probs = softmax(pairs[1, slice(None)])
    sigmoid = 1 / (1 + np.exp(-logits[1].astype(float)))
    np.testing.assert_allclose(probs[:, 1].reshape(5, 3), sigmoid, rtol=1e-6)
    np.testing.assert_array_equal(pairs[1, np.array([4, 14])], pairs[1, slice(4, 15, 10)])
    assert pairs[0, np.array([4])][0].tolist() == [0.0, float(logits[0, 1, 1])]
