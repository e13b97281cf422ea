"""Demonstration on real digits, images to a scored submission: what ``make demo`` runs.

Writes scikit-learn's handwritten digits as a competition under ``input/digits``, with the test
labels kept aside, then calls the project's own commands, then scores the submission.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DATA, LABELS = Path("input/digits"), Path("input/digits_labels.csv")
OUTPUT, PLANNED = Path("output/digits"), Path("output/digits_plan")
SECONDS, PLAN_SECONDS = 340, (100, 162)  # in all; of the plan with what is left: least, most
NUM_TEST, SIDE = 597, 32
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MODELS = {"lite0": "tf_efficientnet_lite0", "lite1": "tf_efficientnet_lite1"}


def main(argv: Sequence[str] = ()) -> int:
    """Make the data, run every command, print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    started = time.monotonic()
    if not (LABELS.exists() and DATA.is_dir()):  # written last
        write_digits()
    places = ["--data_dir", str(DATA), "--output_dir", str(OUTPUT)]
    run("scripts/fetch_weights.py", *MODELS.values())
    for model in MODELS:
        train = ["--model", model, "--folds", "3", "--fold", "all"]
        run("train_fold.py", "--config", "configs/demo.yaml", *train, *places)
    run("optimize_weights.py", *places)
    run("infer_ensemble.py", "--tta_steps", "5", *places)
    print_table()
    places[-1] = str(PLANNED)
    left = started + SECONDS - time.monotonic()
    hours = min(max(left, PLAN_SECONDS[0]), PLAN_SECONDS[1]) / 3600
    run("scripts/plan.py", "--hours", f"{hours:.3f}", *places)
    print("\nsubmissions of the plan, each made as soon as a fold was finished\n")
    print((PLANNED / "history.csv").read_text(encoding="utf-8"))
    print(f"actual test log loss of the last: {actual_loss(PLANNED):.5f}")
    run("scripts/report.py", "--data_dir", str(DATA), "--output_dir", str(OUTPUT))
    print(f"done in {(time.monotonic() - started) / 60:.1f} min")
    return 0


def write_digits() -> None:
    """Write 1,797 real digits: 1,200 in class folders, 597 to be answered."""
    predictions = []
    for place, (_, png, digit) in enumerate(draw_digits()):
        name = NAMES[digit]
        if place < NUM_TEST:
            path = DATA / "test" / f"TEST_{place:05d}.png"
            predictions.append((path.stem, name))
        else:
            path = DATA / "train" / name / f"{place:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    write_rows(
        DATA / "test.csv", [("ID", "img_path")] + [(i, f"./test/{i}.png") for i, _ in predictions]
    )
    uniform = [0.1] * len(NAMES)
    write_rows(
        DATA / "sample_submission.csv", [("ID", *NAMES), *((i, *uniform) for i, _ in predictions)]
    )
    write_rows(LABELS, [("ID", "label"), *predictions])


def draw_digits() -> Iterator[tuple[int, bytes, int]]:
    """Yield (row, PNG file, digit) of scikit-learn's handwritten digits, in random order."""
    import cv2
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in np.random.default_rng(0).permutation(len(digits.target)).tolist():
        grey = (digits.images[row] * 255 / 16).astype(np.uint8)
        image = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        yield row, cv2.imencode(".png", image)[1].tobytes(), int(digits.target[row])


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def run(script: str, *flags: str) -> None:
    """Run one of the project's commands, shown as it would be typed; stop where it fails."""
    print(f"\n$ python {script} {' '.join(flags)}", flush=True)
    status = subprocess.run([sys.executable, script, *flags], check=False, cwd=ROOT).returncode
    if status:
        sys.exit(status)


def read_submission(output: Path) -> tuple[list[str], Any, Any]:
    """Return classes, probabilities (N, K) submitted, and the labels kept aside (N,)."""
    import numpy as np
    import pandas as pd

    labels = pd.read_csv(LABELS, dtype=str)
    submission = pd.read_csv(output / "submission.csv", dtype={"ID": str})
    assert submission["ID"].tolist() == labels["ID"].tolist()
    classes = list(submission.columns[1:])
    truth = np.array([classes.index(name) for name in labels["label"]])
    return classes, submission[classes].to_numpy(), truth


def actual_loss(output: Path) -> float:
    """Return the log loss of a submission on the labels kept aside."""
    from src.metrics.classification import log_loss

    _, probs, truth = read_submission(output)
    return log_loss(probs, truth)


def print_table() -> None:
    """Print the log loss that OOF showed, that was predicted, and that the kept labels give."""
    import numpy as np

    from src.data.folds import read_folds
    from src.ensemble.oof import FoldTable, load_oof
    from src.metrics.classification import log_loss, softmax
    from src.runs import Output
    from src.script import format_table

    output = Output(OUTPUT)
    weights, prediction = (
        json.loads(path.read_text(encoding="utf-8")) for path in (output.weights, output.prediction)
    )
    classes, _, truth = read_submission(OUTPUT)
    share = {(m["model"], m["view"]): m["weight"] for m in weights["members"]}
    oof = load_oof(OUTPUT, FoldTable.of(read_folds(output.folds)), models=tuple(MODELS))
    order = [oof.classes.index(name) for name in classes]
    rows: list[list[object]] = []
    for model, view in oof.members:
        held_out = np.exp(oof.read((model, view), np.arange(len(oof.targets))))
        runs = output.finished_runs(model)
        seen = json.loads(runs[0].test_info.read_text(encoding="utf-8"))["views"]
        alone = float("nan")
        if view in seen:
            found = [softmax(np.load(run.test_logits)[seen.index(view)].astype(np.float32))
                     for run in runs]  # fmt: skip
            alone = log_loss(np.mean(found, 0)[:, order], truth)
        weight = share.get((model, view), 0.0)
        rows.append([model, view, weight, log_loss(held_out, oof.targets), alone])
    print("\nwhat each model and view is worth (log loss; the flips of a digit are no digit)\n")
    print(format_table(["model", "view", "weight", "OOF alone", "test alone"], rows))
    expected = prediction["test_log_loss"]
    print("\nthe blend\n")
    rows = [
        ["OOF log loss (nested)", prediction["oof_log_loss"]],
        ["predicted test log loss", expected["value"]],
        ["  its 90 % interval", f"{expected['low']:.5f} to {expected['high']:.5f}"],
        ["actual test log loss", actual_loss(OUTPUT)],
    ]
    print(format_table(["", "nats"], rows))


if __name__ == "__main__":
    from src.script import run_script

    run_script(main)
