"""Pages on several labels an image: numbers by hand."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from src.pipelines.classification import panels


def study_of(present: list[list[float]], hot: list[list[int]]) -> Any:
    """Return a study of images × labels with these probabilities and truths."""
    probs, targets = np.array(present).ravel(), np.array(hot).ravel()
    true = np.where(targets > 0, probs, 1 - probs)
    ids = np.array([f"{name}\0{k}" for name in "abcd" for k in range(2)])
    oof = SimpleNamespace(labels=("red", "round"), targets=targets, ids=ids)
    diagnosis = SimpleNamespace(
        oof=oof, true_probs=true, losses=-np.log(true), right=(probs > 0.5) == (targets > 0)
    )
    images = dict(zip("abcd", "abcd", strict=True))
    return SimpleNamespace(diagnosis=diagnosis, images=images, folds=pd.DataFrame())


PRESENT = [[0.9, 0.2], [0.8, 0.6], [0.3, 0.7], [0.4, 0.1]]
HOT = [[1, 0], [0, 0], [0, 1], [1, 0]]


def cells(html: str) -> list[list[str]]:
    """Return the rows of the last table as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", html.split("<table")[-1], re.S)
    return [[re.sub("<[^>]+>", "", c) for c in re.findall(r"<t[dh].*?</t[dh]>", r)] for r in rows]


def test_scores_by_label() -> None:
    shown = cells(str(panels.labels(study_of(PRESENT, HOT))[0]))
    red, round_ = shown[1], shown[2]  # the costlier first
    assert red[:3] == ["red", "2", "0.6000"]
    loss = -np.log([0.9, 0.2, 0.7, 0.4]).mean()
    assert float(red[3]) == np.round(loss, 4)
    assert float(red[4]) == 0.5  # .9 and .3 of four are on the right side
    assert float(red[5]) == 0.75  # .9 > .8, .9 > .3, .4 > .3, .4 < .8
    assert np.isclose(float(red[6]), (1 + 2 / 3) / 2, atol=1e-4)
    assert round_[:2] == ["round", "1"] and float(round_[5]) == 1.0


def test_the_costliest_pairs_come_first() -> None:
    found = panels.label_mistakes(study_of(PRESENT, HOT), None, 0)["Costliest mistakes"]
    first, second = cells(str(found[0]))[1:3]
    assert first[:3] == ["b", "red", "has it not"] and float(first[3]) == 0.8
    assert second[:3] in (["d", "red", "has it"], ["b", "round", "has it not"])
