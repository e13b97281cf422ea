"""A classifier of columns: it finds signal of any kind, and says nothing where there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from src.models.tabular import TabularModel, fit_tabular

PARTS = np.arange(600) % 3


def fit(target: np.ndarray, num_classes: int = 2, **columns: object) -> TabularModel:
    rows = pd.DataFrame(columns)
    words = [name for name in rows if name.startswith("word")]
    numbers = [name for name in rows if name not in words]
    return fit_tabular(rows, target, num_classes, PARTS, numbers=numbers, words=words)


def test_a_category_is_worth_what_it_says_of_the_class() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 600)
    word = np.where(np.arange(600) % 10 > 0, target, 1 - target)  # right nine times of ten
    model = fit(target, word=np.array(["left", "right"], object)[word])
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert model.log_loss == pytest.approx(entropy, abs=0.05)
    assert model.base == pytest.approx(np.log(2), abs=0.01)
    new = pd.DataFrame({"word": np.array(["right", "left", np.nan, "never seen"], object)})
    probs = model.predict(new)
    assert probs.shape == (4, 2) and np.allclose(probs.sum(axis=1), 1)
    assert probs[0, 1] == pytest.approx(0.9, abs=0.05)
    assert probs[1, 1] == pytest.approx(0.1, abs=0.05)
    assert (probs[2:] > 0.1).all() and (probs[2:] < 0.9).all()  # it does not know


def test_an_interaction_is_for_trees_and_a_slope_for_the_regression() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 600))
    crossed = fit(((a > 0) ^ (b > 0)).astype(int), a=a, b=b)
    assert crossed.kind.startswith("boosting") and crossed.log_loss < 0.3
    sloped = fit((rng.random(600) < 1 / (1 + np.exp(-2 * a))).astype(int), a=a, b=b)
    assert sloped.kind.startswith("logistic") and sloped.log_loss < 0.5


def test_the_regression_goes_no_further_than_what_it_has_seen() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 600))
    model = fit((rng.random(600) < 1 / (1 + np.exp(-2 * a))).astype(int), a=a, b=b)
    assert model.kind.startswith("logistic")
    seen = pd.DataFrame({"a": [0.5, 0.5], "b": [b.max(), b.min()]})
    far = pd.DataFrame({"a": [0.5, 0.5], "b": [1e6, -1e6]})  # as of a network on another scale
    np.testing.assert_allclose(model.predict(far), model.predict(seen), atol=1e-9)


def test_what_is_missing_can_be_what_tells() -> None:
    target = np.arange(600) // 3 % 2
    age = np.where(target == 1, np.nan, 30.0)
    age[::7] = 40.0
    model = fit(target, age=age)
    assert model.log_loss < 0.45
    found = model.predict(pd.DataFrame({"age": [np.nan, 30.0]}))
    assert found[0, 1] > 0.9 > 0.1 > found[1, 1]


def test_noise_says_the_frequencies() -> None:
    rng = np.random.default_rng(2)
    target = rng.choice(3, 600, p=[0.5, 0.3, 0.2])
    words = np.array(list("abcde"), object)[rng.integers(0, 5, 600)]
    model = fit(target, 3, x=rng.normal(size=600), y=rng.normal(size=600), word=words)
    assert model.base - model.log_loss < 0.005
    new = pd.DataFrame({"x": rng.normal(size=50), "y": rng.normal(size=50), "word": words[:50]})
    shares = np.bincount(target, minlength=3) / 600
    assert np.abs(model.predict(new) - shares).max() < 0.08


def test_a_class_without_rows_and_a_single_class_are_no_trouble() -> None:
    x = np.linspace(0, 1, 600)
    probs = fit((x > 0.5).astype(int), 4, x=x).predict(pd.DataFrame({"x": [0.1, 0.9]}))
    assert probs.shape == (2, 4) and (probs > 0).all() and probs[:, 2:].max() < 1e-3
    alone = fit(np.ones(600, int), 2, x=x)
    assert alone.kind == "class frequencies"
    assert alone.predict(pd.DataFrame({"x": [0.3]}))[0, 1] > 0.99
