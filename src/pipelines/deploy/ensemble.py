"""Whole ensemble as one network: all folds, views, weights and temperatures, image → probabilities.

What :mod:`src.ensemble.pool` and :mod:`src.ensemble.test_predictions` do with arrays, as a module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from src.data.canonical import ImageSource, Source
from src.ensemble.pool import TINY
from src.ensemble.weights import needed_views
from src.pipelines.classification.infer import DecodedImages
from src.pipelines.deploy.export import Export, Resize, shrink
from src.pipelines.library import Ensemble, load_ensemble
from src.runs import Output
from src.script import UserError
from src.views import by_scale, scaled_size, view_names

MAX_BYTES = 1_900_000_000  # of weights: a file of protobuf ends at 2 GiB


class Views(nn.Module):
    """One fold's network under its views: image (1, 3, H, W) in [0, 255] → logits (V, K0)."""

    def __init__(self, network: nn.Module, image_size: int, views: Sequence[str]) -> None:
        super().__init__()
        self.network, self.image_size, self.groups = network, image_size, by_scale(views)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of each view."""
        found = []
        for scale, views in self.groups:
            side = scaled_size(self.image_size, scale)
            x = shrink(image, (side, side))
            found.append(self.network(torch.cat([view.apply(x) for view in views])))
        return torch.cat(found)


class Pool(nn.Module):
    """The blend: logits of every fold and view → probabilities (1, K)."""

    merge: Tensor
    constant: Tensor
    weights: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(self, ensemble: Ensemble, views: dict[str, tuple[str, ...]]) -> None:
        """Take what was fitted.

        The networks of ``ensemble`` are not looked at, only their number; ``views`` are by model,
        in the order of the logits' rows.
        """
        super().__init__()
        weights, blend = ensemble.weights, ensemble.weights.blend
        columns = weights.columns
        self.kind, self.temperature = blend.pool, blend.temperature
        self.average = ensemble.temperature
        self.several, self.merges = bool(weights.labels), len(blend.prior) != len(columns)
        members = [blend.members[m] for m in blend.used]
        self.members = [(model, views[model].index(view)) for model, view in members]
        self.own = [float(blend.temperatures[m]) for m in blend.used]
        self.kept = 1.0 - sum(blend.floors)
        self.folds = {model: len(folds) for model, folds in ensemble.folds.items()}
        constant = blend.floors[0] / len(blend.prior) + blend.floors[1] * blend.prior
        decision = weights.contest.decision if weights.contest else None
        arrays = {"merge": np.eye(len(blend.prior))[list(columns)], "constant": constant,
                  "weights": blend.weights[blend.used].reshape(-1, 1, 1)}  # fmt: skip
        if self.several:
            assert decision is not None
            arrays |= {"slopes": np.array(decision.slopes), "offsets": np.array(decision.offsets)}
        for name, array in arrays.items():
            self.register_buffer(name, torch.tensor(np.array(array), dtype=torch.float32))

    def forward(self, logits: dict[str, list[Tensor]]) -> Tensor:
        """Return probabilities of ``logits``: model → its folds' (V, K0)."""
        num_folds = max(self.folds.values())
        pooled = [self.pool_fold(logits, fold) for fold in range(num_folds)]
        mean = torch.stack(pooled).mean(0)
        mean = ((mean - mean.logsumexp(-1, keepdim=True)) / self.average).log_softmax(-1)
        if not self.several:
            return mean.exp()
        return ((mean[:, 1] - mean[:, 0]) * self.slopes + self.offsets).sigmoid()[None]

    def pool_fold(self, logits: dict[str, list[Tensor]], fold: int) -> Tensor:
        """Return log probabilities (R, K) of one fold: R is 1, or the number of labels."""
        found = []
        for (model, row), own in zip(self.members, self.own, strict=True):
            folds = logits[model]
            found.append(self.member(folds[fold % len(folds)][row], own))
        members = torch.stack(found)
        if self.kind == "linear":
            pooled = (members.exp() * self.weights).sum(0).clamp_min(TINY).log()
        else:
            pooled = (members * self.weights).sum(0)
        pooled = (pooled.log_softmax(-1) / self.temperature).log_softmax(-1)
        if self.kept == 1.0:
            return pooled
        return (pooled.exp() * self.kept + self.constant).clamp_min(TINY).log()

    def member(self, logits: Tensor, temperature: float) -> Tensor:
        """Return log probabilities (R, K) of one member's logits (K0,)."""
        rows = logits[None]
        if self.several:
            rows = torch.stack([torch.zeros_like(logits), logits], -1)
        if self.merges:
            rows = (rows.softmax(-1) @ self.merge).clamp_min(TINY).log()
        return (rows / temperature).log_softmax(-1)


class DeployedEnsemble(nn.Module):
    """All networks of a blend: image (1, H, W, 3) uint8 RGB → probabilities (1, K)."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        blend = ensemble.weights.blend
        views = {model: needed_views(blend, model, view_names()) for model in ensemble.folds}
        self.names = [model for model, folds in ensemble.folds.items() for _ in folds]
        self.folds = nn.ModuleList(
            Views(fold.model, fold.image_size, views[model])
            for model, folds in ensemble.folds.items() for fold in folds
        )  # fmt: skip
        self.pool = Pool(ensemble, views)

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities of ``image``."""
        x = image.permute(0, 3, 1, 2).float()
        logits: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for name, fold in zip(self.names, self.folds, strict=True):
            logits[name].append(fold(x))
        return self.pool(logits)


class GivenImages(DecodedImages):
    """Images (H, W, 3) uint8 in memory, as the ensemble reads them from disk."""

    def __init__(self, images: Sequence[np.ndarray], resize: Resize) -> None:
        super().__init__(Path(), [f"image {n}" for n in range(len(images))])
        self.arrays, self.resize = images, resize

    def at(self, side: int) -> Source:
        """Return the source of (side, side, 3) uint8 pixels."""
        return GivenAt(self, side)


class GivenAt(ImageSource):
    """Images squashed to one square."""

    def __init__(self, given: GivenImages, side: int) -> None:
        super().__init__("", given.images, side)
        self.given, self.side = given, side

    def __getitem__(self, row: int) -> np.ndarray:
        return self.given.resize(self.given.arrays[row], (self.side, self.side))


def open_ensemble(folder: Path) -> Export:
    """Load the blend below an output folder for export, on the CPU in float32.

    Raises:
        UserError: no blend, a fold that is missing, or more weights than one file holds.
    """
    if not Output(folder).weights.exists():
        raise UserError(f"{folder}: neither a run nor an output folder with weights.json")
    ensemble = load_ensemble(folder, device="cpu", precision="fp32")
    serial = {model: [replace(fold, num_workers=0) for fold in folds]
              for model, folds in ensemble.folds.items()}  # fmt: skip
    ensemble = replace(ensemble, folds=serial)
    module = DeployedEnsemble(ensemble).eval()
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    if size > MAX_BYTES:
        raise UserError(
            f"{folder}: {size / 1e9:.1f} GB of weights, one ONNX file holds less than 2: export "
            "single runs, or run optimize_weights.py with fewer --models"
        )
    weights = ensemble.weights
    members = [f"{m} {v}" for m, v in (weights.blend.members[n] for n in weights.blend.used)]
    return Export(
        module,
        {"run": folder.as_posix(), "layout": "image (1, H, W, 3) uint8 RGB",
         "resize": "bilinear, antialiased, inside the graph", "classes": list(ensemble.classes),
         "probs": "(1, K)", "task": "labels" if weights.labels else "classes",
         "members": members, "weights": weights.blend.weights[weights.blend.used].tolist()},
        expected=lambda images, resize: ensemble.predict_decoded(
            GivenImages(images, resize), np.float32
        ),
        side=max(fold.image_size for folds in ensemble.folds.values() for fold in folds),
    )  # fmt: skip
