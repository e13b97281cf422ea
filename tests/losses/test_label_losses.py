"""Losses of several labels an image: by hand, against torch and timm, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional as F

from src.losses.classification import LABEL_LOSSES, asymmetric, binary_focal, build_loss, check_loss
from src.script import UserError


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=dtype) * 3
    return logits, (torch.rand(6, 4, generator=generator) < 0.4).to(dtype)


def test_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/2 and 3/4
    target = torch.tensor([[1, 0]])
    loss = build_loss("bce", several=True)(logits, target)
    assert float(loss) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert float(build_loss("cross_entropy", several=True)(logits, target)) == float(loss)
    focal = build_loss("focal(gamma=2)", several=True)(logits, target)
    assert float(focal) == pytest.approx((0.25 * math.log(2) + 9 / 16 * math.log(4)) / 2)
    smooth = build_loss("bce", several=True, label_smoothing=0.2)(logits, target)
    p, q = 0.5, 0.75
    wanted = -(0.9 * math.log(p) + 0.1 * math.log(1 - p) + 0.1 * math.log(q))
    assert float(smooth) == pytest.approx((wanted - 0.9 * math.log(1 - q)) / 2)


def test_against_torch_and_timm() -> None:
    logits, target = batch()
    loss = build_loss("bce", several=True)(logits, target)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, target))
    torch.testing.assert_close(binary_focal(logits, target, gamma=0.0).mean(), loss)
    reference = AsymmetricLossMultiLabel(gamma_neg=3, gamma_pos=1, clip=0.05)
    each = torch.stack([
        reference(one[None], y[None]) / logits.shape[1]
        for one, y in zip(logits, target, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(asymmetric(logits, target, gamma_neg=3.0), each)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_gradients_are_those_of_finite_differences_and_stay_finite(name: str) -> None:
    logits, target = batch(torch.float64)
    logits.requires_grad_()
    soft = target * 0.7 + 0.1  # as mixup makes them
    assert torch.autograd.gradcheck(lambda x: LABEL_LOSSES[name](x, soft), logits)
    extreme = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    build_loss(name, several=True)(extreme, torch.tensor([[0, 1, 1]])).backward()
    assert torch.isfinite(extreme.grad).all()


def test_names_of_the_other_kind_are_refused() -> None:
    for spec in ("bi_tempered", "asymmetric", "0.5 bce + focal"):
        check_loss(spec)
    with pytest.raises(UserError, match="bi_tempered"):
        build_loss("bi_tempered", several=True)
    with pytest.raises(UserError, match="asymmetric"):
        build_loss("asymmetric")
    with pytest.raises(UserError, match="nothing"):
        check_loss("nothing")
