import numpy as np
import pytest
import torch

from src.metrics.segmentation import SegmentationMeter
from src.metrics.thresholds import ThresholdSweep

PROBS = torch.tensor([[[0.9, 0.35, 0.2, 0.1]], [[0.15, 0.15, 0.65, 0.05]]])
MASKS = torch.tensor([[[1, 1, 0, 255]], [[0, 0, 0, 0]]])


def sweep(bins=10):
    found = ThresholdSweep(255, bins)
    found.update(PROBS, MASKS)
    return found


def test_scores_at_every_threshold():
    scores = sweep().scores("pooled_iou")
    assert scores[0] == pytest.approx(2 / 7)
    assert scores[3] == pytest.approx(2 / 3)  # hits both, and the false alarm at 0.65
    assert scores[5] == pytest.approx(1 / 3)
    assert scores[7] == pytest.approx(1 / 2)
    protocol = sweep().scores("micro_protocol_iou")
    assert protocol[3] == pytest.approx(1, abs=1e-5)  # the false alarm is in an empty image
    assert protocol[2] == pytest.approx(2 / 3, abs=1e-5)


def test_the_best_of_equals_lies_nearest_one_half():
    assert sweep().best() == pytest.approx((0.3, 2 / 3))


def test_agrees_with_the_meter():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(3, 8, 8, generator=generator)
    masks = torch.randint(0, 2, (3, 8, 8), generator=generator)
    found = ThresholdSweep(None, 20)
    found.update(probs, {"mask": masks})
    for j in (3, 10, 17):
        meter = SegmentationMeter(2, None, boundary_px=0)
        meter.update((probs >= j / 20).long(), masks)
        assert found.scores()[j] == pytest.approx(meter.compute()["pooled_iou/1"])


def test_no_foreground_anywhere_scores_zero():
    found = ThresholdSweep(255)
    found.update(PROBS[1:], MASKS[1:])
    assert not np.any(found.scores("micro_protocol_iou"))
