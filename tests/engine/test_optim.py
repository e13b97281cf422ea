"""The learning rate against torch's own schedulers and by hand; parameter groups; refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from src.config import EngineConfig
from src.engine.optim import (
    averaging_decay,
    build_optimizer,
    ends_mid_cycle,
    group_parameters,
    learning_rate,
    set_lr,
    warm_restarts,
)
from src.script import UserError


def rate(step: int, schedule: Any) -> float:
    config = EngineConfig(schedule=schedule, lr=1e-2, lr_min=1e-6, warmup_epochs=1.0)
    return learning_rate(step, config, steps_per_epoch=5, epochs=4)


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_restarts_equal_torch(mult: int) -> None:
    """Torch's class, stepped by fractional epochs, over several cycles."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    torch_class = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=3, T_mult=mult, eta_min=1e-6
    )
    for step in range(200):
        epoch = step / 5
        torch_class.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        assert warm_restarts(epoch, 1e-2, 1e-6, 3, mult) == pytest.approx(expected, rel=1e-9)


def test_cosine_by_hand() -> None:
    rates = [rate(step, "cosine") for step in range(20)]
    assert rates[:5] == pytest.approx([1e-6 + (1e-2 - 1e-6) * i / 6 for i in range(1, 6)])
    assert rates[5] == pytest.approx(1e-2) and rates[19] == pytest.approx(1e-6)
    assert rates[12] == pytest.approx(1e-6 + (1e-2 - 1e-6) * 0.5 * (1 + math.cos(math.pi / 2)))


def test_a_constant_rate_keeps_its_peak_after_the_warm_up() -> None:
    rates = [rate(step, "constant") for step in range(20)]
    assert rates[5:] == [1e-2] * 15
    assert rates[:5] == [rate(step, "cosine") for step in range(5)]


def test_poly_is_a_straight_line_to_the_floor() -> None:
    rates = [rate(step, "poly") for step in range(5, 20)]
    falls = [a - b for a, b in itertools.pairwise(rates)]
    assert falls == pytest.approx([falls[0]] * 14) and rates[-1] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("epochs", "end"), [(10, None), (30, None), (70, None), (9, 0), (20, 10), (69, 30)]
)
def test_cycle_ends(epochs: int, end: int | None) -> None:
    assert ends_mid_cycle(epochs, 10, 2) == end


def test_a_run_that_ends_in_mid_cycle_is_warned_of(train: Any, capsys: Any) -> None:
    train(schedule="warm_restarts", restart_epochs=2, epochs=3, lr=1e-3)
    assert "epoch 3 ends no cycle of restarts; use --epochs 2" in capsys.readouterr().out


class Net(nn.Module):
    """A backbone of one convolution and norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def test_groups_decay_matrices_only_and_speed_the_head_up() -> None:
    net = Net()
    groups = group_parameters(net, weight_decay=0.1, layer_decay=1.0, head_lr_mult=5.0)
    found = {id(p): (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    assert len(found) == len(list(net.parameters()))
    assert found[id(net.backbone[0].weight)] == (0.1, 1.0)
    assert found[id(net.backbone[1].weight)] == (0.0, 1.0)
    assert found[id(net.head.weight)] == (0.1, 5.0) and found[id(net.head.bias)] == (0.0, 5.0)
    optimizer = build_optimizer("sgd", groups, 1e-2)
    set_lr(optimizer, 3e-3)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx([3e-3, 1.5e-2])


def test_layer_decay_slows_the_stem_down() -> None:
    import timm

    net = Net()
    net.backbone = timm.create_model("test_vit", num_classes=0)
    groups = group_parameters(net, weight_decay=0.1, layer_decay=0.5, head_lr_mult=5.0)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    stem, top = net.backbone.patch_embed.proj.weight, net.backbone.norm.weight
    assert scale[id(stem)] < 0.5 * scale[id(top)] <= 0.5


def test_sgd_rates_are_refused_for_adamw_on_a_backbone() -> None:
    groups = group_parameters(Net(), weight_decay=0.1, layer_decay=1.0, head_lr_mult=5.0)
    with pytest.raises(UserError, match="--optimizer sgd"):
        build_optimizer("adamw", groups, 0.01)
    assert build_optimizer("sgd", groups, 0.01).param_groups[0]["nesterov"]


def test_a_share_of_the_steps_has_the_mean_age_of_their_plain_average() -> None:
    assert averaging_decay(0.998, 0.0, 150) == 0.998
    decay = averaging_decay(0.998, 0.1, 150)  # 15 steps, whose mean age is 7
    assert decay / (1 - decay) == pytest.approx(7)
    assert averaging_decay(0.998, 0.1, 5) == 0.0  # no more than the last step: nothing to average


def test_beta2_reaches_adamw() -> None:
    groups = group_parameters(Net(), weight_decay=0.1, layer_decay=1.0, head_lr_mult=5.0)
    assert build_optimizer("adamw", groups, 1e-3, 0.99).param_groups[0]["betas"] == (0.9, 0.99)


def test_a_skipped_first_step_leaves_sgd_without_momentum() -> None:
    p = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer("sgd", [{"params": [p], "lr_scale": 1.0}], 0.1)
    p.grad = torch.full_like(p, torch.inf)
    optimizer.found_inf = torch.ones(())  # as the loss guard and the fp16 scaler do
    optimizer.step()
    assert torch.equal(p, torch.ones(4))
    assert torch.equal(optimizer.state[p]["momentum_buffer"], torch.zeros(4))
    p.grad, optimizer.found_inf = torch.ones(4), torch.zeros(())
    optimizer.step()
    assert torch.allclose(p, torch.full((4,), 1 - 0.1 * 1.9))
