from __future__ import annotations

import pytest
import torch

from src.models.micro.experts import DATASETS
from src.models.micro.registry import MICRO_NETS, build_micro
from src.models.micro.unet import UNetBaseline
from src.script import UserError


@pytest.mark.parametrize("name", sorted(MICRO_NETS))
def test_logits_have_the_size_of_any_image(name):
    net = build_micro(name, 3).eval()
    image = torch.randint(0, 256, (2, 3, 45, 70), dtype=torch.uint8)
    with torch.no_grad():
        logits, features = net.forward_with_features(image)
        assert torch.allclose(net(image.float()), logits)
    assert logits.shape == (2, 3, 45, 70)
    assert len(features) >= 3


@pytest.mark.parametrize("name", sorted(MICRO_NETS))
def test_every_parameter_learns(name):
    net = build_micro(name, 3)
    for norm in net.modules():  # zero-gamma branches pass no gradient on in the first step
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(norm.weight)
    (net(torch.rand(2, 3, 64, 64) * 255) * torch.randn(2, 3, 64, 64)).sum().backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", [n for n, spec in MICRO_NETS.items() if spec.by_dataset])
def test_each_data_set_has_its_path(name, dataset):
    net = build_micro(name, 2, dataset=dataset).eval()
    logits = net(torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, 2, 32, 32)
    logits.sum().backward()  # what is trainable has a gradient, or processes would wait for it
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "block"), [(n, block) for n, spec in MICRO_NETS.items() for block in spec.blocks]
)
def test_any_one_block_can_be_dropped(name, block):
    def structure(net):  # a block may be a module, a lone parameter, or a swapped module
        return repr(net), sorted(net.state_dict())

    net = build_micro(name, 2, drop=(block,))
    assert structure(net) != structure(build_micro(name, 2))
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_the_baseline_is_the_published_one():
    assert sum(p.numel() for p in UNetBaseline(1).parameters()) == 7_763_041


@pytest.mark.parametrize("frequency", [(0.03,), (0.9, 0.07, 0.03)])
def test_prior_is_where_an_untrained_net_starts(frequency):
    prior = torch.tensor(frequency)
    net = build_micro("micro_unet", len(frequency))
    net.set_prior(prior)
    torch.nn.init.zeros_(net.head.weight)
    logits = net.eval()(torch.rand(1, 3, 32, 32) * 255)[0, :, 5, 5]
    probs = logits.sigmoid() if len(frequency) == 1 else logits.softmax(0)
    assert torch.allclose(probs, prior, atol=1e-4)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="did you mean lcnet"):
        build_micro("lcnets", 2)
    with pytest.raises(UserError, match=r"--drop pyramid: the net .* has no such block"):
        build_micro("lcnet", 2, drop=("pyramid",))
