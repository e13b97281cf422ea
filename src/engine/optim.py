"""Parameter groups, optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from src.config import EngineConfig
from src.script import UserError

# Above this AdamW destroys pretrained features; every published recipe stays an order below.
ADAMW_BACKBONE_LIMIT = 2e-3


def group_parameters(
    model: nn.Module, *, weight_decay: float, layer_decay: float, head_lr_mult: float
) -> list[dict]:
    """Return parameter groups with ``lr_scale``; norms, biases and GeM's p do not decay.

    Everything below ``model.backbone`` is backbone, the rest is head. A model without a backbone
    is one plain pair of groups.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return [
            group | {"lr_scale": 1.0} for group in param_groups_weight_decay(model, weight_decay)
        ]
    keep = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
    if layer_decay < 1 and hasattr(backbone, "group_matcher"):
        groups = param_groups_layer_decay(
            backbone, weight_decay, no_weight_decay_list=keep, layer_decay=layer_decay
        )
    else:
        groups = param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=keep)
    below = {id(p) for p in backbone.parameters()}
    head = [p for p in model.parameters() if p.requires_grad and id(p) not in below]
    for decay, params in (
        (weight_decay, [p for p in head if p.ndim > 1]),
        (0.0, [p for p in head if p.ndim <= 1]),
    ):
        if params:
            groups.append({"params": params, "weight_decay": decay, "lr_scale": head_lr_mult})
    return [{"lr_scale": 1.0} | group for group in groups]


def build_optimizer(
    name: str, groups: list[dict], lr: float, beta2: float = 0.999, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return AdamW or Nesterov SGD over ``groups``.

    ``groups`` come from :func:`group_parameters`; ``lr`` is the peak rate. ``fused`` is one kernel
    for all parameters, which also leaves out a step whose flag ``found_inf`` is set.

    Raises:
        UserError: an AdamW rate that belongs to SGD (a head alone may learn faster).
    """
    if name == "adamw":
        if lr > ADAMW_BACKBONE_LIMIT and len(groups) > 2:
            raise UserError(
                f"--lr {lr:g} is an SGD rate: AdamW takes 2e-5 to 3e-4 on a pretrained backbone, "
                f"{ADAMW_BACKBONE_LIMIT:g} at most on a random one; lower it or pass --optimizer "
                "sgd"
            )
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=fused)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused)
    for group in optimizer.param_groups:
        for p in group["params"]:  # torch leaves its own unwritten where the first step is skipped
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write ``lr`` × ``lr_scale`` into every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def warm_restarts(epoch: float, lr: float, lr_min: float, first: int, mult: int) -> float:
    """Return the rate of SGDR at a fractional epoch (Loshchilov & Hutter 2017, eq. 5)."""
    if mult == 1:
        cycle, start = first, epoch // first * first
    else:
        # cycle i starts at first · (mult^i − 1) / (mult − 1)
        i = int(math.log(epoch / first * (mult - 1) + 1, mult) + 1e-9)
        cycle, start = first * mult**i, first * (mult**i - 1) / (mult - 1)
    return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * (epoch - start) / cycle))


def learning_rate(step: int, config: EngineConfig, steps_per_epoch: int, epochs: int) -> float:
    """Return the rate of optimizer step ``step`` (from 0) of a run of ``epochs``.

    All but ``warm_restarts`` rise linearly over the warm-up; ``cosine`` and ``poly`` reach
    ``lr_min`` at the last step.
    """
    lr, lr_min = config.lr, config.lr_min
    if config.schedule == "warm_restarts":
        epoch = step / steps_per_epoch
        return warm_restarts(epoch, lr, lr_min, config.restart_epochs, config.restart_mult)
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return lr_min + (lr - lr_min) * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return lr
    done = (step - warmup) / max(1, total - 1 - warmup)
    if config.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * done))
    else:
        fall = (1 - done) ** config.poly_power
    return lr_min + (lr - lr_min) * fall


def averaging_decay(ema_decay: float, ema_share: float, num_steps: int) -> float:
    """Return the decay of the averaged weights.

    With ``ema_share`` the mean age of what is averaged is that of an equal-weight average over the
    last n = ``ema_share`` × ``num_steps`` steps: d / (1 − d) = (n − 1) / 2.
    """
    if not ema_share:
        return ema_decay
    span = max(1, round(ema_share * num_steps))
    return (span - 1) / (span + 1)


def ends_mid_cycle(epochs: int, first: int, mult: int) -> int | None:
    """Return the last epoch count ≤ ``epochs`` that ends an SGDR cycle, None if ``epochs`` does.

    0 means that not even the first cycle ends.
    """
    end, cycle, last = first, first, 0
    while end <= epochs:
        last, cycle = end, cycle * mult
        end += cycle
    return None if last == epochs else last
