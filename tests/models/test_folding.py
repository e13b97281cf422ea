"""Norms folded into convolutions: the same answers from fewer modules, the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from src.models import convolutions
from src.models.classifier import build_classifier
from src.models.convolutions import fold_norms, hold_norms, release_norms, widen_gradients
from src.models.micro.registry import build_micro

NETS = ("test_efficientnet", "test_resnet", "test_convnext", "resnetv2_50", "tf_efficientnet_lite0")


def stir(net: nn.Module) -> nn.Module:
    """Give every norm statistics and weights that matter."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return net


def num_norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def image(side: int = 64) -> Tensor:
    return 255 * torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETS)
def test_a_folded_net_answers_the_same(name: str) -> None:
    net = stir(build_classifier(name, 5, image_size=64)).train()
    folded = fold_norms(net, 64)
    assert net.training and not folded.training
    assert num_norms(folded) == 0 or name == "resnetv2_50"  # norms before convolutions stay
    with torch.no_grad():
        expected = net.eval()(image())
        torch.testing.assert_close(folded(image()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["twohead_8k", "micro_unet", "hwnet_ultra", "lcnet"])
def test_a_mask_net_answers_the_same(name: str) -> None:
    net = stir(build_micro(name, 3)).eval()
    folded = fold_norms(net, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(image()), net(image()), rtol=1e-3, atol=1e-4)


def test_a_compiled_net_is_folded_without_compiling_anew() -> None:
    net, counter = stir(build_classifier("test_resnet", 5, image_size=64)).eval(), CompileCounter()
    expected = net(image())
    net.compile(backend=counter)
    torch.testing.assert_close(fold_norms(net, 64)(image()), expected, rtol=1e-3, atol=1e-4)
    assert counter.frame_count == 0


class Peeking(nn.Module):
    """Uses what comes before the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_where_folding_would_change_the_answer_nothing_is_folded() -> None:
    net = stir(Peeking()).eval()
    folded = fold_norms(net, 64)
    assert num_norms(folded) == 1
    torch.testing.assert_close(folded(image()), net(image()))


def losses_and_gradients(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    loss = net(batch).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def freeze(net: nn.Module) -> nn.Module:
    """Train, but with every norm at its running statistics."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return net


@pytest.mark.parametrize("rows", [1, 4])  # kernels are larger than maps, and smaller
@pytest.mark.parametrize("name", NETS)
def test_held_norms_change_neither_answers_nor_gradients(name: str, rows: int) -> None:
    plain = freeze(stir(build_classifier(name, 5, image_size=64))).double()
    held = copy.deepcopy(plain)
    count = hold_norms(held, 64) if name != "test_convnext" else 1
    assert count
    assert list(held.state_dict()) == list(plain.state_dict())
    freeze(held)
    batch = 255 * torch.rand(rows, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(
        losses_and_gradients(held, batch), losses_and_gradients(plain, batch), rtol=1e-6, atol=1e-9
    )


def test_norms_are_held_in_evaluation_alone_and_in_copies_too() -> None:
    plain = stir(build_classifier("test_resnet", 5, image_size=64))
    held = copy.deepcopy(plain)
    assert hold_norms(held, 64) and held.training
    torch.testing.assert_close(held(image()), plain(image()))  # statistics of the batch
    torch.testing.assert_close(held.state_dict(), plain.state_dict())
    twin = copy.deepcopy(held)
    with torch.no_grad():  # a copy holds its own norms, not those that it was copied from
        for parameter in held.parameters():
            parameter.zero_()
        expected = plain.eval()(image())
        torch.testing.assert_close(twin.eval()(image()), expected, rtol=1e-3, atol=1e-4)
        folded = fold_norms(twin, 64)
        assert num_norms(folded) == 0
        torch.testing.assert_close(folded(image()), expected, rtol=1e-3, atol=1e-4)
        release_norms(twin)
        torch.testing.assert_close(twin(image()), expected)


def test_a_bias_is_held_and_kernels_that_are_not_plain_are_passed_by() -> None:
    net = stir(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ScaledStdConv2d(4, 4, 3), nn.BatchNorm2d(4)
        )
    ).eval()
    expected = losses_and_gradients(net, image())
    assert hold_norms(net, 64) == 1
    torch.testing.assert_close(losses_and_gradients(net, image()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "calls"), [(8, 1), (16, 0)])
def test_a_kernel_is_scaled_where_it_is_small_beside_the_map(
    monkeypatch: pytest.MonkeyPatch, side: int, calls: int
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)).eval()
    assert hold_norms(net, 64) == 1
    made: list[object] = []  # the kernel has 27 numbers a map, the maps 2 x 16 and 2 x 64 places
    original = convolutions.F.batch_norm
    monkeypatch.setattr(
        convolutions.F, "batch_norm", lambda *args, **kw: made.append(0) or original(*args, **kw)
    )
    net(torch.rand(2, 3, side, side))
    assert len(made) == calls


def test_wide_gradients_do_not_undo_what_is_held() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 5, groups=3, bias=False), nn.BatchNorm2d(3))
    held = copy.deepcopy(stir(plain).eval())
    assert hold_norms(held, 64) == 1
    widen_gradients(held)
    torch.testing.assert_close(held(image()), plain(image()), rtol=1e-3, atol=1e-4)


def test_where_holding_would_change_the_answer_nothing_is_held() -> None:
    net = stir(Peeking()).eval()
    expected = net(image())
    assert hold_norms(net, 64) == 0
    torch.testing.assert_close(net(image()), expected)
