"""Thresholds and views of held-out images, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.pipelines.segmentation.score import ViewsScore
from src.tasks.segmentation import Segmentation

TASK = Segmentation(("background", "a", "b"), lambda *_: {}, statistic="micro_protocol_iou")
# One row of three pixels: the class holds 1/3, 1/4 and 1/100 of what it and background share.
PROBS = torch.tensor([[[0.6, 0.6, 0.99]], [[0.3, 0.0, 0.01]], [[0.1, 0.2, 0.0]]])
MASK = np.array([[1, 2, 0]])


def test_the_protocols_score_wants_the_foreground_favoured() -> None:
    scorer = ViewsScore(TASK, 1)
    scorer.update(1, PROBS, MASK)
    row = scorer.table()[0]
    # 1/3 and 1/4 pass first at 1.5 nats in favour: 1 / (1 + e^1.5) = 0.18
    assert row["threshold"] == pytest.approx(1 / (1 + math.exp(1.5)))
    assert row["plain"] == 0 and row["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "task",
    [replace(TASK, statistic="pooled_iou"), replace(TASK, class_names=("sky", "road", "tree"))],
    ids=["another score", "no background"],
)
def test_else_the_maximum_decides(task: Segmentation) -> None:
    scorer = ViewsScore(task, 1)
    scorer.update(1, PROBS, MASK)
    row = scorer.table()[0]
    assert row["threshold"] == 0.5 and row["score"] == row["plain"]
