from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.ensemble.aliases import join_groups, merge_classes, suggest_aliases


def test_groups_join_through_shared_names():
    assert join_groups([("a", "b"), ("c", "d"), ("d", "a")]) == [("a", "b", "c", "d")]
    assert join_groups([]) == []


def test_the_name_said_first_leads():
    merged = merge_classes(["a", "b", "c"], [("c", "a")])
    assert merged.classes == ("b", "c") and merged.columns == (1, 0, 1)


def test_decomposed_names_are_the_same():
    name = "디_올뉴니로"
    merged = merge_classes([name, "x"], [(unicodedata.normalize("NFD", name), "x")])
    assert merged.classes == (name,) and merged.columns == (0, 0)


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=7, unique=True),
    st.lists(st.tuples(st.sampled_from("abcdefghi"), st.sampled_from("abcdefghi")), max_size=6),
)
def test_merging_keeps_every_class_exactly_once(classes, pairs):
    merged = merge_classes(classes, pairs)
    assert len(merged.columns) == len(classes)
    assert set(merged.columns) == set(range(len(merged.classes)))
    assert set(merged.classes) <= set(classes)
    for one, other in pairs:
        if one in classes and other in classes:
            column = dict(zip(classes, merged.columns, strict=True))
            assert column[one] == column[other]


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
    assert found.gain == pytest.approx(np.log(2), abs=0.1)
    assert found.chance == 0.5 and 40 <= found.num_right <= 80
    assert suggest_aliases(*predictions("hard"), ["a", "b", "c"]) == []
    assert suggest_aliases(*predictions("plain"), ["a", "b", "c"]) == []
