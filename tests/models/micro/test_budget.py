from __future__ import annotations

import pytest
from torch import nn

from src.models.micro.experts import DATASETS
from src.models.micro.registry import (
    MICRO_NETS,
    build_micro,
    check_budget,
    count_trainable,
    measure_budget,
)
from src.script import UserError


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))]
        )
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.body[0](x))


def test_costs_are_those_counted_by_hand():
    budget = measure_budget(Tiny(), size=8)
    body, head = budget.rows
    assert (body.trainable, body.deployed) == (108 + 8, 108 + 4)
    assert (head.trainable, head.deployed) == (10, 10)
    assert (body.flops, head.flops) == (2 * 108 * 64, 2 * 8 * 64)
    assert (budget.trainable, budget.deployed) == (126, 122)
    assert budget.flops == body.flops + head.flops
    assert budget.table().splitlines()[-1].split() == ["total", "126", "122", "0.0"]


def test_frozen_and_shared_parameters_are_counted_right():
    net = Tiny()
    net.head.bias.requires_grad = False
    net.again = net.head
    assert count_trainable(net) == 124


def test_over_budget_is_refused_with_the_remedy():
    check_budget("x", 10_000, 10_000)
    with pytest.raises(UserError, match="--allow_over_budget"):
        check_budget("x", 10_001, 10_000)


@pytest.mark.parametrize("name", sorted(MICRO_NETS))
def test_nets_keep_their_promise_with_the_21_class_head(name):
    limit = MICRO_NETS[name].max_params
    if limit is not None:
        for dataset in (None, *DATASETS):
            check_budget(name, count_trainable(build_micro(name, 21, dataset=dataset)), limit)
