from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.aliases import suggest_aliases


def predictions(kind, num=60):
    """Classes 0 and 1 look the same, or nearly, or not at all; class 2 is plain."""
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], num)
    scores = np.zeros((3 * num, 3))
    scores[np.arange(3 * num), targets] = 6.0
    pair = targets < 2
    if kind == "same":
        scores[pair, :2] = 6.0 + 0.3 * rng.standard_normal((2 * num, 2))
    elif kind == "hard":  # right four times in five: hard, yet told apart
        wrong = pair & (rng.random(3 * num) < 0.2)
        scores[pair, targets[pair]] = 6.0
        scores[pair, 1 - targets[pair]] = 4.6
        scores[wrong] = scores[wrong][:, [1, 0, 2]]
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)), targets


def test_only_the_pair_that_cannot_be_told_apart_is_suggested():
    (found,) = suggest_aliases(*predictions("same"), ["a", "b", "c"])
    assert {found.first, found.second} == {"a", "b"} and found.num_rows == 120
    assert found.log_loss == pytest.approx(np.log(2), abs=0.1)
    assert found.chance == 0.5 and 40 <= found.num_right <= 80
    assert suggest_aliases(*predictions("hard"), ["a", "b", "c"]) == []
    assert suggest_aliases(*predictions("plain"), ["a", "b", "c"]) == []
