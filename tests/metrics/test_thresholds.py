import numpy as np
import pytest
import torch

from src.metrics.bootstrap import assign_parts
from src.metrics.counts import STATISTICS
from src.metrics.segmentation import SegmentationMeter
from src.metrics.thresholds import (
    SweepCounts,
    ThresholdSweep,
    choose_views,
    foreground_share,
)

PROBS = torch.tensor([[[0.9, 0.35, 0.2, 0.1]], [[0.15, 0.15, 0.65, 0.05]]])
MASKS = torch.tensor([[[1, 1, 0, 255]], [[0, 0, 0, 0]]])


def sweep(bins=10):
    found = ThresholdSweep(255, [j / bins for j in range(bins)])
    found.update(PROBS, {"mask": MASKS, "index": torch.arange(2)})
    return found


def test_scores_at_every_threshold():
    scores = sweep().counts().scores("pooled_iou")[0]
    assert scores[0] == pytest.approx(2 / 7)
    assert scores[3] == pytest.approx(2 / 3)  # hits both, and the false alarm at 0.65
    assert scores[5] == pytest.approx(1 / 3)
    assert scores[7] == pytest.approx(1 / 2)
    protocol = sweep().counts().scores("micro_protocol_iou")[0]
    assert protocol[3] == pytest.approx(1, abs=1e-5)  # the false alarm is in an empty image
    assert protocol[2] == pytest.approx(2 / 3, abs=1e-5)


def test_the_best_of_equals_lies_nearest_one_half():
    assert sweep().best() == pytest.approx((0.3, 2 / 3))


def test_agrees_with_the_meter():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(3, 8, 8, generator=generator)
    masks = torch.randint(0, 2, (3, 8, 8), generator=generator)
    found = ThresholdSweep(None, [j / 20 for j in range(20)])
    batch = {"mask": masks, "index": torch.arange(3)}
    found.update(probs, batch)
    for j in (3, 10, 17):
        meter = SegmentationMeter(2, None, boundary_px=0)
        meter.update((probs >= j / 20).long(), batch)
        assert found.counts().scores("pooled_iou")[0, j] == pytest.approx(
            meter.compute()["pooled_iou/1"]
        )


def test_no_foreground_anywhere_scores_zero():
    found = ThresholdSweep(255)
    found.update(PROBS[1:], {"mask": MASKS[1:], "index": torch.arange(len(MASKS) - 1)})
    assert not np.any(found.counts().scores("micro_protocol_iou"))


@pytest.mark.parametrize("statistic", ["pooled_iou", "micro_protocol_iou"])
def test_many_classes_agree_with_the_meter_at_every_threshold(statistic):
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(5, 4, 12, 12, generator=generator).mul(2).softmax(1)
    masks = torch.randint(0, 4, (5, 12, 12), generator=generator)
    masks[:, :2] = 255
    masks[0][masks[0] == 3] = 1  # a class that one image lacks
    cuts = (0.1, 0.25, 0.5)
    found = ThresholdSweep(255, cuts, 4)
    for row in (3, 0, 1, 4, 2):  # in any order
        found.update(probs[row : row + 1], {"mask": masks[row : row + 1], "index": [row]})
    share, label = foreground_share(probs)
    for place, cut in enumerate(cuts):
        meter = SegmentationMeter(4, 255, boundary_px=0)
        meter.update(label * (share >= cut), {"mask": masks, "index": torch.arange(5)})
        name = {"pooled_iou": "pooled_mean_iou_foreground"}.get(statistic, statistic)
        weights = np.array([[1.0, 1, 1, 1, 1], [2, 0, 1, 0, 3]])
        ours = found.counts().scores(statistic, weights)[:, place]
        assert ours == pytest.approx(STATISTICS[name](meter.counts(), weights))


def images(ious, cuts=(0.1, 0.3, 0.5, 0.7)):
    """Counts of images of 1,000 pixels with these IoUs (N, T)."""
    hits = np.round(1000 * np.asarray(ious)).astype(np.int64)[..., None]
    return SweepCounts(np.array(cuts), hits, np.full_like(hits, 1000), np.full(hits.shape[::2], 1))


def test_a_gain_within_its_noise_leaves_the_threshold_at_one_half():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (24, 4))
    noise -= noise.mean(0)
    flat = images(np.clip(0.5 + noise + [0.01, 0, 0, 0], 0, 1))
    assert flat.scores("pooled_iou")[0].argmax() == 0
    assert flat.choose("pooled_iou", [""] * 24) == 2, "+.01 where a standard error is .03"
    lifted = images(np.clip(0.5 + noise + [0.2, 0, 0, 0], 0, 1))
    assert lifted.choose("pooled_iou", [""] * 24) == 0, "+.2"
    # the same gain in every image is certain, however small
    sure = images(0.5 + noise[:, :1] + [0.0, 0.01, 0, 0])
    assert sure.choose("pooled_iou", [""] * 24) == 1
    # one drive of a video is one piece of evidence and has no standard error
    assert sure.choose("pooled_iou", ["drive"] * 24) == 2
    assert sure.take(np.arange(1)).choose("pooled_iou", [""]) == 2
    # two images that differ widely: the spread of their mean is that of four draws, times √2
    two = images([[0.9, 0, 0.5, 0], [0.4, 0, 0.5, 0]])
    assert two.choose("pooled_iou", ["", ""]) == 2


def test_the_nested_score_is_of_choices_that_did_not_see_the_image():
    ious = np.full((20, 4), 0.5)
    ious[:, 1] = 0.6  # 0.3 is better by the same in every image …
    before = choose_views([images(ious)], "pooled_iou", [""] * 20)
    assert before.threshold == 0.3 and before.nested == pytest.approx(0.6)
    assert before.table[0]["plain"] == pytest.approx(0.5)
    part = [n for n, held in enumerate(assign_parts([""] * 20)) if held == 0]
    for row in part:
        ious[row] = [0.5, 0.1, 0.5, 0.9]
    after = choose_views([images(ious)], "pooled_iou", [""] * 20)
    # … so that is what these images get, whatever they would choose for themselves
    assert {after.held[row] for row in part} == {(1, 0.3)}
    apart = choose_views([images(ious).take(np.array(part * 3))], "pooled_iou", [""] * 12)
    assert apart.threshold == 0.7
    own = [ious[row, [0.1, 0.3, 0.5, 0.7].index(cut)] for row, (_, cut) in enumerate(after.held)]
    assert after.nested == pytest.approx(np.mean(own))
    assert "on held-out folds" in str(after)


def test_views_are_chosen_with_the_threshold_and_nested_with_it():
    one, two = images(np.full((10, 4), 0.5)), images(np.full((10, 4), 0.55))
    found = choose_views([one, two], "pooled_iou", [""] * 10)
    assert (found.views, found.threshold) == (2, 0.5)
    assert found.nested == pytest.approx(0.55) and set(found.held) == {(2, 0.5)}
    assert [row["nested"] for row in found.table] == pytest.approx([0.5, 0.55])


def test_noise_alone_promises_a_gain_that_nested_does_not_pay():
    """Best of 100 thresholds on 24 images of pure noise, against what other folds choose."""
    rng = np.random.default_rng(1)
    cuts = np.arange(100) / 100
    best, nested = [], []
    for _ in range(10):
        found = choose_views(
            [images(rng.uniform(0.2, 0.8, (24, 100)), cuts)], "pooled_iou", [""] * 24
        )
        row = found.table[0]
        best.append(row["best"] - row["plain"])
        nested.append(found.nested - row["plain"])
    assert np.mean(best) > 0.05 > abs(np.mean(nested))
