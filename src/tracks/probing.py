"""A pretrained classifier and its training images in, a head fitted to its features out.

Fine-tuning from a head of noise first spoils the features that it should build on; from a fitted
head it starts at the score of the frozen net. Kumar et al. 2022, https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from src.config import EngineConfig
from src.data.cache import Rows
from src.data.dataset import ImageDataset
from src.data.loader import EpochSampler, Loader, make_loader
from src.data.transforms import eval_transform
from src.engine.interrupt import catch_signals
from src.engine.log import say
from src.engine.predict import default_batch_size, predict
from src.engine.runtime import Runtime
from src.models.classifier import Classifier
from src.models.probe import fit_probe

MAX_ROWS = 16_384  # more images than that change a starting point little


@dataclass(frozen=True)
class Embedding:
    """A task whose prediction is what the head sees."""

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return (B, D)."""
        assert isinstance(model, Classifier)
        return model.embed(model.show(batch["image"]))


def fit_head(
    model: Classifier,
    train: Loader,
    num_classes: int,
    side: int,
    runtime: Runtime,
    config: EngineConfig,
) -> None:
    """Set the head of ``model`` to a linear probe of its features.

    Args:
        model: a classifier with pretrained weights.
        train: loader of the training rows; they are shown once more, without augmentation.
        num_classes: K.
        side: of the square the net sees, px.
        runtime: device and precision.
        config: seed, workers, rows at once.

    Raises:
        UserError: a file cannot be decoded.
        Interrupted: a signal asked to stop.
    """
    data: Any = train.dataset.data  # type: ignore[attr-defined]
    rows = np.arange(len(data))
    if len(rows) > MAX_ROWS:
        rows = np.sort(np.random.default_rng(config.seed).permutation(rows)[:MAX_ROWS])
    batch_size = config.infer_batch_size or default_batch_size(side, runtime.device)
    loader = make_loader(
        ImageDataset(Rows(data.source, rows), None, eval_transform(side)),
        EpochSampler(len(rows), batch_size),
        num_workers=train.num_workers,
        device_type=runtime.device.type,
    )
    features = torch.empty(len(rows), model.head.in_features)

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        features[batch["index"].cpu()] = outputs[0].cpu()

    with catch_signals() as pause:
        predict(
            runtime.place(model), loader, Embedding(), runtime,
            num_rows=len(rows), write=write, pause=pause, label="features",
        )  # fmt: skip
    try:
        probe = fit_probe(features, torch.from_numpy(data.targets[rows]), num_classes)
    except ValueError as error:
        say(runtime, f"warning: no linear head to start from: {error}")
        return
    with torch.no_grad():
        model.head.weight.copy_(probe.weight)
        model.head.bias.copy_(probe.bias)
    say(
        runtime,
        f"the frozen net with a linear head: log loss {probe.log_loss:.4f}, accuracy "
        f"{probe.accuracy:.4f} (leave-one-out); training starts there",
    )
