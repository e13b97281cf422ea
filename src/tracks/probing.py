"""A pretrained classifier and its training images in, a head fitted to its features out.

Fine-tuning from a head of noise first spoils the features that it should build on; from a fitted
head it starts at the score of the frozen net. Kumar et al. 2022, https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from src.data.loader import Loader
from src.engine.interrupt import catch_signals
from src.engine.log import say
from src.engine.predict import predict
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


def pick_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return ``rows``, or an even choice of them where they are many, in their order."""
    if len(rows) <= MAX_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_ROWS])


def fit_head(model: Classifier, loader: Loader, num_classes: int, runtime: Runtime) -> None:
    """Set the head of ``model`` to a linear probe of its features.

    Args:
        model: a classifier with pretrained weights.
        loader: training rows in order, without augmentation.
        num_classes: K.
        runtime: device and precision.

    Raises:
        UserError: a file cannot be decoded.
        Interrupted: a signal asked to stop.
    """
    target = torch.from_numpy(loader.dataset.data.targets)  # type: ignore[attr-defined]
    features = torch.empty(len(target), model.head.in_features)

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        features[batch["index"].cpu()] = outputs[0].cpu()

    with catch_signals() as pause:
        predict(
            runtime.place(model), loader, Embedding(), runtime,
            num_rows=len(target), write=write, pause=pause, label="features",
        )  # fmt: skip
    try:
        probe = fit_probe(features, target, num_classes)
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
