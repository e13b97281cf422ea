from __future__ import annotations

import torch
from torch import nn

from src.models.micro.blocks import (
    AdvancedASPP,
    ConvNorm,
    CoordinateAttention,
    DatasetAdaptiveModule,
    DirectionalConv,
    GradientFeatureModule,
    MultiDilationSeparableConv2d,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_gradient_module_starts_as_identity_and_then_adds_edge_strength():
    module = GradientFeatureModule(2)
    x = torch.arange(8.0).expand(1, 2, 8, 8)
    assert torch.equal(module(x), x)
    nn.init.constant_(module.scale, 0.5)
    assert torch.allclose((module(x) - x)[..., 2:6, 2:6], torch.tensor(1.0), atol=1e-3)


def test_shared_dilations_reach_as_far_for_a_third_of_the_kernels():
    own = MultiDilationSeparableConv2d(4, 6, (1, 2, 4))
    shared = MultiDilationSeparableConv2d(4, 6, (1, 2, 4), shared=True)
    assert count(own) - count(shared) == 2 * 4 * 9
    for module in (own.eval(), shared.eval()):
        x = torch.zeros(1, 4, 17, 17, requires_grad=True)
        module.norm(sum_of(module, x))[0, :, 8, 8].sum().backward()
        reached = x.grad[0, 0].nonzero() - 8
        assert reached.abs().max() == 4
        assert len(reached) == 25  # the centre and eight neighbours at each of three distances


def sum_of(module, x):
    """What the module hands to its norm."""
    seen = []
    hook = module.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(x)
    hook.remove()
    return seen[0]


def test_directional_strips_answer_the_line_they_lie_on():
    module = DirectionalConv(1, kernel=5)
    x = torch.zeros(1, 1, 11, 11)
    x[..., range(11), range(11)] = 1
    assert torch.equal(module.eval()(x), x)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.norm.weight)
    assert torch.allclose(module(x)[0, 0, 5, 5] - 1, torch.tensor(5.0), atol=1e-3)


def test_coordinate_attention_gates_rows_and_columns_separately():
    module = CoordinateAttention(4).eval()
    x = torch.rand(1, 4, 5, 7)
    gate = (module(x) / x)[0, 0]
    assert gate.shape == (5, 7)
    assert torch.linalg.matrix_rank(gate) == 1  # an outer product of a row and a column gate
    assert count(CoordinateAttention(4, shared=True)) == count(module) - 2 * 4 - 4


def test_aspp_starts_as_identity_on_positive_maps():
    x = torch.rand(2, 8, 9, 9)
    assert torch.allclose(AdvancedASPP(8)(x), x)


def test_adaptive_module_scales_and_shifts_by_its_guess():
    module = DatasetAdaptiveModule(2, num_sets=3)
    with torch.no_grad():
        module.scale[1] = 5
        module.shift[2] = 7
    nn.init.zeros_(module.router.weight)
    for guess, value in ((0, 1.0), (1, 5.0), (2, 8.0)):
        with torch.no_grad():
            module.router.bias.fill_(-99.0)[guess] = 0.0
        assert torch.allclose(module(torch.ones(2, 2, 3, 3)), torch.tensor(value))


def test_zero_gamma_starts_the_branch_at_zero():
    assert (ConvNorm(3, 4, zero_gamma=True, act=False)(torch.rand(2, 3, 4, 4)) == 0).all()
