"""A trained net and its training batches in, the same net with BatchNorm measured anew out.

Averaged weights never saw the statistics they are used with: those are an average over nets that
came before. A short run, whose statistics still move at its end, gains most. Izmailov et al. 2018,
https://arxiv.org/abs/1803.05407, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.engine.runtime import Runtime

SMALLEST = 4  # rows of a batch whose statistics say anything


@torch.no_grad()
def renew_norms(model: nn.Module, loader: Any, runtime: Runtime, num_rows: int) -> None:
    """Replace BatchNorm's running statistics by their mean over training batches.

    Args:
        model: with its final weights; left in evaluation mode. Without BatchNorm nothing is done.
        loader: full batches; its ``batch_sampler`` has ``start(epoch)``.
        runtime: device and precision.
        num_rows: rows to see at least; all are seen where there are fewer.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    model = runtime.place(model).eval()
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative mean
        norm.train()  # the norms alone: dropout stays off
    loader.batch_sampler.start(0)
    seen = 0
    for host_batch in loader:
        if len(host_batch["image"]) < SMALLEST and seen:
            continue
        with runtime.autocast(), runtime.eagerly():
            model(runtime.upload(host_batch)["image"])
        seen += len(host_batch["image"])
        if seen >= num_rows:
            break
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    model.eval()
