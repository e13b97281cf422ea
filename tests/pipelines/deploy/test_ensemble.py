"""The blend as a module: what the arrays' version says, of every pool and of labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.classes import PairedLogits, merge_classes
from src.ensemble.pool import Blend
from src.ensemble.test_predictions import EnsemblePredictor, TestRun
from src.metrics.decisions import Decision
from src.pipelines.deploy import ensemble as module

RNG = np.random.default_rng(0)
VIEWS = ("identity", "hflip")
FOLDS = {"a": 3, "b": 2}  # folds come again where a model has fewer
MEMBERS = (("a", "identity"), ("a", "hflip"), ("b", "identity"), ("b", "hflip"))


def blend_of(pool: str, num_classes: int, floors: tuple[float, float]) -> Blend:
    weights = np.array([0.4, 0.0, 0.35, 0.25]) if pool == "linear" else np.array([0.7, 0, 0.5, 0.2])
    prior = RNG.dirichlet(np.ones(num_classes))
    return Blend(pool, MEMBERS, weights, np.array([1.0, 1.2, 0.8, 1.5]), 0.9, floors, prior)


def both(blend: Blend, classes: tuple[str, ...], groups: Any, labels: tuple[str, ...] = ()) -> Any:
    """Return probabilities of 4 images by arrays, and by the module."""
    num = len(labels) or len(classes)
    logits = {m: RNG.normal(0, 3, (f, 2, 4, num)).astype(np.float32) for m, f in FOLDS.items()}
    decision = Decision("labels", slopes=(1.2,) * len(labels), offsets=(0.3,) * len(labels))
    columns = merge_classes(classes, groups).trained_of
    weights = SimpleNamespace(
        blend=blend, columns=columns, labels=labels,
        contest=SimpleNamespace(decision=decision) if labels else None,
    )  # fmt: skip
    pack = PairedLogits if labels else lambda x: x
    runs = {m: [TestRun(None, pack(fold), VIEWS, classes) for fold in folds]  # type: ignore[arg-type]
            for m, folds in logits.items()}  # fmt: skip
    rows = 4 * max(len(labels), 1)
    log_probs = EnsemblePredictor(runs, blend, columns, rows, 0.85).predict(slice(None)).log_probs
    expected = decision.apply(log_probs).reshape(4, -1) if labels else np.exp(log_probs)
    whole = SimpleNamespace(
        weights=weights, temperature=0.85, folds={m: [0] * f for m, f in FOLDS.items()}
    )
    pool = module.Pool(whole, dict.fromkeys(FOLDS, VIEWS))  # type: ignore[arg-type]
    images = [{m: [torch.from_numpy(fold[:, n]) for fold in folds] for m, folds in logits.items()}
              for n in range(4)]  # fmt: skip
    return expected, torch.cat([pool(image) for image in images]).numpy()


@pytest.mark.parametrize("pool", ["linear", "log"])
@pytest.mark.parametrize("floors", [(0.0, 0.0), (0.01, 0.02)])
@pytest.mark.parametrize("groups", [(), (("k", "l"),)])
def test_the_pool_says_what_the_arrays_say(pool: str, floors: Any, groups: Any) -> None:
    classes = ("k", "l", "m", "n")
    expected, found = both(blend_of(pool, 4 - len(groups), floors), classes, groups)
    assert found.shape == (4, 4 - len(groups)) and expected.max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_labels_are_calibrated_one_by_one(pool: str) -> None:
    expected, found = both(
        blend_of(pool, 2, (0.01, 0.01)), ("absent", "present"), (), ("x", "y", "z")
    )
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_views_are_shown_at_their_size() -> None:
    """A network that tells left from right, and how many pixels it sees."""

    class Left(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left = x[..., : x.shape[-1] // 2].mean((1, 2, 3))
            return torch.stack([left, torch.full_like(left, x.shape[-1])], 1)

    image = torch.zeros(1, 3, 40, 60)
    image[..., 30:] = 100.0
    views = module.Views(Left(), 32, ("identity", "hflip", "identity@1.25"))
    np.testing.assert_allclose(views(image), [[0, 32], [100, 32], [0, 40]], atol=7)


def test_too_much_for_one_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from src.script import UserError

    with pytest.raises(UserError, match=r"neither a run nor an output folder"):
        module.open_ensemble(tmp_path)
