"""Contests that count something else than log loss, through the three scripts."""

from __future__ import annotations

import json

import cv2
import numpy as np

from src.ensemble.weights import read_weights
from src.files import read_json, write_json
from tests.scripts.conftest import Place
from tests.tables import read_rows

QUICK = ("--fold", "all", "--epochs", "2", "--mixup_alpha", "0", "--cutmix_alpha", "0")


def write_sample(place: Place, header: str, cell: str) -> list[str]:
    ids = sorted(path.stem for path in (place.data / "test").iterdir())
    lines = [header, *(f"{id_},{cell}" for id_ in ids)]
    (place.data / "sample_submission.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ids


def whole_way(place: Place, *flags: str) -> str:
    """Train, blend and predict; return what was printed."""
    said = ""
    for prediction in (place.train(*QUICK, *flags), place.optimize("--trials", "6"), place.infer()):
        assert prediction.status == 0, prediction.err
        said += prediction.out
    return said


def test_accuracy_with_a_label_an_image(fresh: Place) -> None:
    ids = write_sample(fresh, "ID,label", "noon")
    said = whole_way(fresh, "--metric", "accuracy")
    done = json.loads((fresh.run / "finished.json").read_text())
    assert done["monitor"] == "accuracy" and done["config"]["metric"] == "accuracy"
    contest = read_weights(fresh.output / "weights.json").contest
    assert contest is not None and contest.metric == "accuracy"
    assert contest.decision.rule == "argmax" and contest.low < contest.score <= contest.high
    header, *rows = read_rows(fresh.output / "submission.csv")
    assert header == ["ID", "label"] and [row[0] for row in rows] == ids
    log_probs = np.load(fresh.output / "test_log_probs.npy")
    assert [row[1] for row in rows] == [("evening", "noon")[k] for k in log_probs.argmax(axis=1)]
    forecast = json.loads((fresh.output / "prediction.json").read_text())
    assert forecast["metric"] == "accuracy" and forecast["oof"] == contest.score
    assert forecast["test"]["low"] < forecast["test"]["value"] <= forecast["test"]["high"]
    assert "predicted test accuracy" in said and "one label, read back and sound" in said
    said = fresh.start("scripts.report", "--examples", "0", "--submit_log", "public 0.9").out
    assert "public accuracy 0.9, forecast" in said
    html = (fresh.output / "report" / "index.html").read_text(encoding="utf-8")
    assert "nested accuracy of each way to blend" in html and "forecast test accuracy (90 %" in html
    assert "nested log loss of each way" not in html and "nested OOF log loss (95" not in html


def test_grades_by_quadratic_weighted_kappa(fresh: Place) -> None:
    rng = np.random.default_rng(0)
    for folder in ("evening", "noon"):
        for path in (fresh.data / "train" / folder).iterdir():
            path.unlink()
        (fresh.data / "train" / folder).rmdir()
    for row in range(36):
        grade = row % 3
        path = fresh.data / "train" / str(grade) / f"{row:03d}.png"
        path.parent.mkdir(exist_ok=True)
        image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8) + np.uint8(90 * grade)
        cv2.imwrite(str(path), image)
    ids = write_sample(fresh, "ID,diagnosis", "0")
    said = whole_way(fresh, "--metric", "qwk")
    contest = read_weights(fresh.output / "weights.json").contest
    assert contest is not None and contest.decision.rule == "cuts"
    assert len(contest.decision.cuts) == 2 and contest.ordinal == ("0", "1", "2")
    header, *rows = read_rows(fresh.output / "submission.csv")
    assert header == ["ID", "diagnosis"] and [row[0] for row in rows] == ids
    log_probs = np.load(fresh.output / "test_log_probs.npy")
    decided = contest.decision.apply(log_probs)
    assert [row[1] for row in rows] == [str(k) for k in decided]
    assert "expected grade cut at" in said and "predicted test qwk" in said
    other = fresh.optimize("--metric", "log_loss")
    assert other.status == 0 and read_weights(fresh.output / "weights.json").contest is None


def test_mistakes_with_metrics_are_one_line(place: Place) -> None:
    assert place.train("--metric", "acc").is_one_line("--metric acc", "balanced_accuracy")
    assert place.train("--metric", "runs").is_one_line("--metric runs")
    changed = place.train("--metric", "accuracy")
    assert changed.is_one_line("is finished, with other options", "metric")
    assert place.optimize("--metric", "qwk").is_one_line("--ordinal evening noon")
    done = read_json(place.run / "finished.json")
    done["config"] |= {"metric": "accuracy"}
    write_json(place.run / "finished.json", done)
    assert place.optimize().is_one_line("different metrics (accuracy, log_loss)", "--metric")
