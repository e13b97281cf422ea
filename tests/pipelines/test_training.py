"""Worst mistakes for trackers: which images are shown, by losses by hand, of every task."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.pipelines import training
from src.pipelines.training import _judge, worst_mistakes

RUNTIME: Any = SimpleNamespace(
    autocast=nullcontext, eagerly=nullcontext, upload=lambda batch: batch,
    device=torch.device("cpu"),
)  # fmt: skip


class Data:
    """Images of a value each, which is the logit of class 1; all are of class 0."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
        images = [
            torch.full((3, 8, 12 + (row == 2)), self.values[row], dtype=torch.uint8)
            for _, row in keys
        ]
        return [{"image": x, "target": torch.tensor(0), "index": torch.tensor(0)} for x in images]


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}


def test_the_costliest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SHOWN", 2)
    values = [10, 200, 30, 90]
    loader: Any = SimpleNamespace(
        dataset=Data(values),
        collate_fn=collate,
        batch_sampler=SimpleNamespace(num_rows=4, own_size=3),
    )

    def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logit = batch["image"][:, 0, 0, 0].float()
        return torch.stack([torch.zeros_like(logit), logit], 1)

    task: Any = SimpleNamespace(predict=predict)
    model = nn.Linear(1, 1).train()
    draw = worst_mistakes(loader, task, ("a", "b"), RUNTIME)
    assert draw is not None
    (sheet,) = draw(model).values()
    assert sheet.shape == (213 + 20, 640, 3) and not model.training
    assert sheet[100, 100].tolist() == [200] * 3 and sheet[100, 500].tolist() == [90] * 3
    assert worst_mistakes(None, task, ("a", "b"), RUNTIME) is None


def test_losses_and_captions_by_hand() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    loss, _, said = _judge({"image": image, "target": torch.tensor(1)}, torch.tensor([1.0, 0.0]),
                           ("cat", "dog"))  # fmt: skip
    assert loss == pytest.approx(np.log1p(np.e)) and said == "1.31 dog -> cat"
    loss, _, said = _judge({"image": image, "target": torch.tensor([1, 0])},
                           torch.tensor([0.0, 0.0]), ("cat", "dog"))  # fmt: skip
    assert loss == pytest.approx(np.log(2)) and said == "0.69 cat"
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[:2], mask[3] = 1, 255  # two rows of lane, one of road, one void
    logits = torch.full((1, 4, 4), -2.0)
    logits[:, :1] = 2.0
    loss, drawn, _ = _judge({"image": image, "mask": mask}, logits, ("road", "lane"))
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert loss == pytest.approx((2 * right + wrong) / 3, rel=1e-5) and drawn[0, 0, 0] > 0
    many = torch.stack([logits[0], -logits[0], logits[0] - 9])
    loss, _, _ = _judge({"image": image, "mask": mask}, many, ("background", "x", "y"))
    right, wrong = np.log1p(np.exp(-4)), np.log1p(np.exp(4))  # the second row alone is right
    assert loss == pytest.approx((right + 2 * wrong) / 3, rel=1e-3)
