"""Cost of a network: parameters as trained and as deployed, FLOPs, a table by module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.models.convolutions import fold_norms
from src.script import UserError, format_table


@dataclass(frozen=True)
class Row:
    """Cost of one direct child of a net."""

    name: str
    trainable: int
    deployed: int
    flops: int


@dataclass(frozen=True)
class Budget:
    """Cost of a net: trainable parameters, deployed ones (norms folded), FLOPs for one image."""

    trainable: int
    deployed: int
    flops: int
    rows: tuple[Row, ...]

    def table(self) -> str:
        """Return an aligned text table: one line a module, the total last."""
        total = Row("total", self.trainable, self.deployed, self.flops)
        rows = [
            [row.name, f"{row.trainable:,}", f"{row.deployed:,}", f"{row.flops / 1e6:.1f}"]
            for row in (*self.rows, total)
        ]
        return format_table(["module", "trainable", "deployed", "MFLOPs"], rows)


def count_trainable(net: nn.Module) -> int:
    """Return the number of trainable parameters, shared ones once."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def measure_budget(net: nn.Module, *, size: int = 256) -> Budget:
    """Measure a net that takes images (1, 3, size, size).

    FLOPs count two for a multiply-add, in convolutions and matrix products only, which is what
    published tables count.
    """
    fused = fold_norms(net, size)
    was_training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
    net.train(was_training)
    flops = counter.get_flop_counts()
    prefix = type(net).__name__
    rows = []
    for name, child in net.named_children():
        deployed = sum(p.numel() for p in fused.get_submodule(name).parameters())
        cost = sum(flops.get(f"{prefix}.{name}", {}).values())
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            # Containers are never called themselves: their cost is that of what they hold.
            cost = sum(
                sum(flops.get(f"{prefix}.{name}.{key}", {}).values())
                for key, _ in child.named_children()
            )
        rows.append(Row(name, count_trainable(child), deployed, cost))
    return Budget(
        count_trainable(net),
        sum(p.numel() for p in fused.parameters()),
        sum(flops.get("Global", {}).values()),
        tuple(row for row in rows if row.trainable or row.flops),
    )


def check_budget(name: str, trainable: int, max_params: int) -> None:
    """Refuse a net over budget.

    Raises:
        UserError: ``trainable`` > ``max_params``.
    """
    if trainable > max_params:
        raise UserError(
            f"--model {name} has {trainable:,} trainable parameters with the 21-class head, over "
            f"--max_params {max_params:,}; choose a smaller net or pass --allow_over_budget"
        )
