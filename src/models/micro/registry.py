"""Registry of micro nets: every family with its sizes, and the blocks that can be dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from src.models.micro.adaptive import DATASETS, AdaptiveNet
from src.models.micro.distilled import DistillationNet
from src.models.micro.experts import InternalEnsembleNet
from src.models.micro.hwnet import HWNet
from src.models.micro.lcnet import LCNet
from src.models.micro.meganet import MegaNetV1
from src.models.micro.micronet import MicroNet
from src.models.micro.mininet import MiniNet
from src.models.micro.twohead import TwoHeadUNet
from src.models.micro.unet import MicroUNet, UNetBaseline
from src.models.segmenter import MaskNet
from src.script import UserError

# Parameters are counted with VOC's head, the largest of the five sets.
BUDGET_CLASSES = 21


@dataclass(frozen=True, kw_only=True)
class MicroSpec:
    """One named net.

    Attributes:
        build: family.
        options: arguments of its size.
        blocks: boolean arguments an ablation may turn off.
        by_dataset: arguments that change with the data set.
        max_params: trainable parameters it promises to keep below, with ``BUDGET_CLASSES``.
    """

    build: Callable[..., MaskNet]
    options: Mapping[str, object] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    by_dataset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    max_params: int | None = None


_MEGA_BLOCKS = ("pyramid", "attention", "gradient", "adaptive")

MICRO_NETS: dict[str, MicroSpec] = {
    "twohead_10k": MicroSpec(build=TwoHeadUNet, blocks=("stride2", "stride1"), max_params=10_000),
    "twohead_8k": MicroSpec(
        build=TwoHeadUNet,
        options={"widths": (10, 18, 24, 32)},
        blocks=("stride2", "stride1"),
        max_params=8_000,
    ),
    "micro_unet": MicroSpec(
        build=MicroUNet,
        blocks=("multi_dilation",),
        by_dataset={"ETIS": {"gradient": True}, "CFD": {"directional": True}},
        max_params=10_000,
    ),
    "hwnet": MicroSpec(
        build=HWNet, options={"widths": (16, 30, 44)}, blocks=("attention", "pyramid")
    ),
    "hwnet_ultra": MicroSpec(
        build=HWNet,
        options={"widths": (12, 20, 28), "depth": 2},
        blocks=("attention", "pyramid"),
        max_params=10_000,
    ),
    "lcnet": MicroSpec(
        build=LCNet,
        blocks=("image_level",),
        by_dataset={"CFD": {"directional": True}},
        max_params=10_000,
    ),
    "micronet": MicroSpec(
        build=MicroNet,
        blocks=("attention",),
        by_dataset={"VOC": {"pyramid": True, "width": 32}},
        max_params=10_000,
    ),
    "mininet_v2": MicroSpec(build=MiniNet, blocks=("detail",)),
    "mininet_v3": MicroSpec(
        build=MiniNet,
        options={"widths": (12, 28, 42), "middle": 2, "dilations": (2, 4, 8)},
        blocks=("detail",),
    ),
    "meganet_v1": MicroSpec(build=MegaNetV1, blocks=_MEGA_BLOCKS),
    "meganet_100k": MicroSpec(
        build=MegaNetV1, options={"widths": (12, 24, 44, 64, 88)}, blocks=_MEGA_BLOCKS
    ),
    "meganet_30k": MicroSpec(
        build=MegaNetV1, options={"widths": (8, 14, 24, 32, 44)}, blocks=_MEGA_BLOCKS
    ),
    "unet_baseline": MicroSpec(build=UNetBaseline),
    "distillation_10k": MicroSpec(
        build=DistillationNet,
        options={"width": 42},
        blocks=("pyramid", "attention", "adaptive", "gradient"),
        max_params=10_000,
    ),
    "internal_ensemble": MicroSpec(
        build=InternalEnsembleNet, blocks=("edge", "region", "scale"), max_params=10_000
    ),
    "adaptive": MicroSpec(
        build=AdaptiveNet,
        blocks=("adaptive",),
        by_dataset={name: {"dataset": name} for name in DATASETS},
        max_params=10_000,
    ),
}


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
        name: key of ``MICRO_NETS``.
        num_classes: K, channels of the logits.
        dataset: "VOC", "ETIS", "CVPPP", "CFD" or "CarDD" switches on that set's options.
        drop: blocks to leave out, from the net's ``blocks``.
        overrides: further arguments of the family.

    Raises:
        UserError: unknown name or block.
    """
    if name not in MICRO_NETS:
        near = get_close_matches(name, MICRO_NETS, 1) or list(MICRO_NETS)
        raise UserError(f"--model {name} is unknown; did you mean {', '.join(near)}?")
    spec = MICRO_NETS[name]
    for block in drop:
        if block not in spec.blocks:
            raise UserError(
                f"--model {name} has no block {block} to drop; it has {', '.join(spec.blocks)}"
            )
    options = {**spec.options, **spec.by_dataset.get(dataset or "", {}), **overrides}
    return spec.build(num_classes, **{**options, **dict.fromkeys(drop, False)})
