from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest

from src.metrics.contest import find_metric, quadratic_weighted_kappa
from src.metrics.decisions import (
    Decision,
    expected_grade,
    fit_cuts,
    fit_decision,
    plain_decision,
    read_decision,
)


def test_rules_by_hand() -> None:
    log_probs = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=np.float32))
    assert Decision("argmax").apply(log_probs).tolist() == [0, 2]
    assert Decision("none", top=2).apply(log_probs)[0].tolist() == [0, 1]
    np.testing.assert_allclose(Decision("none").apply(log_probs), np.exp(log_probs), rtol=1e-6)
    # .6 / .8 = .75, .3 / .1 = 3, .1 / .1 = 1
    prior = Decision("prior", strength=1.0, prior=(0.8, 0.1, 0.1))
    assert prior.apply(log_probs).tolist() == [1, 2]
    assert Decision("prior", strength=0.0, prior=(0.8, 0.1, 0.1)).apply(log_probs)[0] == 0
    # grades from low to high are classes 2, 0, 1: .6 · 1 + .3 · 2 = 1.2; .2 · 1 + .2 · 2 = .6
    assert expected_grade(log_probs, (2, 0, 1)) == pytest.approx([1.2, 0.6])
    cuts = Decision("cuts", cuts=(0.7, 1.1), order=(2, 0, 1))
    assert cuts.apply(log_probs).tolist() == [1, 2]


def test_every_decision_survives_its_file() -> None:
    for decision in (
        Decision("argmax"),
        Decision("prior", strength=0.25, prior=(0.5, 0.5)),
        Decision("cuts", cuts=(0.1, 1 / 3), order=(2, 0, 1)),
        Decision("none", top=3),
    ):
        assert read_decision(json.loads(json.dumps(asdict(decision)))) == decision


def test_prior_correction_is_what_balanced_accuracy_asks_for() -> None:
    rng = np.random.default_rng(0)
    prior = np.array([0.9, 0.08, 0.02])
    targets = rng.choice(3, 4000, p=prior)
    # Gaussian classes: the posterior is known
    x = rng.standard_normal((4000, 3)) + 1.5 * np.eye(3)[targets]
    logits = 1.5 * x + np.log(prior)
    log_probs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    metric = find_metric("balanced_accuracy", "abc")
    found = fit_decision(metric, log_probs, targets)
    assert found.strength in (0.75, 1.0, 1.25)
    gain = metric.measure(found.apply(log_probs), targets) - metric.measure(
        log_probs.argmax(1), targets
    )
    assert gain > 0.1
    macro = find_metric("macro_f1", "abc")
    assert fit_decision(macro, log_probs, targets).strength < 1.0
    assert plain_decision(macro, targets, 3).strength == 0.0


def test_cuts_are_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    targets = rng.choice(3, 40, p=[0.6, 0.3, 0.1])
    grade = np.clip(0.3 * targets + 0.3 + 0.25 * rng.standard_normal(40), 0, 2)
    cuts = fit_cuts(grade, targets, 3)

    def kappa(pair) -> float:
        return quadratic_weighted_kappa(np.searchsorted(np.array(pair), grade), targets)

    values = np.sort(grade)
    places = np.r_[(values[1:] + values[:-1]) / 2, 0.5, 1.5]
    best = max(kappa(sorted(pair)) for pair in itertools.combinations(places, 2))
    assert kappa(cuts) > kappa((0.5, 1.5)) + 0.1
    assert kappa(cuts) == pytest.approx(best, abs=0.02)
    assert sorted(cuts) == list(cuts)


def test_good_cuts_stay() -> None:
    targets = np.repeat([0, 1, 2], 10)
    assert fit_cuts(targets.astype(float), targets, 3) == (0.5, 1.5)


def test_a_grade_that_never_occurs() -> None:
    targets = np.repeat([0, 3], 10)
    cuts = fit_cuts(np.where(targets > 0, 2.6, 0.4), targets, 4)
    labels = np.searchsorted(np.array(cuts), np.where(targets > 0, 2.6, 0.4))
    assert labels.tolist() == targets.tolist()


def test_the_meter_scores_by_the_metric() -> None:
    from src.tasks.classification import Classification

    rng = np.random.default_rng(0)
    targets = rng.choice(3, 300, p=[0.8, 0.15, 0.05])
    logits = 1.5 * (rng.standard_normal((300, 3)) + 1.5 * np.eye(3)[targets])
    logits = (logits + np.log([0.8, 0.15, 0.05])).astype(np.float32)
    for name, shown in (("accuracy", "accuracy"), ("qwk", "qwk"), ("balanced_accuracy", "")):
        metric = find_metric(name, ("1", "2", "3"))
        task = Classification(3, lambda logits, target: logits.sum(), metric)
        assert task.monitor == name and not task.lower_is_better
        meter = task.meter()
        meter.update(logits, {"target": targets})
        scores = meter.compute()
        if shown == "accuracy":
            assert scores[name] == np.mean(logits.argmax(1) == targets)
        elif shown == "qwk":
            assert scores[name] > 0.3
        else:  # divided by the class frequencies: better than argmax
            assert scores[name] > np.mean([np.mean(logits.argmax(1)[targets == k] == k)
                                           for k in range(3)])  # fmt: skip
    plain = Classification(3, lambda logits, target: logits.sum())
    assert plain.monitor == "calibrated_log_loss" and plain.lower_is_better
    meter = plain.meter()
    meter.update(logits, {"target": targets})
    assert set(meter.compute()) == {
        "log_loss", "calibrated_log_loss", "temperature", "accuracy", "macro_f1"
    }  # fmt: skip
