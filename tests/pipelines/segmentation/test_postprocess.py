from __future__ import annotations

import numpy as np

from src.pipelines.segmentation.postprocess import (
    CANDIDATES,
    Cleaning,
    count_cleaned,
    judge_cleaning,
)


def spotted(rng: np.random.Generator, num_spots: int) -> tuple[np.ndarray, np.ndarray]:
    """A thick line (64 x 64), and the same with single-pixel false alarms beside it."""
    target = np.zeros((64, 64), np.uint8)
    target[30:36] = 1
    mask = target.copy()
    for row, column in zip(
        rng.choice(12, num_spots) * 2, rng.choice(30, num_spots) * 2, strict=True
    ):
        mask[row, column] = 1
    return mask, target


def test_small_components_go_and_large_ones_stay() -> None:
    mask, target = spotted(np.random.default_rng(0), 20)
    assert np.array_equal(Cleaning(min_area=32)(mask), target)
    assert not Cleaning(min_area=512)(mask).any()  # the line has 384 pixels
    assert np.array_equal(Cleaning()(mask), mask)


def test_closing_joins_what_opening_cuts() -> None:
    mask = np.zeros((9, 21), np.uint8)
    mask[3:6, :9], mask[3:6, 12:] = 1, 1
    assert Cleaning("close", 2)(mask)[4, 10] == 1
    mask[4] = 1  # joined by a line one pixel wide
    assert Cleaning("open", 1)(mask)[4, 10] == 0


def test_counts_leave_void_out() -> None:
    mask = np.array([[1, 1, 0, 0]], np.uint8)
    target = np.array([[1, 255, 1, 0]], np.uint8)
    assert count_cleaned(mask, target, 255)[0].tolist() == [1, 2]


def test_it_is_kept_where_it_helps_and_refused_where_it_does_not() -> None:
    rng = np.random.default_rng(0)
    pictures = [spotted(rng, 40) for _ in range(20)]
    helped = judge_cleaning(np.stack([count_cleaned(m, t, 255) for m, t in pictures]))
    assert helped.kept and helped.cleaning.min_area in (32, 128)
    assert "kept" in str(helped)
    # true specks: dropping them can only hurt, and nothing is chosen
    specks = judge_cleaning(np.stack([count_cleaned(m, m, 255) for m, _ in pictures]))
    assert not specks.kept and specks.cleaning == CANDIDATES[0]
    assert "refused" in str(specks)


def test_one_group_of_frames_proves_nothing() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([count_cleaned(*spotted(rng, 40), 255) for _ in range(20)])
    assert not judge_cleaning(counts, ["drive"] * 20).kept
