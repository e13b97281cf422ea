import numpy as np
import pytest
import torch

from src.metrics.bootstrap import bootstrap_difference, compare_counts, percentile_interval
from src.metrics.segmentation import SegmentationMeter
from src.script import UserError


def mean_difference(first, second, **options):
    def mean_of(values):
        return lambda weights: weights @ np.array(values) / weights.sum(1)

    return bootstrap_difference("loss", mean_of(first), mean_of(second), len(first), **options)


def test_two_rows_give_the_exact_interval():
    # the mean of two draws from {0, 1} is 0 or 1 in a quarter of the resamplings each
    found = mean_difference([1.0, 1.0], [1.0, 2.0])
    assert (found.difference, found.low, found.high) == (0.5, 0.0, 1.0)
    assert found.within_noise and "within noise" in str(found)


def test_a_gain_on_every_row_is_beyond_noise():
    found = mean_difference([0.1, 0.9, 0.5, 0.3, 0.4], [0.2, 1.0, 0.6, 0.4, 0.5])
    assert found.low == pytest.approx(0.1) and not found.within_noise
    assert "beyond noise" in str(found)


@pytest.mark.filterwarnings("error")
def test_few_units_or_no_number_tell_nothing():
    assert mean_difference([0.1] * 4, [0.2] * 4).within_noise
    assert mean_difference([0.1] * 6, [0.2] * 6, groups=["drive"] * 6).within_noise
    unknown = mean_difference([0.1] * 6, [float("nan")] * 6)
    assert unknown.within_noise and str(unknown).endswith("not measured on these images")


@pytest.mark.filterwarnings("error")  # a class that no image has is no fault of the user's
def test_a_class_without_a_number_leaves_the_others_theirs():
    scores = np.stack([np.linspace(0, 1, 41), np.full(41, np.nan)], axis=1)  # steps of 0.025
    np.testing.assert_allclose(percentile_interval(scores), [[0.025, np.nan], [0.975, np.nan]])


def test_interval_of_a_mean_matches_its_standard_error():
    gaps = np.random.default_rng(1).normal(0.3, 1.0, 400)
    found = mean_difference(np.zeros(400), gaps)
    error = gaps.std() / 20
    assert found.low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.02)
    assert found.high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.02)


def test_groups_are_resampled_whole():
    gaps = [0.0, 1.0, 0.0, 1.0]
    one = mean_difference([0.0] * 4, gaps, groups=["a", "a", "b", "b"])
    assert (one.low, one.high, one.num_units) == (0.5, 0.5, 2)
    lone = mean_difference([0.0] * 4, gaps, groups=["", "", "b", "b"])
    assert lone.num_units == 3


def count(labels, rows=(0, 1, 2, 3)):
    meter = SegmentationMeter(2, None, boundary_px=0)
    target = torch.tensor([[[0, 1, 1, 0]]]).repeat(len(rows), 1, 1)
    meter.update(labels.repeat(len(rows), 1, 1), {"mask": target, "index": list(rows)})
    return meter.counts()


def test_segmentation_runs_are_paired_by_index():
    bad, good = count(torch.tensor([[[0, 1, 0, 0]]])), count(torch.tensor([[[0, 1, 1, 0]]]))
    found = compare_counts(bad, good, "pooled_mean_iou_foreground")
    assert (found.first, found.second, found.low, found.high) == (0.5, 1.0, 0.5, 0.5)
    assert compare_counts(good, good).within_noise
    same = compare_counts(bad, good, groups=np.array(["drive"] * 4))
    assert same.num_units == 1
    with pytest.raises(UserError, match="different images"):
        compare_counts(bad, count(torch.tensor([[[0, 1, 1, 0]]]), rows=(0, 1, 2, 9)))
