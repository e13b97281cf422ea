"""Two hand-counted images: see the numbers in the comments."""

import json

import numpy as np
import pytest
import torch

from src.metrics.counts import STATISTICS, class_iou, load_counts
from src.metrics.segmentation import SegmentationMeter, count_boundaries, to_labels
from src.script import UserError

TARGET = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 255]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
LABELS = torch.tensor([[[0, 1, 1, 1], [0, 0, 0, 1]], [[1, 0, 0, 0], [0, 0, 0, 0]]])
# image 0: class 0 I 3, P 4, T 4; class 1 I 2, P 3, T 3; one void pixel predicted as 1
# image 1: class 0 I 7, P 7, T 8; class 1 I 0, P 1, T 0


def measure(labels=LABELS, target=TARGET, **options):
    meter = SegmentationMeter(2, 255, ("road", "crack"), **{"boundary_px": 0, **options})
    meter.update(labels, {"mask": target, "index": torch.arange(len(target))})
    return meter


def test_pooled_scores():
    scores = measure().compute()
    assert scores["pooled_iou/road"] == pytest.approx(10 / 13)
    assert scores["pooled_iou/crack"] == pytest.approx(2 / 5)
    assert scores["pooled_mean_iou"] == pytest.approx((10 / 13 + 2 / 5) / 2)
    assert scores["pooled_mean_iou_foreground"] == pytest.approx(2 / 5)
    assert scores["pooled_mean_accuracy"] == pytest.approx((10 / 12 + 2 / 3) / 2)
    assert scores["pooled_pixel_accuracy"] == pytest.approx(12 / 15)
    assert scores["pooled_dice/crack"] == pytest.approx(4 / 7)
    assert scores["pooled_mean_dice"] == pytest.approx((20 / 23 + 4 / 7) / 2)
    assert scores["pooled_precision/crack"] == pytest.approx(2 / 4)
    assert scores["pooled_recall/crack"] == pytest.approx(2 / 3)
    assert scores["pooled_mean_iou_with_void"] == pytest.approx((10 / 13 + 2 / 6 + 0) / 3)
    assert "pooled_boundary_f1_foreground" not in scores


def test_scores_per_image():
    scores = measure().compute()
    assert scores["image_mean_iou"] == pytest.approx(((3 / 5 + 2 / 4) / 2 + (7 / 8 + 0) / 2) / 2)
    assert scores["image_mean_iou_foreground"] == pytest.approx((2 / 4 + 0) / 2)
    assert scores["image_mean_dice_foreground"] == pytest.approx((4 / 6 + 0) / 2)
    # only image 0 holds a crack: the false alarm in image 1 costs nothing
    assert scores["micro_protocol_iou"] == pytest.approx(2 / (4 + 1e-6), abs=1e-12)


def test_trivial_scores_are_those_of_predicting_nothing():
    scores = measure().compute()
    nothing = measure(torch.zeros_like(LABELS)).compute()
    assert scores["trivial_pooled_mean_iou"] == pytest.approx((12 / 15 + 0) / 2)
    assert scores["trivial_pooled_pixel_accuracy"] == pytest.approx(12 / 15)
    assert scores["trivial_micro_protocol_iou"] == 0
    for name in ("pooled_mean_iou", "pooled_mean_iou_foreground", "image_mean_iou"):
        assert scores[f"trivial_{name}"] == pytest.approx(nothing[name])


def test_without_background_the_trivial_guess_is_the_commonest_class():
    meter = SegmentationMeter(3, 11, boundary_px=0, background=None)
    target = torch.tensor([[[0, 2, 2, 11]]])
    meter.update(torch.tensor([[[0, 1, 2, 2]]]), {"mask": target, "index": torch.tensor([0])})
    scores = meter.compute()
    assert scores["trivial_pooled_pixel_accuracy"] == pytest.approx(2 / 3)
    assert scores["pooled_mean_iou"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert scores["pooled_mean_iou_foreground"] == scores["pooled_mean_iou"]


def test_a_class_that_is_nowhere_has_no_score():
    meter = SegmentationMeter(3, None, boundary_px=0)
    labels = torch.tensor([[[0, 1]]])
    meter.update(labels, {"mask": labels, "index": torch.tensor([0])})
    scores = meter.compute()
    assert scores["pooled_mean_iou"] == 1
    assert "pooled_iou/2" not in scores
    json.dumps(scores, allow_nan=False)


def test_true_and_predicted_pixels_are_told_apart():
    counts = measure().counts()  # true × predicted, over both images: [[10, 2], [1, 2]]
    assert counts.intersection.sum(0).tolist() == [10, 2]
    assert counts.target.sum(0).tolist() == [12, 3]
    assert counts.predicted.sum(0).tolist() == [11, 4]


def test_logits_become_labels():
    logits = torch.tensor([[[[-1.0, 0.0, 1.0]]]])
    assert to_labels(logits).tolist() == [[[0, 1, 1]]]
    assert to_labels(torch.tensor([[[[0.0]], [[2.0]], [[1.0]]]])).tolist() == [[[1]]]


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(AssertionError, match="beyond"):
        measure(target=torch.where(TARGET == 1, 2, TARGET))


def half_planes(shift):
    target = torch.zeros(1, 20, 20, dtype=torch.long)
    target[:, :, 10:] = 1
    labels = torch.zeros_like(target)
    labels[:, :, 10 + shift :] = 1
    return labels, target


@pytest.mark.parametrize(("shift", "f1"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_boundary_f1_tolerates_two_pixels(shift, f1):
    scores = measure(*half_planes(shift), boundary_px=2).compute()
    assert scores["pooled_boundary_f1_foreground"] == f1
    assert scores["image_boundary_f1_foreground"] == f1


def test_boundary_f1_counts_a_stray_pixel():
    labels, target = half_planes(0)
    labels[0, 10, 2] = 1
    scores = measure(labels, target, boundary_px=2).compute()
    precision, recall = 20 / 21, 20 / 20
    expected = 2 * precision * recall / (precision + recall)
    assert scores["pooled_boundary_f1/crack"] == pytest.approx(expected)


def test_boundary_tolerance_is_a_disk():
    target, labels = np.zeros((2, 9, 9), np.int64)
    target[4, 4] = labels[6, 6] = 1  # 2.83 px away
    assert count_boundaries(labels, target, 2, None, 2)[1].tolist() == [0, 1, 0, 1]
    assert count_boundaries(labels, target, 2, None, 3)[1].tolist() == [1, 1, 1, 1]


def test_the_rim_of_void_is_no_boundary():
    labels, target = half_planes(0)
    target[:, :, 8:12] = 255
    counts = count_boundaries(labels[0].numpy(), target[0].numpy(), 2, 255, 2)
    assert not counts.any()


def test_counts_survive_a_file_and_the_order_of_batches(tmp_path):
    counts = measure().counts()
    counts.save(tmp_path / "counts.npz")
    again = load_counts(tmp_path / "counts.npz")
    assert np.array_equal(again.intersection, counts.intersection)
    meter = SegmentationMeter(2, 255, boundary_px=0)
    for row in (1, 0):
        meter.update(LABELS[row : row + 1], {"mask": TARGET[row : row + 1], "index": [row]})
    parts = meter.counts()
    assert parts.index.tolist() == [0, 1]
    assert np.array_equal(parts.predicted, counts.predicted)
    with pytest.raises(UserError, match="score the run again"):
        load_counts(tmp_path / "missing.npz")


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_a_weight_of_two_is_the_image_twice(name):
    weights = np.array([[2.0, 1.0]])
    value = STATISTICS[name](measure(boundary_px=1).counts(), weights)
    rows = [0, 0, 1]
    twice = measure(LABELS[rows], TARGET[rows], boundary_px=1).counts()
    assert value == pytest.approx(STATISTICS[name](twice, np.ones((1, 3))), nan_ok=True)


def test_without_weights_each_image_stands_alone():
    assert class_iou(measure().counts()).tolist() == [[3 / 5, 2 / 4], [7 / 8, 0]]
