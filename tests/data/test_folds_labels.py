"""Folds of images with several labels: iterative stratification, whole groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from src.data.folds import assign_folds, make_folds


def make_hot(num: int = 600, seed: int = 0) -> np.ndarray:
    """Return (N, 5) labels from rare to common that come together."""
    rng = np.random.default_rng(seed)
    hot = (rng.random((num, 5)) < [0.02, 0.05, 0.2, 0.5, 0.8]).astype(np.int64)
    hot[:, 1] |= hot[:, 0]
    return hot


def test_each_label_spreads_evenly_also_the_rarest() -> None:
    hot = make_hot()
    fold = assign_folds([""] * len(hot), 5, 0, None, hot)
    counts = np.stack([hot[fold == k].sum(axis=0) for k in range(5)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= [1, 2, 3, 4, 5]).all(), counts
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= 6
    random = np.random.default_rng(0).integers(0, 5, len(hot))
    drawn = np.stack([hot[random == k].sum(axis=0) for k in range(5)])
    assert (np.ptp(counts, axis=0) < np.ptp(drawn, axis=0)).all()


def test_folds_are_a_function_of_the_seed() -> None:
    hot = make_hot(100)
    again = [assign_folds([""] * 100, 4, seed, None, hot) for seed in (0, 0, 1)]
    assert (again[0] == again[1]).all() and (again[0] != again[2]).any()


def test_groups_stay_whole_and_labels_even() -> None:
    hot = make_hot(600)
    groups = [f"g{row // 3}" if row % 7 else "" for row in range(600)]
    fold = assign_folds([""] * 600, 5, 0, groups, hot)
    for name in {*groups} - {""}:
        assert len({fold[row] for row in range(600) if groups[row] == name}) == 1
    counts = np.stack([hot[fold == k].sum(axis=0) for k in range(5)])
    assert (np.ptp(counts, axis=0) <= 0.2 * counts.mean(axis=0) + 3).all(), counts


def test_images_without_labels_fill_the_folds() -> None:
    hot = np.zeros((20, 2), np.int64)
    hot[:2] = 1
    assert np.bincount(assign_folds([""] * 20, 4, 0, None, hot)).tolist() == [5] * 4


def test_where_folds_lack_a_label_alike_the_emptiest_gets_it() -> None:
    hot = np.eye(20, dtype=np.int64)  # every image has a label of its own
    assert np.bincount(assign_folds([""] * 20, 4, 0, None, hot)).tolist() == [5] * 4


def test_the_table_says_the_labels_and_rare_ones_are_named(tmp_path) -> None:
    texts = ["a|b", "b", "", "b|c"] * 5 + ["rare"]
    names = [f"{row}.jpg" for row in range(len(texts))]
    for row, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * (row + 1))
    columns = {"id": names, "image": names, "target": texts, "group": [""] * len(texts)}
    table = pd.DataFrame(columns, dtype="str")
    made = make_folds(table, tmp_path, num_folds=5, seed=0, labels=("a", "b", "c", "rare"))
    assert any("1 class with fewer images" in n and "rare (1)" in n for n in made.notes)
    counted = [table["target"][made.fold == k].str.contains("b").sum() for k in range(5)]
    assert counted == pytest.approx([3] * 5)
