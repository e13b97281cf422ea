"""Grad-CAM heat maps over photographs of OOF rows, by the network that held the row out.

Grad-CAM: the last map's channels, each weighted by the mean gradient of the class's logit over the
map, added up and cut at zero. Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391,
equations 1, 2. Tokens of a transformer are laid out as the map they came from, without class and
register tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from src.config import InferConfig
from src.data.canonical import ImageSource
from src.data.decode import decode_image
from src.ensemble.diagnosis import Diagnosis
from src.models.classifier import Classifier, as_map
from src.pipelines.classification.infer import TrainedFold, load_fold
from src.pipelines.pictures import SIDE, encode_jpeg
from src.runs import Output
from src.script import UserError
from src.tool_config import ReportConfig

MIN_CELLS = 3  # a side: a coarser map tells no place
STRENGTH = 0.55  # of the colours over the photograph


def open_heatmaps(
    config: ReportConfig, output: Output, diagnosis: Diagnosis
) -> Callable[[str, str, int], bytes | None]:
    """Return a function (id, path, class) → JPEG of the photograph with a heat map.

    It returns None for an image that cannot be read and for a network whose last map is too coarse.
    The network is the one of the blend's heaviest model that never saw the row. The class counts
    among the blend's classes; where aliases were merged, the first of its names is explained.
    """
    oof, blend = diagnosis.oof, diagnosis.blend
    shares: dict[str, float] = {}
    for (model, _), weight in zip(blend.members, blend.weights, strict=True):
        shares[model] = shares.get(model, 0.0) + float(weight)
    networks = [m for m in shares if any(r.best.exists() for r in output.finished_runs(m))]
    heaviest = max(networks or shares, key=lambda model: shares[model])
    fold_of = dict(zip(oof.ids.tolist(), oof.folds.tolist(), strict=True))
    infer = InferConfig(
        data_dir=config.data_dir, output_dir=config.output_dir, device=config.device,
        precision=config.precision, num_workers=0,
    )  # fmt: skip

    @lru_cache(maxsize=1)  # costly rows come in any order, but networks are large
    def network(fold: int) -> TrainedFold:
        return load_fold(output.run(heaviest, fold), infer)

    def draw(name: str, path: str, chosen: int) -> bytes | None:
        try:
            trained = network(int(fold_of[name]))
            pixels = ImageSource(Path(), [path], trained.image_size)[0]
            photograph = decode_image(path, short_side=SIDE)
        except UserError:
            return None
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        target = trained.classes.index(oof.classes[chosen])
        heat = grad_cam(trained.model, image.to(trained.runtime.device), target)  # type: ignore[arg-type]
        if min(heat.shape) < MIN_CELLS:
            return None
        return encode_jpeg(lay_over(photograph, heat.cpu().numpy()))

    return draw


def lay_over(photograph: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return RGB (H, W, 3) uint8 with the map (h, w) in [0, 1] over it in colours."""
    height, width = photograph.shape[:2]
    smooth = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    levels = (smooth.clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
    return (photograph * (1 - STRENGTH) + colours * STRENGTH).round().astype(np.uint8)


def grad_cam(model: Classifier, image: Tensor, target: int) -> Tensor:
    """Return the map (h, w) in [0, 1] of class ``target`` in ``image`` (3, H, W) uint8.

    All zero where nothing in the map speaks for the class. The model is set to evaluation mode.
    """
    model.eval()
    with torch.no_grad():
        shown, *earlier = model.forward_features(image[None])
    shown = shown.detach().float().requires_grad_()
    with torch.enable_grad():
        logit = model.classify(model.embed([shown, *earlier]))[0, target]
        (gradient,) = torch.autograd.grad(logit, shown)
    features, weights = (
        as_map(model.backbone, x)[0].permute(1, 2, 0) for x in (shown.detach(), gradient)
    )
    heat = (features @ weights.mean(dim=(0, 1))).clamp_min(0)
    return heat / heat.max().clamp_min(1e-12)
