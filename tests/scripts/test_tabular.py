"""Columns of the tables as a member: from train.csv to a submission, beside a network."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from src.ensemble.predictions import open_oof
from src.ensemble.weights import read_weights
from tests.scripts.conftest import Place
from tests.tables import read_rows, write_rows

CLASSES = ("day", "night")
QUICK = ("--fold", "all", "--epochs", "1", "--mixup_alpha", "0", "--cutmix_alpha", "0")


@pytest.fixture
def columns(bare: Place) -> Place:
    """Images of noise; the hour says the class seven times of eight, another column nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(144):
        target = row % 2
        image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(bare.data / ("train" if row < 96 else "test") / f"{row:03d}.png"), image)
        night = target if row % 16 > 1 else 1 - target
        hour = round(float(rng.normal(22 if night else 12, 1)), 1)
        shown = [f"{row:03d}", f"{row:03d}.png", "" if row % 24 == 3 else hour, rng.integers(9)]
        rows.append([*shown, CLASSES[target]])
    heads = ["id", "image", "hour", "noise", "label"]
    write_rows(bare.data / "train.csv", heads, rows[:96])
    write_rows(bare.data / "test.csv", heads[:4], [row[:4] for row in rows[96:]])
    return bare


def nested(place: Place, *models: str) -> float:
    """Blend, and return the nested log loss."""
    answer = place.optimize("--models", *models, "--trials", "6")
    assert answer.status == 0, answer.err
    return read_weights(place.output / "weights.json").summary.loss


def test_columns_lower_the_loss_and_noise_does_not(columns: Place) -> None:
    assert columns.train(*QUICK).status == 0
    image = columns.run.parent.name
    said = columns.start("scripts.train_tabular")
    assert said.status == 0, said.err
    assert "columns used: hour (number), noise (number)" in said.out
    oof = open_oof(columns.output / "tabular" / "fold0" / "oof.npz")
    assert oof.views == ("identity",) and oof.classes == CLASSES and len(oof.ids) == 48
    noise = columns.start("scripts.train_tabular", "--columns", "noise", "--name", "nothing")
    assert noise.status == 0, noise.err
    alone, with_noise, with_hour = (
        nested(columns, image, *more) for more in ([], ["nothing"], ["tabular"])
    )
    assert alone == pytest.approx(np.log(2), abs=0.05) and abs(with_noise - alone) < 0.02
    assert with_hour < alone - 0.12

    answer = columns.infer()
    assert answer.status == 0, answer.err
    header, *rows = read_rows(columns.output / "submission.csv")
    assert header == ["id", *CLASSES] and len(rows) == 48
    right = [np.argmax([float(x) for x in row[1:]]) == int(row[0]) % 2 for row in rows]
    assert 0.75 < np.mean(right) < 0.95
    again = columns.start("scripts.train_tabular")
    assert again.status == 0 and again.out.count("skipped") == 2
    photograph = str(next((columns.data / "test").iterdir()))
    shown = columns.call("scripts.predict", "--output_dir", str(columns.output), photograph)
    assert "without tabular, made of columns" in shown.out or shown.is_one_line("tabular", "tables")
    one = columns.call("scripts.predict", "--run", str(columns.output / "tabular/fold0"), "a.png")
    assert one.is_one_line("has no network", "train_tabular.py")


def test_stacked_on_a_network_and_new_test_rows(columns: Place) -> None:
    lacking = columns.start("scripts.train_tabular", "--stack", "--folds", "2")
    assert lacking.is_one_line("--stack", "--fold all")
    assert columns.train(*QUICK).status == 0
    said = columns.start("scripts.train_tabular", "--stack", "--device", "cpu")
    assert said.status == 0 and f"stacked on: {columns.run.parent.name}" in said.out, said.err
    run = columns.output / "tabular_stack" / "fold0"
    done = json.loads((run / "finished.json").read_text())
    assert done["config"]["stack"] and done["score"] < 0.6
    before = np.load(run / "test_logits.npy")
    assert before.shape == (1, 48, 2)
    header, *rows = read_rows(columns.data / "test.csv")
    write_rows(columns.data / "test.csv", header, [[*row[:2], "", row[3]] for row in rows])
    shown = columns.start("scripts.train_tabular", "--dry_run")
    assert shown.status == 0 and "hour (empty in the test table)" in shown.out
    write_rows(columns.data / "test.csv", header, [[*rows[0][:2], "", "4"], *rows[1:]])
    said = columns.start("scripts.train_tabular", "--stack", "--device", "cpu")
    assert said.status == 0 and "skipped" not in said.out
    after = np.load(run / "test_logits.npy")
    assert not np.array_equal(before[0, 0], after[0, 0])
    np.testing.assert_array_equal(before[0, 1:], after[0, 1:])


def test_the_held_out_rows_do_not_reach_their_model(columns: Place) -> None:
    flags = ["--columns", "hour", "--folds", "2"]
    assert columns.start("scripts.train_tabular", *flags).status == 0
    runs = [columns.output / "tabular" / f"fold{fold}" for fold in range(2)]
    before = [np.load(run / "test_logits.npy") for run in runs]
    held = {row[0] for row in read_rows(columns.output / "folds.csv") if row[4] == "0"}
    assert len(held) == 48
    header, *rows = read_rows(columns.data / "train.csv")
    spoilt = [[*row[:2], "0" if row[0] in held else row[2], *row[3:]] for row in rows]
    write_rows(columns.data / "train.csv", header, spoilt)
    again = columns.start("scripts.train_tabular", *flags)
    assert again.status == 0 and "skipped" not in again.out
    after = [np.load(run / "test_logits.npy") for run in runs]
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])


@pytest.mark.slow
def test_several_labels_and_a_metric_of_the_networks(columns: Place) -> None:
    header, *rows = read_rows(columns.data / "train.csv")
    hot = [[*row[:4], int(row[4] == "night"), int(int(row[0]) % 3 == 0)] for row in rows]
    write_rows(columns.data / "train.csv", [*header[:4], "night", "third"], hot)
    ids = [row[0] for row in read_rows(columns.data / "test.csv")[1:]]
    write_rows(columns.data / "sample_submission.csv", ["id", "night", "third"],
          [[name, 0, 0] for name in ids])  # fmt: skip
    assert columns.train(*QUICK, "--metric", "mean_auc").status == 0
    said = columns.start("scripts.train_tabular")
    assert said.status == 0 and "columns used: hour (number), noise (number)" in said.out
    oof = open_oof(columns.output / "tabular" / "fold0" / "oof.npz")
    assert oof.several and oof.logits.shape == (1, 48, 2)
    assert columns.optimize().status == 0 and columns.infer().status == 0
    contest = read_weights(columns.output / "weights.json").contest
    assert contest and contest.metric == "mean_auc" and contest.score > 0.6


@pytest.mark.slow
def test_a_plan_takes_the_columns_in(columns: Place, plan_of_a_probe: list[str]) -> None:
    said = columns.start("scripts.plan", *plan_of_a_probe, "--hours", "0.1")
    assert said.status == 0, said.err
    assert "columns used: hour" in said.out and "submission of 2 models" in said.out
    assert said.out.count("note: train.csv") == 1
    loss = read_weights(columns.output / "weights.json").summary.loss
    assert loss < np.log(2) - 0.1  # the images are noise
    again = columns.start("scripts.plan", *plan_of_a_probe, "--hours", "0.2")
    assert again.status == 0 and again.out.count("; skipped") >= 2, again.err


def test_mistakes_are_one_line(columns: Place) -> None:
    refused = columns.start("scripts.train_tabular", "--columns", "label")
    assert refused.is_one_line("--columns label", "names images, labels or groups")
    shown = columns.start("scripts.train_tabular", "--dry_run")
    assert shown.status == 0 and not (columns.output / "tabular").exists()
    write_rows(columns.data / "test.csv", ["id", "image"], [[f"{k:03d}", f"{k:03d}.png"]
                                                      for k in range(96, 144)])  # fmt: skip
    nothing = columns.start("scripts.train_tabular")
    assert nothing.is_one_line("no column that can be used")
    assert "hour (not in the test table)" in nothing.out
