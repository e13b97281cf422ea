"""A tabular member's fold is fitted to the rows outside it, and to nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from src.classes import merge_classes
from src.data.folds import Folds
from src.data.index import Index, make_columns
from src.pipelines.classification.tabular import Inputs, fit_one, predict
from src.pipelines.classification.train import ClassData

NUM = 120
FOLD = np.arange(NUM) % 3


def fitted(age: np.ndarray, site: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return what the model of fold 0 predicts of four new rows."""
    ids = [f"{row:03d}" for row in range(NUM)]
    groups = [f"g{row // 2}" for row in range(NUM)]
    columns = make_columns(ids, ids, [f"c{t}" for t in targets], groups, split="train")
    folds = Folds(columns | {"content": ids}, FOLD, 3, "", "")
    classes = ("c0", "c1")
    data = ClassData(Index(Path(), columns, classes), folds, merge_classes(classes, ()), 0)
    train = pd.DataFrame({"age": age, "site": site})
    inputs = Inputs(("age",), ("site",), train, {}, "")
    rows = np.flatnonzero(FOLD != 0)
    model = fit_one(inputs, data, rows, targets[rows], 0)
    new = pd.DataFrame({"age": [1.0, 5.0, np.nan, 3.0], "site": ["a", "b", "c", "only held out"]})
    return predict([model], new, data)


def test_nothing_of_the_fold_reaches_its_model() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, NUM)
    age = targets * 3 + rng.normal(size=NUM)
    site = np.array(list("abc"), object)[rng.integers(0, 3, NUM)]
    plain = fitted(age, site, targets)
    assert abs(plain[0, 0] - plain[1, 0]) > 1  # it has learned something
    spoilt_age, spoilt_site, spoilt = age.copy(), site.copy(), targets.copy()
    spoilt_age[FOLD == 0] = 1e6
    spoilt_site[FOLD == 0] = "only held out"
    spoilt[FOLD == 0] = 1 - targets[FOLD == 0]
    np.testing.assert_array_equal(fitted(spoilt_age, spoilt_site, spoilt), plain)
    seen = site.copy()
    seen[FOLD == 1] = "only held out"  # the same in rows that train does change it
    assert not np.array_equal(fitted(age, seen, targets), plain)
