"""A linear head in closed form: what it says of rows left out is what leaving them out gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from src.models.probe import LOG_SCALES, RIDGES, SMOOTHING, fit_probe


def clusters(rows: int = 60, num_classes: int = 3, width: int = 8, spread: float = 1.0):
    """Return features around one centre a class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(rows) % num_classes
    centres = 2 * torch.randn(num_classes, width, generator=generator)
    noise = spread * torch.randn(rows, width, generator=generator)
    return 5 + 3 * (centres[target] + noise), target


def fitted_without(features, target, row: int, ridge: float):
    """Return the ridge's answer for ``row``, standardised with it and fitted without it."""
    x = features.double()
    x = (x - x.mean(0)) / x.std(0)
    keep = torch.arange(len(x)) != row
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    truth = F.one_hot(target).double()
    truth -= truth.mean(0)
    penalty = ridge * len(x) * torch.eye(design.shape[1]).double()
    penalty[-1, -1] = 0  # the intercept is free
    a = design[keep]
    return design[row] @ torch.linalg.solve(a.T @ a + penalty, a.T @ truth[keep])


def test_left_out_answers_are_those_of_leaving_out() -> None:
    features, target = clusters(spread=4.0)
    probe = fit_probe(features, target, 3)
    losses = []
    for ridge in RIDGES:
        answers = torch.stack([fitted_without(features, target, r, ridge) for r in range(60)])
        for step in range(141):
            log_scale = LOG_SCALES[0] + step * (LOG_SCALES[1] - LOG_SCALES[0]) / 140
            scaled = math.exp(log_scale) * answers
            right = float((answers.argmax(1) == target).double().mean())
            smooth = float(F.cross_entropy(scaled, target, label_smoothing=SMOOTHING))
            losses.append((smooth, float(F.cross_entropy(scaled, target)), right))
    assert probe.log_loss == pytest.approx(min(losses)[1], abs=5e-3)
    assert probe.accuracy == pytest.approx(min(losses)[2])


def test_a_head_that_was_fitted_tells_clusters_apart() -> None:
    features, target = clusters(spread=0.3)
    probe = fit_probe(features, target, 3)
    logits = features @ probe.weight.T + probe.bias
    assert (logits.argmax(1) == target).all()
    assert float(F.cross_entropy(logits, target)) < 0.2
    assert logits.abs().max() < 20  # though no row is wrong
    assert probe.weight.shape == (3, 8) and probe.weight.dtype == torch.float32


def test_features_that_say_nothing_give_a_head_that_says_nothing() -> None:
    features = torch.randn(600, 10, generator=torch.Generator().manual_seed(1))
    target = torch.arange(600) % 3
    probe = fit_probe(features, target, 3)
    assert probe.log_loss == pytest.approx(math.log(3), abs=0.02)
    probs = (features @ probe.weight.T + probe.bias).softmax(1)
    assert probs.max() < 0.6


def test_labels_cost_little_more_than_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(20, 4, generator=generator)
    biases = torch.tensor([0.0, -3.0, -5.0, 3.0])  # frequent and rare labels

    def draw(rows: int):
        x = torch.randn(rows, 20, generator=generator)
        probs = (x @ slopes + biases).sigmoid()
        return 2 * x - 1, torch.bernoulli(probs, generator=generator), probs

    (x, hot, _), (unseen, truth, probs) = draw(600), draw(4000)
    probe = fit_probe(x, hot.long(), 4)
    said = (unseen @ probe.weight.T + probe.bias).sigmoid()
    losses = [
        float(F.binary_cross_entropy(p, truth)) for p in (said, probs, hot.mean(0) + 0 * probs)
    ]
    reached, best, frequencies = losses
    assert reached - best < 0.15 * (frequencies - best)
    assert probe.log_loss == pytest.approx(reached, abs=0.03)
    left_out = -(hot * probe.left_out + (1 - hot) * torch.log1p(-probe.left_out.exp()))
    assert float(left_out.mean()) == pytest.approx(probe.log_loss, abs=1e-4)
    assert torch.allclose(said.mean(0), truth.mean(0), atol=0.03)  # which is no smoothed frequency


def test_labels_of_all_images_and_of_none_are_no_trouble() -> None:
    features, target = clusters(rows=30)
    hot = torch.stack([target == 0, target >= 0, target < 0], 1).long()
    probe = fit_probe(features, hot, 3)
    probs = (features @ probe.weight.T + probe.bias).sigmoid()
    assert probs[:, 1].min() > 0.9 and probs[:, 2].max() < 0.1
    assert probe.log_loss < 0.2 and probe.accuracy > 0.95


def test_constant_features_more_columns_than_rows_and_an_empty_class_are_no_trouble() -> None:
    features, target = clusters(rows=12, width=64)
    features[:, 3] = 7.0
    probe = fit_probe(features, target, 5)
    assert torch.isfinite(probe.weight).all() and probe.weight.shape == (5, 64)
    assert math.isfinite(probe.log_loss)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_probe(torch.full((4, 2), float("nan")), torch.tensor([0, 1, 0, 1]), 2)
    with pytest.raises(ValueError, match="two rows"):
        fit_probe(torch.ones(1, 2), torch.tensor([0]), 2)
