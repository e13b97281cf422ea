"""Thresholds and views of held-out images, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.metrics.thresholds import choose_views
from src.pipelines.segmentation.score import ViewsSweep, describe_counting
from src.tasks.segmentation import Segmentation

TASK = Segmentation(("background", "a", "b"), lambda *_: {}, statistic="micro_protocol_iou")
# One row of three pixels: the class holds 1/3, 1/4 and 1/100 of what it and background share.
PROBS = torch.tensor([[[0.6, 0.6, 0.99]], [[0.3, 0.0, 0.01]], [[0.1, 0.2, 0.0]]])
MASK = np.array([[1, 2, 0]])


def swept(task: Segmentation, images: int, views: int = 1) -> ViewsSweep:
    scorer = ViewsSweep(task, views)
    for row in range(images):
        for number in range(1, views + 1):
            scorer.update(number, PROBS, MASK, row)
    return scorer


def test_the_protocols_score_wants_the_foreground_favoured() -> None:
    choice = choose_views(swept(TASK, 6).counts(), TASK.statistic, [""] * 6)
    # 1/3 and 1/4 pass first at 1.5 nats in favour: 1 / (1 + e^1.5) = 0.18
    assert choice.threshold == pytest.approx(1 / (1 + math.exp(1.5)))
    row = choice.table[0]
    assert row["plain"] == 0 and row["score"] == pytest.approx(1, abs=1e-5)
    assert choice.nested == pytest.approx(1, abs=1e-5)
    assert describe_counting(choice) == "1 view, threshold 0.182, chosen on the other folds"
    one = choose_views(swept(TASK, 1).counts(), TASK.statistic, [""])
    assert one.threshold == 0.5 and describe_counting(one) == "1 view"


@pytest.mark.parametrize(
    "task",
    [replace(TASK, statistic="pooled_iou"), replace(TASK, class_names=("sky", "road", "tree"))],
    ids=["another score", "no background"],
)
def test_else_the_maximum_decides(task: Segmentation) -> None:
    counts = swept(task, 6, views=2).counts()
    choice = choose_views(counts, task.statistic, [""] * 6)
    row = choice.table[0]
    assert choice.threshold == 0.5 and row["score"] == row["plain"]
    assert choice.nested == pytest.approx(row["plain"])
    meter = task.full_meter()
    batch = {"mask": torch.from_numpy(MASK).expand(6, 1, 3), "index": torch.arange(6)}
    meter.update(PROBS.expand(6, 3, 1, 3), batch)
    assert row["score"] == pytest.approx(meter.compute()[task.monitor])
