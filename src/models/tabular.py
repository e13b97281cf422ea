"""Tabular classifier: gradient boosting or logistic regression on columns of numbers and words.

Kind, strength and number of rounds are those with the least log loss on inner folds of the rows
given, the class frequencies alone among the choices: columns of noise give those. scikit-learn's
HistGradientBoostingClassifier (after Ke et al. 2017, LightGBM) takes missing values as they are;
for the regression they are the median and an indicator. Categories are those of the training rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]

STRENGTHS = (0.003, 0.03, 0.3, 3.0)  # C of the logistic regression
MAX_ROUNDS, LEAST_ROUNDS, TREES = 200, 20, 4000  # a round has a tree a class
MAX_CATEGORIES = 200  # of a column; the rarer ones are one
LEAVES = 8


@dataclass(frozen=True)
class TabularModel:
    """A fitted classifier."""

    kind: str  # what was chosen, for people
    log_loss: float  # of the choice on the inner folds, nats
    base: float  # log loss of the class frequencies there
    predict: Callable[[pd.DataFrame], Array]  # rows → (N, K) probabilities, all above 0


@dataclass(frozen=True)
class _Task:
    """Columns and classes, as all fits have them."""

    numbers: Sequence[str]
    words: Sequence[str]
    num_classes: int
    seed: int

    @property
    def rounds(self) -> int:
        return int(np.clip(TREES // self.num_classes, LEAST_ROUNDS, MAX_ROUNDS))

    def fit(self, rows: pd.DataFrame, target: Array, strength: float, rounds: int) -> Any:
        """Fit a regression of a strength, or (0) boosting of so many rounds; None = one class."""
        if len(np.unique(target)) < 2:
            return None
        model = self._regression(strength) if strength else self._boosting(rounds, len(target))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a solver that stops early, or a category unseen
            return model.fit(rows, target)

    def _boosting(self, rounds: int, num_rows: int) -> Any:
        from sklearn.compose import ColumnTransformer
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OrdinalEncoder

        encoder = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan,
            max_categories=MAX_CATEGORIES,
        )  # fmt: skip
        columns = ColumnTransformer(
            [("words", encoder, list(self.words)), ("numbers", "passthrough", list(self.numbers))]
        )
        trees = HistGradientBoostingClassifier(
            max_iter=rounds, learning_rate=min(10 / self.rounds, 0.3), max_leaf_nodes=LEAVES,
            min_samples_leaf=int(np.clip(num_rows // 20, 2, 20)), early_stopping=False,
            categorical_features=list(range(len(self.words))) or None, random_state=self.seed,
        )  # fmt: skip
        return make_pipeline(columns, trees)

    def _regression(self, strength: float) -> Any:
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

        encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MAX_CATEGORIES)
        filler = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        # clipped to what was seen: another fold's network may speak on another scale
        scaler = make_pipeline(filler, MinMaxScaler(clip=True), StandardScaler())
        columns = ColumnTransformer(
            [("words", encoder, list(self.words)), ("numbers", scaler, list(self.numbers))]
        )
        return make_pipeline(columns, LogisticRegression(C=strength, max_iter=1000))

    def frequencies(self, target: Array, num_rows: int) -> Array:
        """Return the class frequencies of ``target``, (num_rows, K), with one row spread evenly."""
        counts = np.bincount(target, minlength=self.num_classes) + 1 / self.num_classes
        return np.tile(counts / counts.sum(), (num_rows, 1))

    def stages(self, model: Any, rows: pd.DataFrame, target: Array) -> list[Array]:
        """Return the probabilities (N, K) after every round, or of the one fit there is."""
        if model is None:
            return [self.frequencies(target, len(rows))]
        if hasattr(model[-1], "staged_predict_proba"):
            found = model[-1].staged_predict_proba(model[:-1].transform(rows))
        else:
            found = [model.predict_proba(rows)]
        known, total = model[-1].classes_, len(target)
        spread = []
        for probs in found:
            whole = np.full((len(rows), self.num_classes), 1 / self.num_classes)
            whole[:, known] += total * probs
            spread.append(whole / (total + 1))
        return spread


def fit_tabular(
    rows: pd.DataFrame,
    target: Array,
    num_classes: int,
    parts: Array,
    *,
    numbers: Sequence[str],
    words: Sequence[str],
    seed: int = 0,
) -> TabularModel:
    """Choose and fit a classifier.

    Args:
        rows: N rows of the columns.
        target: (N,) class numbers in [0, K).
        num_classes: K.
        parts: (N,) numbers of the inner folds.
        numbers: columns of numbers; NaN is missing.
        words: columns of categories; NaN is missing.
        seed: of the boosting.
    """
    task = _Task(numbers, words, num_classes, seed)
    target = np.asarray(target, dtype=np.int64)
    losses: dict[tuple[float, int], float] = {}
    base = 0.0
    for part in np.unique(parts):
        held, truth = parts == part, target[parts == part]
        seen, known = rows[~held], target[~held]

        def total(probs: Array, truth: Array = truth) -> float:
            return float(-np.log(probs[np.arange(len(truth)), truth]).sum())

        base += total(task.frequencies(known, len(truth)))
        for strength in (0.0, *STRENGTHS):
            model = task.fit(seen, known, strength, task.rounds)
            stages = task.stages(model, rows[held], known)
            counts = range(1, task.rounds + 1) if not strength else (0,)
            for count in counts:
                loss = total(stages[min(max(count, 1), len(stages)) - 1])
                losses[strength, count] = losses.get((strength, count), 0.0) + loss
    chosen = min(losses, key=lambda choice: losses[choice])
    best = losses[chosen]
    strength, count = chosen
    model = task.fit(rows, target, strength, count) if best < base else None
    kind = f"logistic regression, C {strength:g}" if strength else f"boosting, {count} rounds"
    return TabularModel(
        kind if model is not None else "class frequencies",
        min(best, base) / len(target),
        base / len(target),
        lambda frame: task.stages(model, frame, target)[-1],
    )
