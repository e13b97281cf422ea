"""Depthwise convolutions in bf16 on the CPU: torch's answers, fp32's gradients, no lost time."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from src.models.classifier import build_classifier
from src.models.convolutions import widen_gradients

CONVS = {
    "5x5": lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6),
    "stride": lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False),
    "dilation": lambda: nn.Conv2d(6, 6, 3, dilation=2, padding=2, groups=6, bias=False),
    "same": lambda: Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False),
}


def answer_and_gradients(conv: nn.Module, image: Tensor, narrow: bool) -> dict[str, Tensor]:
    image = image.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        answer = conv(image)
    weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1))
    answer.backward(weights.bfloat16().to(answer.dtype))
    gradients = {name: p.grad for name, p in conv.named_parameters()}
    return {"answer": answer.detach(), "image": image.grad, **gradients}


@pytest.fixture(params=CONVS)
def twins(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    """A convolution, the same with wide gradients, and an image for them."""
    torch.manual_seed(0)
    plain = CONVS[request.param]()
    wide = copy.deepcopy(plain)
    widen_gradients(wide)
    assert "forward" in vars(wide)
    return plain, wide, torch.randn(2, 6, 13, 13)


def test_answers_stay_and_gradients_are_those_of_fp32(
    twins: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    plain, wide, image = twins
    image = image.bfloat16().float()
    ours, torchs = (answer_and_gradients(conv, image, narrow=True) for conv in (wide, plain))
    assert ours["answer"].dtype == torch.bfloat16
    assert torch.equal(ours.pop("answer"), torchs["answer"])
    exact = answer_and_gradients(copy.deepcopy(plain), image, narrow=False)
    ours["image"], exact["image"] = ours["image"].bfloat16(), exact["image"].bfloat16()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, exact[name])


def test_in_fp32_nothing_changes(twins: tuple[nn.Module, nn.Module, Tensor]) -> None:
    plain, wide, image = twins
    ours, torchs = (answer_and_gradients(conv, image, narrow=False) for conv in (wide, plain))
    for name, value in torchs.items():
        assert torch.equal(ours[name], value)


def test_kernels_that_are_fast_or_standardised_are_left_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, 5, padding=2),
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Conv2d(6, 6, 5, groups=6, padding_mode="reflect", padding=2),
    )
    widen_gradients(net)
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_classifier_trains_in_bf16_with_gradients_near_fp32s() -> None:
    net = build_classifier("tf_efficientnet_lite0", 5, image_size=64).eval()
    for parameter in net.head.parameters():
        nn.init.normal_(parameter)
    batch = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    found = []
    for narrow in (True, False):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = net(batch.to(torch.uint8)).square().mean()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.99
