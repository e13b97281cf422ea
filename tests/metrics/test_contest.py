from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from src.metrics.contest import (
    balanced_accuracy,
    find_metric,
    grade_order,
    mean_auc,
    mean_average_precision,
    quadratic_weighted_kappa,
)
from src.script import UserError

GRADES = ("0", "1", "2", "3")


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    targets = rng.choice(4, 200, p=[0.5, 0.3, 0.15, 0.05])
    probs = rng.dirichlet(np.ones(4), 200) + 0.4 * np.eye(4)[targets]
    return probs / probs.sum(axis=1, keepdims=True), targets


def test_values_by_hand() -> None:
    targets = np.array([0, 0, 0, 1])
    labels = np.array([0, 0, 1, 1])
    assert find_metric("accuracy", "ab").measure(labels, targets) == 0.75
    assert find_metric("micro_f1", "ab").measure(labels, targets) == 0.75
    assert balanced_accuracy(labels, targets) == pytest.approx((2 / 3 + 1) / 2)
    # F1 of a: 2·2 / (3 + 2); of b: 2·1 / (1 + 2)
    f1 = find_metric("macro_f1", "ab").measure(labels, targets)
    assert f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    # one disagreement of 1 in 4 rows; by chance (1/2 · 1/4 + 1/2 · 3/4) = 1/2
    assert quadratic_weighted_kappa(labels, targets) == pytest.approx(1 - 0.25 / 0.5)
    # positives .9 and .4, negatives .4 and .1: three pairs of four right, and a half
    probs = np.array([0.9, 0.4, 0.4, 0.1])
    two = np.stack([1 - probs, probs], axis=1)
    assert mean_auc(two, np.array([1, 1, 0, 0])) == pytest.approx(3.5 / 4)
    top = np.array([[0, 1], [1, 0], [2, 1]])
    assert mean_average_precision(top, np.array([0, 0, 0])) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_kappa_of_one_grade_everywhere() -> None:
    same = np.zeros(5, dtype=int)
    assert quadratic_weighted_kappa(same, same) == 1.0
    assert abs(quadratic_weighted_kappa(same, np.array([0, 1, 0, 1, 0]))) < 1e-12


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("accuracy", reference.accuracy_score),
        ("balanced_accuracy", reference.balanced_accuracy_score),
        ("macro_f1", lambda t, p: reference.f1_score(t, p, average="macro")),
        ("micro_f1", lambda t, p: reference.f1_score(t, p, average="micro")),
        ("qwk", lambda t, p: reference.cohen_kappa_score(t, p, weights="quadratic")),
    ],
)
def test_labels_score_as_in_scikit_learn(rows, name, theirs) -> None:
    probs, targets = rows
    labels = probs.argmax(axis=1)
    assert find_metric(name, GRADES).measure(labels, targets) == pytest.approx(
        theirs(targets, labels)
    )


def test_probabilities_score_as_in_scikit_learn(rows) -> None:
    probs, targets = rows
    theirs = reference.roc_auc_score(targets, probs, multi_class="ovr")
    assert find_metric("auc", GRADES).measure(probs, targets) == pytest.approx(theirs)
    coarse = np.round(probs, 1)  # ties
    coarse = coarse / coarse.sum(axis=1, keepdims=True)
    theirs = reference.roc_auc_score(targets, coarse, multi_class="ovr")
    assert mean_auc(coarse, targets) == pytest.approx(theirs)
    binary = (targets > 0).astype(int)
    two = np.stack([1 - probs[:, 1], probs[:, 1]], axis=1)
    assert mean_auc(two, binary) == pytest.approx(reference.roc_auc_score(binary, two[:, 1]))
    lists = np.argsort(-probs, axis=1)[:, :3]
    theirs = reference.label_ranking_average_precision_score(np.eye(4)[targets], probs)
    assert mean_average_precision(np.argsort(-probs, axis=1), targets) == pytest.approx(theirs)
    assert find_metric("map@3", GRADES).measure(lists, targets) <= theirs


def test_a_class_without_rows_has_no_curve(rows) -> None:
    probs, targets = rows
    seen = targets < 3
    assert mean_auc(probs[seen], targets[seen]) == pytest.approx(
        np.mean([reference.roc_auc_score(targets[seen] == k, probs[seen, k]) for k in range(3)])
    )


def test_order_of_grades() -> None:
    assert grade_order(("1", "10", "2")) == (0, 2, 1)
    assert grade_order(("high", "low", "mid"), ("low", "mid", "high")) == (1, 2, 0)
    metric = find_metric("qwk", ("high", "low", "mid"), ("low", "mid", "high"))
    # grades 0 1 2 told as 0 1 1: one step of disagreement
    labels, targets = np.array([1, 2, 2]), np.array([1, 2, 0])
    theirs = reference.cohen_kappa_score([0, 1, 2], [0, 1, 1], weights="quadratic")
    assert metric.measure(labels, targets) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("ordinal", "message"),
    [
        ((), "--ordinal"),
        (("low", "high"), "'mid'"),
        (("low", "mid", "hi"), "'hi'"),
        (("low", "low", "mid", "high"), "'low'"),
    ],
)
def test_order_that_is_none(ordinal, message) -> None:
    with pytest.raises(UserError, match=message):
        find_metric("qwk", ("high", "low", "mid"), ordinal)
    for name in ("accuracy", "log_loss") if ordinal else ():
        with pytest.raises(UserError, match=message):
            find_metric(name, ("high", "low", "mid"), ordinal)


def test_unknown_metric() -> None:
    with pytest.raises(UserError, match="balanced_accuracy"):
        find_metric("acuracy", GRADES)


def test_an_order_is_proposed_as_a_shell_takes_it() -> None:
    with pytest.raises(UserError, match=r"put into that order: --ordinal 'stage 1' 'stage 2' x$"):
        grade_order(("stage 1", "stage 2", "x"))
