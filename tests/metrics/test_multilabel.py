"""Metrics of several labels an image: by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from src.metrics.contest import (
    binary_log_loss,
    find_metric,
    mean_label_auc,
    mean_label_precision,
    samples_f1,
)
from src.script import UserError


def test_by_hand() -> None:
    targets = np.array([[1, 0], [0, 1]])
    probs = np.array([[0.5, 0.25], [0.5, 0.75]])
    assert binary_log_loss(probs, targets) == pytest.approx(-np.log([0.5, 0.75]).mean())
    assert mean_label_auc(probs, targets) == pytest.approx((0.5 + 1.0) / 2)
    assert mean_label_precision(probs, targets) == pytest.approx((0.5 + 1.0) / 2)
    assert binary_log_loss(np.array([[0.0]]), np.array([[1]])) == pytest.approx(-np.log(1e-15))


def test_f1_of_images_by_hand() -> None:
    targets = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    marks = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert samples_f1(marks, targets) == pytest.approx((0.5 + 1 + 0 + 0) / 4)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((400, 5)) < [0.02, 0.2, 0.5, 0.7, 0.95]).astype(np.int64)
    probs = np.clip(np.round(targets * 0.3 + rng.random((400, 5)) * 0.7, 2), 0.01, 0.99)  # ties
    marks = (probs > 0.5).astype(np.int64)
    assert mean_label_auc(probs, targets) == pytest.approx(metrics.roc_auc_score(targets, probs))
    precision = metrics.average_precision_score(targets, probs)
    assert mean_label_precision(probs, targets) == pytest.approx(precision)
    f1 = metrics.f1_score(targets, marks, average="samples", zero_division=1.0)
    assert samples_f1(marks, targets) == pytest.approx(f1)
    each = [metrics.log_loss(targets[:, k], probs[:, k]) for k in range(5)]
    assert binary_log_loss(probs, targets) == pytest.approx(np.mean(each))


def test_labels_without_a_curve_are_left_out() -> None:
    targets = np.array([[1, 0, 1], [1, 0, 0]])
    probs = np.array([[0.5, 0.1, 0.9], [0.4, 0.2, 0.1]])
    assert mean_label_auc(probs, targets) == 1.0
    assert mean_label_precision(probs, targets) == 1.0  # of the first and the last
    assert np.isnan(mean_label_auc(probs[:, 1:2], targets[:, 1:2]))


def test_metrics_see_pairs_image_by_image() -> None:
    rng = np.random.default_rng(1)
    targets, probs = rng.integers(0, 2, (30, 3)), rng.random((30, 3))
    found = find_metric("mean_auc", ("a", "b", "c"), several=True)
    assert found.measure(probs.ravel(), targets.ravel()) == mean_label_auc(probs, targets)
    assert found.num_labels == found.unit == 3 and found.greater_is_better
    loss = find_metric("log_loss", ("a", "b", "c"), several=True)
    assert not loss.greater_is_better and loss.loss(probs.ravel(), targets.ravel()) > 0


def test_metrics_of_the_other_kind_are_refused() -> None:
    for name in ("accuracy", "qwk", "map@3", "auc", "rmse"):
        with pytest.raises(UserError, match=r"one of log_loss, mean_auc, map, f1_samples$"):
            find_metric(name, ("a", "b"), several=True)
