"""Finished runs of a distillation in, the table of their scores and its intervals out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.metrics.bootstrap import Difference, Score, bootstrap_difference
from src.metrics.counts import STATISTICS, SegmentationCounts, load_counts
from src.runs import Run
from src.script import UserError

COLUMNS = {
    "mIoU": "pooled_mean_iou",
    "mAcc": "pooled_mean_accuracy",
    "aAcc": "pooled_pixel_accuracy",
    "mIoU+void": "pooled_mean_iou_with_void",
}
CLASS_COLUMNS = {
    "log loss": "log_loss",
    "calibrated": "calibrated_log_loss",
    "accuracy": "accuracy",
}


def read_metrics(run: Run) -> list[dict[str, float]]:
    """Read the validated epochs of ``metrics.csv``.

    Raises:
        UserError: there are none.
    """
    with run.metrics.open(encoding="utf-8", newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    rows = [row for row in rows if any(key.startswith(("valid_", "ema_")) for key in row)]
    if not rows:
        raise UserError(f"{run.metrics} has no validated epoch: distillation needs held-out images")
    return rows


def best_and_final(run: Run, done: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores of the best and of the last validated epoch, of the better weights."""
    rows = read_metrics(run)
    best = next((row for row in rows if row["epoch"] == done["best_epoch"]), rows[-1])
    return _scores(best, done), _scores(rows[-1], done)


def _scores(row: Mapping[str, float], done: Mapping[str, Any]) -> dict[str, float]:
    """Drop the prefix, from raw or averaged weights, whichever the best score is of."""
    found = [p for p in ("valid_", "ema_") if f"{p}{done['monitor']}" in row]
    prefix = min(found, key=lambda p: abs(row[f"{p}{done['monitor']}"] - done["score"]))
    return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}


def print_table(results: Mapping[str, Sequence[tuple[Run, Mapping[str, Any]]]]) -> None:
    """Print best and final scores of every role, mean ± std where there are several seeds.

    Args:
        results: role → (run, content of ``finished.json``) of every seed.
    """
    tables = {role: [best_and_final(run, done) for run, done in runs] for role, runs in
              results.items()}  # fmt: skip
    known = {key for pairs in tables.values() for key in pairs[0][0]}
    columns = {k: v for k, v in (COLUMNS | CLASS_COLUMNS).items() if v in known}
    heads = [f"{when} {name}" for when in ("best", "final") for name in columns]
    width = max(len(role) for role in results)
    print("\n" + " " * width + "".join(f"{head:>18}" for head in heads))
    for role, pairs in tables.items():
        cells = []
        for when in (0, 1):
            for key in columns.values():
                values = np.array([pair[when].get(key, np.nan) for pair in pairs])
                spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.4f}{spread}")
        print(f"{role:<{width}}" + "".join(f"{cell:>18}" for cell in cells))
    if "pooled_mean_iou_with_void" in known:
        print(
            "mIoU leaves void out; mIoU+void counts it as one more class that is never predicted, "
            "as published 12-class figures do"
        )


def compare_roles(
    first: Sequence[Run], second: Sequence[Run], statistic: str = "pooled_mean_iou"
) -> Difference:
    """Bootstrap the difference of two roles' mean score over seeds, images paired.

    Whole groups of frames are resampled where there are at least five of them, else images.

    Args:
        first: runs of role A, one a seed.
        second: runs of role B.
        statistic: a name in ``STATISTICS``.

    Raises:
        UserError: the runs held out different images.
    """
    counts = [[load_counts(run.oof_counts).sort() for run in runs] for runs in (first, second)]
    ids, groups = _held_out(first[0])
    for run in (*first, *second):
        if _held_out(run)[0] != ids:
            raise UserError(
                f"{run.folder} held out other images than {first[0].folder}: use one split"
            )
    one, other = (_mean_over(runs, statistic) for runs in counts)
    many = len({group or f"\0{row}" for row, group in enumerate(groups)}) >= 5
    return bootstrap_difference(
        statistic, one, other, len(counts[0][0]), groups=groups if many else None
    )


def _held_out(run: Run) -> tuple[list[str], list[str]]:
    with np.load(run.oof, allow_pickle=False) as oof:
        return oof["ids"].tolist(), oof["groups"].tolist()


def _mean_over(runs: Sequence[SegmentationCounts], statistic: str) -> Score:
    score = STATISTICS[statistic]
    return lambda weights: np.mean([score(counts, weights) for counts in runs], axis=0)
