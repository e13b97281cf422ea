"""Nested OOF score of a blend and its decision rule against the score on rows kept aside.

Members are logistic regressions on random pixels of scikit-learn's digits, so that no network is
trained: python benchmarks/nested.py --repeats 20. What is compared is what infer_ensemble.py does:
the folds' members pooled, their log probabilities averaged, decided by the rule of weights.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.ensemble.blend import build_tables
from src.ensemble.calibration import Estimate
from src.ensemble.contest import adopt, build_board, find_candidates, forecast_score
from src.ensemble.oof import FoldTable, load_oof
from src.ensemble.pool import log_softmax
from src.ensemble.predictions import TestRun, save_oof
from src.ensemble.test_predictions import EnsemblePredictor, expected_gain
from src.metrics.contest import find_metric
from src.script import format_table

Array = npt.NDArray[Any]

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "qwk", "auc", "map@3")
MEMBERS, NUM_FOLDS, PIXELS = 4, 3, 14
CLASSES = tuple(str(k) for k in range(10))


def main() -> int:
    """Repeat, and print one row a metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first repeat")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    given = parser.parse_args()
    rows, seeds = [], range(given.first, given.first + given.repeats)
    for name in given.metrics:
        pairs = [repeat(name, seed, given.trials) for seed in seeds]
        plain, lifted = ([pair[place] for pair in pairs] for place in (0, 1))
        fitted, gained, single, whole = np.array([found for _, _, *found in pairs]).T
        nested = np.array([score.value for score in plain])
        inside = [
            sum(s.low <= x <= s.high for s, x in zip(forecasts, found, strict=True))
            for forecasts, found in ((plain, single), (plain, whole), (lifted, whole))
        ]
        gaps = nested - single
        error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float("nan")
        means = [float(x.mean()) for x in (fitted, nested, single, whole, whole - single, gained)]
        rows.append([name, *means, f"{gaps.mean():+.4f} ± {error:.4f}", *map(str, inside)])
        print(format_table(HEADER, rows[-1:]), flush=True)
    print("\n" + format_table(HEADER, rows))
    return 0


HEADER = [
    "metric", "fitted", "nested", "one fold aside", "all folds aside", "gained", "as estimated",
    "nested - one fold", "inside: one", "all, no gain", "all",
]  # fmt: skip


def repeat(
    name: str, seed: int, trials: int
) -> tuple[Estimate, Estimate, float, float, float, float]:
    """Return two forecasts, the fitted score, the gain, and two scores on the rows kept aside.

    The forecasts are without and with what averaging the folds is estimated to gain. The scores are
    of one fold's members (a mean over the folds), which is what the OOF rows saw, and of the mean
    of all folds, which is what is submitted.
    """
    rng = np.random.default_rng(seed)
    pixels, digits = load(rng)
    half = len(digits) // 2
    folds = rng.permutation(np.arange(half) % NUM_FOLDS)
    ids = np.array([f"{row:04d}" for row in range(half)])
    unseen: dict[str, list[TestRun]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, fold, oof, aside in members(pixels, digits, folds, half, rng):
            held = folds == fold
            save_oof(
                Path(folder) / model / f"fold{fold}" / "oof.npz", logits=oof[None], ids=ids[held],
                targets=digits[:half][held], views=["identity"], classes=CLASSES, fold=str(fold),
                config_hash="-", folds_hash="-",
            )  # fmt: skip
            run = TestRun(Path(folder), aside[None], ("identity",), CLASSES)
            unseen.setdefault(model, []).append(run)
        table = FoldTable(ids, np.array(CLASSES)[digits[:half]], folds, "-")
        oof = load_oof(Path(folder), table)
        board = build_board(find_metric(name, CLASSES), oof, build_tables(oof))
        adopted, score = adopt(board, find_candidates(board, trials=trials, seed=seed))
    predictor = EnsemblePredictor(
        unseen, adopted.blend, tuple(range(len(CLASSES))), len(digits) - half
    )
    pooled = list(predictor.predict_folds(slice(None))[0])
    single, whole = (
        [board.metric.measure(adopted.decision.apply(one), digits[half:]) for one in predictions]
        for predictions in (pooled, [log_softmax(np.mean(pooled, axis=0))])
    )
    gain = expected_gain(
        np.stack(pooled), log_softmax(np.mean(pooled, axis=0)), board.metric, adopted.decision
    )
    plain, lifted = (
        forecast_score(score, half, len(digits) - half, gain=known) for known in (0.0, gain)
    )
    return plain, lifted, adopted.fitted, gain, float(np.mean(single)), whole[0]


def load(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return digits in random order, the high ones rarer: 178 zeros to 27 nines."""
    from sklearn.datasets import load_digits

    data = load_digits()
    kept = rng.random(len(data.target)) < 0.81**data.target
    order = rng.permutation(np.flatnonzero(kept))
    return data.data[order] / 16, data.target[order]


def members(
    pixels: Array, digits: Array, folds: Array, half: int, rng: np.random.Generator
) -> Iterator[tuple[str, int, Array, Array]]:
    """Yield model, fold, its logits of the held-out rows and of those kept aside."""
    from sklearn.linear_model import LogisticRegression

    for number in range(MEMBERS):
        seen = rng.choice(pixels.shape[1], PIXELS, replace=False)
        for fold in range(NUM_FOLDS):
            rows = np.flatnonzero(folds != fold)
            probe = LogisticRegression(C=float(10 ** rng.uniform(-1, 2)), max_iter=200)
            probe.fit(pixels[rows][:, seen], digits[rows])
            held = probe.predict_log_proba(pixels[:half][folds == fold][:, seen])
            aside = probe.predict_log_proba(pixels[half:][:, seen])
            yield f"probe{number}", fold, held, aside


if __name__ == "__main__":
    sys.exit(main())
