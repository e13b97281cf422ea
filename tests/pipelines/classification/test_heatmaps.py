"""Grad-CAM finds the part of an image that decides, in all layouts of a map."""

from __future__ import annotations

import pytest
import torch

from src.models.classifier import build_classifier
from src.pipelines.classification.heatmaps import grad_cam


@pytest.mark.parametrize(
    ("name", "shape"),
    [("test_resnet", (4, 4)), ("test_vit", (8, 8)), ("test_efficientnet", (4, 4))],
)
def test_the_map_has_the_layout_of_the_features(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_classifier(name, 3, image_size=128, pool="avg")
    image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)
    heat = grad_cam(model, image, 1)
    assert heat.shape == shape and not heat.requires_grad
    assert heat.min() >= 0 and heat.max() in (0.0, pytest.approx(1.0))


def test_heat_lies_where_the_class_is() -> None:
    """With a head that reads one channel and mean pooling, the map is that channel."""
    torch.manual_seed(0)
    model = build_classifier("test_resnet", 2, image_size=128, pool="avg").eval()
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    image[:, 64:, 64:] = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    features = model.forward_features(image[None])[0][0]
    channel = int((features.amax((1, 2)) - features.amin((1, 2))).argmax())
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1, channel] = 1.0
    heat = grad_cam(model, image, 1)
    expected = features[channel].clamp_min(0)
    torch.testing.assert_close(heat, expected / expected.max(), atol=1e-4, rtol=1e-3)
    assert not grad_cam(model, image, 0).any(), "nothing speaks for a class without weights"
