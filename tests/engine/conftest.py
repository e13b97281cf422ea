"""A task so small that a whole training takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.config import EngineConfig
from src.engine.loop import fit
from src.engine.runtime import start_runtime
from src.losses.classification import build_loss
from src.runs import Run
from src.tasks.classification import Classification

CLASSES, SIDE = 3, 8


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TinyNet(nn.Module):
    """Convolution, BatchNorm and dropout: everything whose state must survive a kill."""

    def __init__(self, drop: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 3)."""
        return self.head(self.drop(self.backbone(image.float() / 128 - 1).mean((2, 3))))


@dataclass
class TinyLoader:
    """Batches as the real loader gives them: a pure function of (epoch, step)."""

    rows: int
    batch_size: int
    shuffle: bool
    dataset: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batch_sampler = self
        self.num_rows = self.rows
        self.epoch = self.step = 0

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def start(self, epoch: int, step: int = 0) -> None:
        """Set where the next iteration begins."""
        self.epoch, self.step = epoch, step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng([1, self.epoch]).permutation(self.rows)
        for step in range(self.step, len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = [
                np.random.default_rng([2, i]).integers(0, 256, (3, SIDE, SIDE)) for i in index
            ]
            target = torch.tensor(index % CLASSES)
            image = torch.tensor(np.stack(images), dtype=torch.uint8)
            image[torch.arange(len(index)), target, :4, :4] = 255  # something to learn
            yield {"image": image, "target": target, "index": torch.tensor(index)}


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Any]:
    """Return ``train(name, **options)``: a whole tiny training in its own folder."""

    def run_training(
        name: str = "run", *, task: Any = None, loader: Any = None, **options: Any
    ) -> tuple[Run, Any]:
        model = options.pop("model", None) or TinyNet()
        valid = options.pop("valid", TinyLoader(12, 5, shuffle=False))
        mix, precision = options.pop("mix", None), options.pop("computed_in", "fp32")
        compiled = options.pop("compiled", False)
        shorten, split_hash = options.pop("shorten", None), options.pop("split_hash", "")
        config = EngineConfig(**({"epochs": 3, "batch_size": 8, "device": "cpu"} | options))
        run = Run(tmp_path / name)
        state = fit(
            model,
            task or Classification(CLASSES, build_loss("cross_entropy")),
            loader or TinyLoader(30, config.batch_size, shuffle=True),
            valid,
            config=config,
            run=run,
            runtime=start_runtime("cpu").with_choice(precision, False, compiled),
            names=[f"id{i}" for i in range(30)],
            mix=mix,
            shorten=shorten,
            split_hash=split_hash,
        )
        return run, state

    return run_training
