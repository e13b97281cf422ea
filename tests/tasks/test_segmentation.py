from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.losses.segmentation import build_segmentation_loss
from src.tasks.segmentation import Segmentation, background_label, predict_windows, spread

TWO = ("background", "crack")


class Grey(nn.Module):
    """Logits (B, K, H, W) that look at one pixel each, and a note of the sizes asked for."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.seen: list[tuple[int, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append((image.shape[-2], image.shape[-1]))
        return (image.float().mean(1, keepdim=True) / 255 - 0.5).repeat(1, self.channels, 1, 1)


def task(**options: Any) -> Segmentation:
    return Segmentation(TWO, build_segmentation_loss("bce + dice"), **options)


def test_loss_is_the_sum_of_its_terms() -> None:
    batch = {"image": torch.zeros(2, 3, 8, 8), "mask": torch.ones(2, 8, 8, dtype=torch.uint8)}
    terms = task().loss(Grey(), batch)
    assert float(terms["bce"]) == pytest.approx(np.log1p(np.exp(0.5)), abs=1e-6)
    assert float(terms["loss"]) == pytest.approx(float(terms["bce"] + terms["dice"]), abs=1e-6)


@pytest.mark.parametrize(
    ("size", "window"), [(10, 10), (10, 4), (97, 32), (33, 32), (480, 320), (7, 6)]
)
def test_windows_cover_evenly_and_symmetrically(size: int, window: int) -> None:
    starts = list(spread(size, window))
    covered = np.zeros(size, int)
    for start in starts:
        assert 0 <= start <= size - window
        covered[start : start + window] += 1
    assert covered.min() >= 1
    assert starts == sorted(size - window - s for s in starts)


def test_windows_give_back_what_a_local_net_says() -> None:
    image = torch.randint(0, 256, (2, 3, 50, 70)).float()
    net = Grey()
    out = predict_windows(net, image, (32, 40))
    torch.testing.assert_close(out, Grey()(image))
    assert set(net.seen) == {(32, 40)} and len(net.seen) > 1


def test_windows_turn_with_the_image_and_small_images_stay_whole() -> None:
    net = Grey()
    predict_windows(net, torch.zeros(1, 3, 70, 50), (32, 40))
    assert set(net.seen) == {(40, 32)}
    net.seen.clear()
    predict_windows(net, torch.zeros(1, 3, 20, 30), (32, 40))
    assert net.seen == [(20, 30)]


def test_binary_monitor_is_the_iou_at_the_best_threshold() -> None:
    probs = torch.tensor([[0.1, 0.2], [0.3, 0.9]])
    batch = {"mask": torch.tensor([[[0, 0], [1, 1]]]), "index": torch.tensor([0])}
    meter = task().meter()
    meter.update(probs.logit()[None, None], batch)
    scores = meter.compute()
    assert scores[task().monitor] == 1.0
    assert 0.2 < scores["best_threshold"] <= 0.3
    assert scores["pooled_iou/crack"] == 0.5  # at 0.5 one of the two is found


def test_void_counts_for_nothing() -> None:
    batch = {"mask": torch.tensor([[[0, 1], [255, 255]]]), "index": torch.tensor([0])}
    logits = torch.tensor([[[[-3.0, 3.0], [3.0, -3.0]]]])
    meter = task().meter()
    meter.update(logits, batch)
    assert meter.compute()["pooled_mean_iou"] == 1.0


def test_many_classes_are_chosen_by_their_mean() -> None:
    many = Segmentation(("a", "b", "c"), build_segmentation_loss("ce"))
    assert (many.num_outputs, many.monitor) == (3, "pooled_mean_iou")
    logits = torch.eye(3)[torch.tensor([[[0, 1, 1, 2]]])].permute(0, 3, 1, 2)
    meter = many.meter()
    target = torch.tensor([[[0, 1, 2, 2]]])
    meter.update(logits, {"mask": target, "index": torch.tensor([0])})
    # IoU 1, 1/2, 1/2
    assert meter.compute()["pooled_mean_iou"] == pytest.approx(2 / 3)


def test_the_background_is_named_or_the_first_of_two() -> None:
    assert background_label(("sky", "road", "car")) is None
    assert background_label(("background", "cat", "dog")) == 0
    assert background_label(("road", "lane")) == 0
