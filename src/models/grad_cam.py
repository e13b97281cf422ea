"""Grad-CAM: where in an image a classifier sees a class.

The last map's channels, each weighted by the mean gradient of the class's logit over the map, added
up and cut at zero. Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1, 2.
Tokens of a transformer are laid out as the map they came from, without class and register tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.models.classifier import Classifier, as_map


def grad_cam(model: Classifier, image: Tensor, target: int) -> Tensor:
    """Return the map (h, w) in [0, 1] of class ``target`` in ``image`` (3, H, W) uint8.

    All zero where nothing in the map speaks for the class. The model is set to evaluation mode.
    """
    model.eval()
    with torch.no_grad():
        shown = model.show(image[None])
    shown = shown.detach().float().requires_grad_()
    with torch.enable_grad():
        logit = model.classify(model.embed(shown))[0, target]
        (gradient,) = torch.autograd.grad(logit, shown)
    features, weights = (
        as_map(model.backbone, x)[0].permute(1, 2, 0) for x in (shown.detach(), gradient)
    )
    heat = (features @ weights.mean(dim=(0, 1))).clamp_min(0)
    return heat / heat.max().clamp_min(1e-12)
