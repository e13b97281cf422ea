"""Registry of micro nets: families, sizes, blocks that can be dropped; parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.models.convolutions import fold_norms
from src.models.micro.experts import DATASETS, AdaptiveNet, DistillationNet, InternalEnsembleNet
from src.models.micro.light import HWNet, LCNet, MicroNet, MiniNet
from src.models.micro.unet import MegaNetV1, MicroUNet, TwoHeadUNet, UNetBaseline
from src.models.segmenter import MaskNet
from src.script import UserError, format_table, nearest

# Parameters are counted with VOC's head, the largest of the five sets.
BUDGET_CLASSES = 21


@dataclass(frozen=True)
class MicroSpec:
    """One named net."""

    build: Callable[..., MaskNet]  # family
    options: Mapping[str, object] = field(default_factory=dict)  # arguments of its size
    blocks: tuple[str, ...] = ()  # boolean arguments an ablation may turn off
    # arguments that change with the data set
    by_dataset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    # trainable parameters it promises to keep below, with ``BUDGET_CLASSES``
    max_params: int | None = None


TWO_HEADS = ("stride2", "stride1")
CONTEXT = ("attention", "pyramid")
MEGA = ("pyramid", "attention", "gradient", "adaptive")
LITTLE = ("pyramid", "attention", "adaptive", "gradient")
EXPERTS = ("edge", "region", "scale")

MICRO_NETS: dict[str, MicroSpec] = {
    "twohead_10k": MicroSpec(TwoHeadUNet, {}, TWO_HEADS, {}, 10_000),
    "twohead_8k": MicroSpec(TwoHeadUNet, {"widths": (10, 18, 24, 32)}, TWO_HEADS, {}, 8_000),
    "micro_unet": MicroSpec(
        MicroUNet,
        {},
        ("multi_dilation",),
        {"ETIS": {"gradient": True}, "CFD": {"directional": True}},
        10_000,
    ),
    "hwnet": MicroSpec(HWNet, {"widths": (16, 30, 44)}, CONTEXT),
    "hwnet_ultra": MicroSpec(HWNet, {"widths": (12, 20, 28), "depth": 2}, CONTEXT, {}, 10_000),
    "lcnet": MicroSpec(LCNet, {}, ("image_level",), {"CFD": {"directional": True}}, 10_000),
    "micronet": MicroSpec(
        MicroNet, {}, ("attention",), {"VOC": {"pyramid": True, "width": 32}}, 10_000
    ),
    "mininet_v2": MicroSpec(MiniNet, {}, ("detail",)),
    "mininet_v3": MicroSpec(
        MiniNet, {"widths": (12, 28, 42), "middle": 2, "dilations": (2, 4, 8)}, ("detail",)
    ),
    "meganet_v1": MicroSpec(MegaNetV1, {}, MEGA),
    "meganet_100k": MicroSpec(MegaNetV1, {"widths": (12, 24, 44, 64, 88)}, MEGA),
    "meganet_30k": MicroSpec(MegaNetV1, {"widths": (8, 14, 24, 32, 44)}, MEGA),
    "meganet_10k": MicroSpec(
        MegaNetV1,
        {"widths": (8, 12, 18, 24), **dict.fromkeys(("pyramid", "attention", "adaptive"), False)},
        ("gradient",),
        {},
        10_000,
    ),
    "unet_baseline": MicroSpec(UNetBaseline),
    "distillation_10k": MicroSpec(DistillationNet, {"width": 42}, LITTLE, {}, 10_000),
    "internal_ensemble": MicroSpec(InternalEnsembleNet, {}, EXPERTS, {}, 10_000),
    "adaptive": MicroSpec(
        AdaptiveNet, {}, ("adaptive",), {name: {"dataset": name} for name in DATASETS}, 10_000
    ),
}


# The name that stands for the net that scored highest on each set (docs/experiments.md).
BY_SET = "by_set"
BEST = {"VOC": "distillation_10k", "ETIS": "distillation_10k", "CFD": "meganet_10k"}
BEST_OF_OTHERS = "twohead_10k"
BEST_RATE, BEST_RATE_OF_OTHERS = {"CFD": 2e-2}, 1e-2  # peak learning rates


def net_of(name: str, dataset: str | None) -> str:
    """Return the net that a name stands for on a data set."""
    return BEST.get(dataset or "", BEST_OF_OTHERS) if name == BY_SET else name


def rate_of(dataset: str) -> float:
    """Return the peak learning rate that scored highest on a data set."""
    return BEST_RATE.get(dataset, BEST_RATE_OF_OTHERS)


def build_micro(
    name: str,
    num_classes: int,
    *,
    dataset: str | None = None,
    drop: tuple[str, ...] = (),
    **overrides: object,
) -> MaskNet:
    """Build a net by name.

    Args:
        name: key of ``MICRO_NETS``, or ``BY_SET``.
        num_classes: K, channels of the logits.
        dataset: "VOC", "ETIS", "CVPPP", "CFD" or "CarDD" switches on that set's options.
        drop: blocks to leave out, from the net's ``blocks``.
        overrides: further arguments of the family.

    Raises:
        UserError: unknown name or block.
    """
    name = net_of(name, dataset)
    if name not in MICRO_NETS:
        known = ", ".join(MICRO_NETS)
        raise UserError(f"the net {name} is unknown{nearest(name, MICRO_NETS)}; there are {known}")
    spec = MICRO_NETS[name]
    for block in drop:
        if block not in spec.blocks:
            raise UserError(
                f"--drop {block}: the net {name} has no such block; it has {', '.join(spec.blocks)}"
            )
    options = {**spec.options, **spec.by_dataset.get(dataset or "", {}), **overrides}
    return spec.build(num_classes, **{**options, **dict.fromkeys(drop, False)})


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
