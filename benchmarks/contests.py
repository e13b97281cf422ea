"""Real digits as contests of other forms, from images to a submission scored on rows kept aside.

    python benchmarks/contests.py classes      # one label an image, `id,label`; accuracy
    python benchmarks/contests.py labels       # odd, above 4, prime: columns of 0 and 1; mean AUC
    python benchmarks/contests.py cells        # the same as a cell of labels; F1
    python benchmarks/contests.py grades       # ordered classes 0 … 9; QWK

Each writes scikit-learn's digits below ``--folder``, calls the three commands, and prints the
nested OOF score, its forecast and what the kept labels give, computed by scikit-learn.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.demo import NAMES, NUM_TEST, draw_digits, run, write_rows

LABELS = {
    "odd": lambda digit: digit % 2 == 1,
    "above4": lambda digit: digit > 4,
    "prime": lambda digit: digit in (2, 3, 5, 7),
}
METRICS = {"classes": "accuracy", "labels": "mean_auc", "cells": "f1_samples", "grades": "qwk"}
TRAIN = [
    *("--model", "resnet10t", "--pretrained", "none", "--config", "", "--image_size", "32"),
    *("--folds", "3", "--fold", "all", "--epochs", "5", "--batch_size", "32", "--lr", "0.002"),
    *("--head_lr_mult", "1", "--hflip", "0", "--tta_steps", "1", "--num_workers", "0"),
    *("--autotune", "off"),
]


def main() -> int:
    """Make the data, run the three commands, score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("form", choices=METRICS)
    parser.add_argument("--metric", default="", help="another one than the form's usual")
    parser.add_argument("--folder", default="", help="of data and output; empty = output/FORM")
    options, more = parser.parse_known_args()  # more flags go to train_fold.py
    started = time.monotonic()
    metric = options.metric or METRICS[options.form]
    folder = Path(options.folder or f"output/contest_{options.form}")
    kept = write_contest(folder / "data", options.form)
    places = ["--data_dir", str(folder / "data"), "--output_dir", str(folder / "output")]
    run("train_fold.py", *TRAIN, "--metric", metric, *places, *more)
    run("optimize_weights.py", "--trials", "8", "--presets", "", *places)
    run("infer_ensemble.py", "--tta_steps", "1", "--num_workers", "0", *places)
    with (folder / "output" / "submission.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    forecast = json.loads((folder / "output" / "prediction.json").read_text(encoding="utf-8"))
    low, high = forecast["test"]["low"], forecast["test"]["high"]
    print(
        f"\n{options.form}, {metric}: nested OOF {forecast['oof']:.4f}, forecast "
        f"{forecast['test']['value']:.4f} ({low:.4f} to {high:.4f}), {len(rows)} rows kept aside "
        f"{score(metric, header, rows, kept):.4f}; {time.monotonic() - started:.0f} s"
    )
    return 0


def write_contest(data: Path, form: str) -> dict[str, int]:
    """Write 1,200 digits with labels and 597 without; return id → digit of the latter."""
    split: dict[str, dict[str, int]] = {"test": {}, "train": {}}
    for place, (row, png, digit) in enumerate(draw_digits()):
        part = "test" if place < NUM_TEST else "train"
        (data / part).mkdir(parents=True, exist_ok=True)
        (data / part / f"{row:04d}.png").write_bytes(png)
        split[part][f"{row:04d}"] = digit
    header, filler = {
        "classes": (["id", "label"], ["zero"]),
        "labels": (["id", *LABELS], ["0.5"] * len(LABELS)),
        "cells": (["id", "labels"], ["odd prime"]),
        "grades": (["id", "grade"], ["0"]),
    }[form]
    cells = [[name, *cells_of(form, digit)] for name, digit in split["train"].items()]
    write_rows(data / "train.csv", [header, *cells])
    sample = [[name, *filler] for name in split["test"]]
    write_rows(data / "sample_submission.csv", [header, *sample])
    return split["test"]


def cells_of(form: str, digit: int) -> list[str]:
    """Return what train.csv says of a digit."""
    if form == "classes":
        return [NAMES[digit]]
    has = {name: bool(rule(digit)) for name, rule in LABELS.items()}
    if form == "labels":
        return [str(int(one)) for one in has.values()]
    return [" ".join(name for name, one in has.items() if one)] if form == "cells" else [str(digit)]


def score(metric: str, header: list[str], rows: list[list[str]], kept: dict[str, int]) -> float:
    """Return what the rows of a submission are worth."""
    from sklearn import metrics

    digits = [kept[row[0]] for row in rows]
    if header[1:] == ["label"]:
        said = [NAMES.index(row[1]) for row in rows]
        scores = {"accuracy": metrics.accuracy_score}
        scores |= {"balanced_accuracy": metrics.balanced_accuracy_score}
        scores |= {"macro_f1": partial(metrics.f1_score, average="macro")}
        return float(scores[metric](digits, said))
    if metric == "qwk":
        grades = [int(row[1]) for row in rows]
        return float(metrics.cohen_kappa_score(digits, grades, weights="quadratic"))
    truth = np.array([[bool(rule(digit)) for rule in LABELS.values()] for digit in digits])
    if header[1:] == ["labels"]:
        said = np.array([[name in row[1].split() for name in LABELS] for row in rows], float)
    else:
        said = np.array([row[1:] for row in rows], float)
    measures: dict[str, Any] = {
        "mean_auc": metrics.roc_auc_score,
        "map": metrics.average_precision_score,
        "f1_samples": lambda y, p: metrics.f1_score(y, p > 0.5, average="samples", zero_division=1),
        "log_loss": lambda y, p: np.mean([metrics.log_loss(y[:, k], p[:, k]) for k in range(3)]),
    }
    return float(measures[metric](truth, said))


if __name__ == "__main__":
    sys.exit(main())
