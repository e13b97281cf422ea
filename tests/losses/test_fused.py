"""The two losses in one pass are the two losses one by one, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.losses.segmentation import SegmentationLoss, build_segmentation_loss, fused_values
from src.losses.terms import log_probabilities

SPEC = "0.3 ce + protocol"


def batch(num_classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, num_classes, 12, 10, generator=generator) * 4
    target = torch.randint(0, num_classes, (4, 12, 10), generator=generator)
    target[target == 3] = 0  # nowhere true
    target[1, :6], target[2] = 255, 255  # half void, all void
    return logits, target


def one_by_one(
    loss: SegmentationLoss, logits: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    log_probs = log_probabilities(logits)
    values = {name: term(log_probs, target, loss.ignore_index) for name, _, term in loss.terms}
    return torch.stack([w * values[name] for name, w, _ in loss.terms]).sum(), values


@pytest.mark.parametrize("spec", [SPEC, "protocol + 2 bce"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rarity", [None, (0.1, 0.5, 1.0, 0.25, 2.0)])
def test_values_and_gradient(
    spec: str, layout: torch.memory_format, rarity: tuple[float, ...] | None
) -> None:
    logits, target = batch()
    loss = build_segmentation_loss(spec, rarity=rarity)
    ours, theirs = (
        logits.clone().contiguous(memory_format=layout).requires_grad_(True) for _ in range(2)
    )
    assert fused_values(loss.terms, ours, target, 255) is not None
    found = loss(ours, target)
    total, values = one_by_one(loss, theirs, target)
    torch.testing.assert_close(found["loss"], total)
    for name, value in values.items():
        torch.testing.assert_close(found[name], value.detach())
    (3 * found["loss"]).backward()
    (3 * total).backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert ours.grad.is_contiguous(memory_format=layout)
    assert not ours.grad[2].any(), "all void"


def test_without_void_and_of_one_term() -> None:
    logits, target = batch()
    target = target.masked_fill(target == 255, 1)
    loss = build_segmentation_loss(SPEC, ignore_index=None)
    for name in ("ce", "protocol"):
        ours, theirs = (logits.clone().requires_grad_(True) for _ in range(2))
        values = fused_values(loss.terms, ours, target, None)
        assert values is not None
        values[name].backward()
        one_by_one(loss, theirs, target)[1][name].backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("value", [80.0, -80.0, float("inf"), float("nan")])
def test_logits_whose_exponentials_leave_float32_go_one_by_one(value: float) -> None:
    logits, target = batch()
    logits[0, 1, 3, 3] = value
    loss = build_segmentation_loss(SPEC)
    assert fused_values(loss.terms, logits, target, 255) is None
    torch.testing.assert_close(
        loss(logits, target)["loss"], one_by_one(loss, logits, target)[0], equal_nan=True
    )


@pytest.mark.parametrize(("spec", "classes"), [("ce", 5), ("ce + dice", 5), (SPEC, 2)])
def test_other_sums_and_two_classes_go_one_by_one(spec: str, classes: int) -> None:
    logits, target = batch(classes)
    assert fused_values(build_segmentation_loss(spec).terms, logits, target, 255) is None
