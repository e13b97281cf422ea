"""Mixing: labels weighed by the pixels that are really there, and the draw repeats."""

import numpy as np
import pytest
import torch

from src.data.transforms import draw_box, mix


def batch(size=5, classes=3):
    """Image i is everywhere 10·i + 5, so that a pixel tells which image it came from."""
    values = torch.arange(size, dtype=torch.uint8) * 10 + 5
    return values.view(-1, 1, 1, 1).repeat(1, 3, 16, 12), torch.arange(size) % classes


def test_off_is_one_hot_and_leaves_the_image():
    image, target = batch()
    for options in ({}, {"mixup_alpha": 1.0, "prob": 0.0}):
        mixed, soft = mix(image, target, num_classes=3, seed=0, step=0, **options)
        assert mixed is image
        assert soft.tolist() == torch.eye(3)[target].tolist() and soft.dtype == torch.float32


def test_cutmix_label_is_the_share_of_pixels():
    image, target = batch()
    target = torch.arange(5)
    boxes = 0
    for step in range(60):
        mixed, soft = mix(image, target, num_classes=5, seed=1, step=step, cutmix_alpha=1.0)
        assert mixed.dtype == torch.uint8 and (image == batch()[0]).all()
        for row in range(5):
            sources = ((mixed[row, 0].int() - 5) // 10).flatten()
            share = torch.bincount(sources, minlength=5) / sources.numel()
            assert torch.allclose(soft[row], share, atol=1e-6)
        boxes += int((soft < 1).all(1).all())
    assert boxes > 30


def test_mixup_label_is_the_weight_of_pixels():
    image, target = batch()
    target = torch.arange(5)
    for step in range(20):
        mixed, soft = mix(image, target, num_classes=5, seed=1, step=step, mixup_alpha=0.4)
        assert mixed.dtype == torch.float32
        expected = (soft * image[:, 0, 0, 0].float()).sum(1)
        assert torch.allclose(mixed[:, 1, 3, 3], expected, atol=1e-3)
        assert torch.allclose(soft.sum(1), torch.ones(5))


def test_partner_is_always_another_image():
    image, _ = batch(3)
    for step in range(50):
        _, soft = mix(image, torch.arange(3), num_classes=3, seed=0, step=step, mixup_alpha=50.0)
        assert (soft.max(1).values < 0.9).all()  # λ ≈ ½ unless mixed with itself


def test_draw_depends_on_seed_and_step_alone():
    image, target = batch()
    options = {"num_classes": 3, "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "prob": 0.7}
    first = mix(image, target, seed=3, step=9, **options)
    np.random.seed(1)
    torch.manual_seed(1)
    mix(image, target, seed=3, step=8, **options)
    again = mix(image, target, seed=3, step=9, **options)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    labels = {tuple(mix(image, target, seed=3, step=s, **options)[1].flatten().tolist())
              for s in range(30)}  # fmt: skip
    assert len(labels) > 15
    kinds = [mix(image, target, seed=3, step=s, **options)[0] for s in range(60)]
    unmixed = sum(kind is image for kind in kinds)
    blended = sum(kind.dtype == torch.float32 for kind in kinds)
    assert 8 < unmixed < 30 and 10 < blended < 32


def test_a_single_row_is_left_alone():
    image, target = batch(1)
    mixed, soft = mix(image, target, num_classes=3, seed=0, step=0, mixup_alpha=1.0)
    assert mixed is image and soft.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("area", [0.0, 0.3, 1.0])
def test_boxes_lie_inside(area):
    generator = np.random.default_rng(0)
    for _ in range(200):
        top, bottom, left, right = draw_box(generator, 20, 30, area)
        assert 0 <= top <= bottom <= 20 and 0 <= left <= right <= 30
        assert (bottom - top) * (right - left) <= round(area * 600) + 50


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_the_order_is_copied_before_its_memory_is_freed(alphas, monkeypatch):
    """A copy to MPS that is not waited for reads whatever lies there later (PyTorch #189690)."""
    asked, move = [], torch.Tensor.to

    def to(tensor, *place, **options):
        asked.append(options.get("non_blocking", False))
        return move(tensor, *place, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    image, soft = torch.empty(4, 3, 8, 8, device="meta"), torch.empty(4, 2, device="meta")
    mix(image, soft, num_classes=2, seed=0, step=0, **alphas)
    assert asked == [False]
