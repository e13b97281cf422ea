"""Mixing of batches in train_fold.py: until when, with which options."""

from __future__ import annotations

import torch

from src.config import FoldConfig
from src.pipelines.classification.train import make_mix

BATCH = {
    "image": torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8),
    "target": torch.tensor([0, 1]),
    "index": torch.tensor([7, 3]),
}


def mixed_epochs(config: FoldConfig, step: int = 0) -> list[int]:
    """Return the epochs whose targets are mixed."""
    mix = make_mix(config, 2)
    assert mix is not None
    found = [mix(BATCH, step, epoch) for epoch in range(config.epochs)]
    assert all(torch.equal(batch["index"], BATCH["index"]) for batch in found)
    return [k for k, batch in enumerate(found) if batch["target"].ndim == 2]


def test_the_last_epochs_are_not_mixed() -> None:
    assert make_mix(FoldConfig(), 2) is None
    for off, epochs in ((0, [0, 1, 2, 3, 4]), (2, [0, 1, 2]), (9, [])):
        config = FoldConfig(epochs=5, mixup_alpha=1.0, mix_off_epochs=off)
        assert mixed_epochs(config) == epochs
    assert mixed_epochs(FoldConfig(epochs=2, cutmix_alpha=1.0, mix_off_epochs=1)) == [0]


def test_probability_and_seed_reach_the_mixing() -> None:
    how = {"epochs": 1, "mix_off_epochs": 0, "mixup_alpha": 1.0}
    never = make_mix(FoldConfig(**how, mix_prob=0.0), 2)
    assert never is not None
    assert torch.equal(never(BATCH, 0, 0)["target"], torch.eye(2))
    targets = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        mix = make_mix(FoldConfig(**how, seed=seed), 2)
        assert mix is not None
        targets.append(mix(BATCH, step, 0)["target"])
    assert not torch.equal(targets[0], targets[1]) and not torch.equal(targets[0], targets[2])
