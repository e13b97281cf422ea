from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.engine.predict import predict_view, predict_views
from src.engine.runtime import start_runtime
from src.losses.segmentation import build_segmentation_loss
from src.pipelines.segmentation.score import (
    fit_size,
    mean_probs,
    running_means,
    sample_pixels,
    to_mask,
    true_probs,
)
from src.tasks.segmentation import Segmentation
from src.views import VIEWS


class Pointwise(nn.Module):
    """A net that sees one pixel at a time, so that every view must agree exactly."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float()[:, :1] / 255 - 0.4


@pytest.mark.parametrize("window", [None, (16, 24)])
def test_every_view_comes_back_to_its_place(window: tuple[int, int] | None) -> None:
    image = torch.randint(0, 256, (2, 3, 30, 45), dtype=torch.uint8)
    task = Segmentation(("background", "lane"), build_segmentation_loss("bce"), window=window)
    show = partial(predict_view, Pointwise(), task, start_runtime("cpu"))
    outputs = predict_views(show, {"image": image}, VIEWS)
    for output in outputs:
        torch.testing.assert_close(output, Pointwise()(image))


def test_probabilities_are_averaged_not_logits() -> None:
    one, other = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -4.0)
    expected = (1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(4))) / 2
    assert float(mean_probs([one, other])[0, 0, 0, 0]) == pytest.approx(expected, abs=1e-6)
    many = mean_probs([torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)])
    torch.testing.assert_close(many.sum(1), torch.ones(2, 3, 3))
    views = [torch.randn(1, 3, 2, 2) for _ in range(4)]
    for number, mean in enumerate(running_means(views), 1):
        torch.testing.assert_close(mean, torch.stack(views[:number]).softmax(2).mean(0))
    assert number == 4


def test_sizes_and_labels() -> None:
    probs = torch.tensor([[[0.2, 0.4], [0.6, 0.8]]])
    assert fit_size(probs, (4, 6)).shape == (1, 4, 6)
    assert fit_size(probs, (2, 2)) is probs
    assert to_mask(probs, 0.6).tolist() == [[0, 0], [1, 1]]
    assert to_mask(torch.tensor([[[0.1]], [[0.7]], [[0.2]]]), 0.5).tolist() == [[1]]
    # the best class but the background has 0.3 of the 0.9 that the two share
    probs = torch.tensor([[[0.6]], [[0.1]], [[0.3]]])
    assert [to_mask(probs, t).item() for t in (0.5, 0.34, 0.33)] == [0, 0, 2]


def test_true_probabilities_at_chosen_pixels() -> None:
    mask = np.array([[0, 1], [255, 1]], np.uint8)
    pixels = sample_pixels("a", mask, 255, count=50)
    assert set(pixels.tolist()) == {0, 1, 3}
    assert np.array_equal(pixels, sample_pixels("a", mask, 255, count=50))
    values = true_probs(torch.tensor([[[0.1, 0.7], [0.5, 0.4]]]), mask, np.array([0, 1, 3]))
    assert values.tolist() == pytest.approx([0.9, 0.7, 0.4])
    both = torch.tensor([[[0.9, 0.3], [0.5, 0.6]], [[0.1, 0.7], [0.5, 0.4]]])
    assert true_probs(both, mask, np.array([0, 1, 3])).tolist() == pytest.approx([0.9, 0.7, 0.4])
