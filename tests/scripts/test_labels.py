"""Several labels an image, through the three scripts: from train.csv to a proved submission."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.kill_resume import MODEL
from src.ensemble.predictions import open_oof
from src.ensemble.weights import read_weights
from src.files import read_json, write_json
from src.pipelines.library import load_ensemble, load_run
from tests.scripts.conftest import Place
from tests.tables import read_rows, write_rows

LABELS = ("bright", "striped")
QUICK = ("--fold", "all", "--epochs", "3", "--mixup_alpha", "0.2", "--cutmix_alpha", "0")


@pytest.fixture
def labels(bare: Place) -> Place:
    """Images that are bright or not and striped or not; a row in seven has a group of its own."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(48):
        bright, striped = int(row % 2), int(row // 2 % 2)
        image = rng.integers(0, 60, (32, 32, 3)) + 100 * bright
        image[:, ::4] += 90 * striped
        place = bare.data / ("train" if row < 36 else "test") / f"{row:02d}.png"
        cv2.imwrite(str(place), image.astype(np.uint8))
        if row < 36:
            rows.append([place.name, str(bright), str(striped)])
    write_rows(bare.data / "train.csv", ["image", *LABELS], rows)
    ids = [f"{row:02d}" for row in range(36, 48)]
    write_rows(bare.data / "sample_submission.csv", ["id", *LABELS[::-1]], [[i, 0, 0] for i in ids])
    return bare


def whole_way(place: Place, *flags: str) -> str:
    """Train, blend and predict; return what was printed."""
    said = ""
    for answer in (place.train(*QUICK, *flags), place.optimize("--trials", "5"), place.infer()):
        assert answer.status == 0, answer.err
        said += answer.out
    return said


def test_columns_of_probabilities_by_mean_auc(labels: Place) -> None:
    shown = labels.train("--dry_run", "--metric", "mean_auc")
    assert shown.status == 0 and "36 training images, 2 labels" in shown.out
    assert "18" in shown.out and "metric: mean_auc of probabilities" in shown.out
    said = whole_way(labels, "--metric", "mean_auc", "--loss", "asymmetric + 0.5 bce")
    assert "several labels an image: 2 labels" in said and "predicted test mean_auc" in said
    done = json.loads((labels.run / "finished.json").read_text())
    assert done["monitor"] == "mean_auc" and done["score"] > 0.5
    oof = open_oof(labels.run / "oof.npz")
    assert oof.several and oof.targets.shape == (18, 2) and oof.classes == LABELS
    weights = read_weights(labels.output / "weights.json")
    assert weights.labels == LABELS and weights.contest and weights.contest.num_rows == 36
    header, *rows = read_rows(labels.output / "submission.csv")
    assert header == ["id", "striped", "bright"] and [r[0] for r in rows] == [
        str(row) for row in range(36, 48)
    ]
    probs = np.array([row[1:] for row in rows], float)
    assert probs.min() > 0 and probs.max() < 1 and np.ptp(probs.sum(axis=1)) > 0.01
    forecast = json.loads((labels.output / "prediction.json").read_text())
    assert forecast["metric"] == "mean_auc" and forecast["oof"] == weights.contest.score
    images = sorted((labels.data / "test").iterdir())
    found = load_ensemble(labels.output, device="cpu").predict(images)
    assert found.classes == LABELS  # all views, the submission two of them
    np.testing.assert_allclose(found.probs[:, ::-1], probs, atol=0.2)
    alone = load_run(labels.run, device="cpu").predict(images)
    assert alone.probs.shape == (12, 2) and np.ptp(alone.probs.sum(axis=1)) > 0.01
    page = labels.start("scripts.report", "--examples", "2", "--heatmaps")
    assert page.status == 0, page.err
    html = (labels.output / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Labels</h2>" in html and "2 labels on 36 images" in html
    assert "cannot be shown" not in html and html.count("has it") >= 24
    again = labels.train(*QUICK, "--metric", "mean_auc", "--loss", "asymmetric + 0.5 bce")
    assert again.status == 0 and "skipped" in again.out
    refused = labels.infer("--prior_correction", "on")
    assert (refused.status, "--prior_correction" in refused.err) == (2, True), "not a silent no"


def test_cells_of_labels_by_f1(labels: Place) -> None:
    rows = [
        [name, " ".join(n for n, one in zip(LABELS, hot, strict=True) if one == "1")]
        for name, *hot in read_rows(labels.data / "train.csv")[1:]
    ]
    write_rows(labels.data / "train.csv", ["image", "labels"], rows)
    ids = [str(row) for row in range(36, 48)]
    write_rows(
        labels.data / "sample_submission.csv", ["id", "labels"], [[i, "bright"] for i in ids]
    )
    assert labels.train().is_one_line("no label in column labels", "pass --metric f1_samples")
    said = whole_way(labels, "--metric", "f1_samples")
    weights = read_weights(labels.output / "weights.json")
    assert weights.contest and len(weights.contest.decision.cuts) == 2
    header, *rows = read_rows(labels.output / "submission.csv")
    assert header == ["id", "labels"] and [row[0] for row in rows] == ids
    assert {name for row in rows for name in row[1].split()} <= set(LABELS)
    log_probs = np.load(labels.output / "test_log_probs.npy")
    marks = weights.contest.decision.apply(log_probs).reshape(12, 2)
    assert [len(row[1].split()) for row in rows] == marks.sum(axis=1).tolist()
    assert "a cell of labels, read back and sound" in said and "given to" in said
    loss = labels.optimize("--metric", "log_loss")
    assert loss.status == 0, loss.err
    contest = read_weights(labels.output / "weights.json").contest
    assert contest and contest.metric == "log_loss" and 0 <= contest.low < contest.score
    assert labels.infer().status == 0


def test_a_plan_begins_with_a_probe_and_its_submission(
    labels: Place, plan_of_a_probe: list[str]
) -> None:
    said = labels.start("scripts.plan", *plan_of_a_probe, "--metric", "mean_auc", "--hours", "0.1")
    assert said.status == 0, said.err
    assert "submission of 1 model:" in said.out and "mean_auc: nested" in said.out
    (run,) = labels.output.glob("*_probe/fold0")
    oof = open_oof(run / "oof.npz")
    assert oof.several and oof.logits.shape == (2, 18, 2)
    done = json.loads((run / "finished.json").read_text())
    assert done["monitor"] == "mean_auc" and done["score"] > 0.7
    alone = load_run(run, device="cpu").predict(sorted((labels.data / "test").iterdir()))
    (survey,) = json.loads((labels.output / "survey.json").read_text())["candidates"]
    assert 0 < survey["log_loss"] < np.log(2)  # nats of a pair of image and label
    header, *rows = read_rows(labels.output / "submission.csv")
    probs = np.array([row[1:] for row in rows], float)
    assert header == ["id", "striped", "bright"] and probs.shape == alone.probs.shape
    assert np.ptp(probs.sum(axis=1)) > 0.01


def test_training_starts_at_the_probe_of_labels(labels: Place, weights: Path) -> None:
    flags = ["--pretrained", str(weights), "--head_start", "probe", "--norms", "frozen"]
    answer = labels.train("--epochs", "1", "--mixup_alpha", "0", *flags)
    assert answer.status == 0 and "training starts there" in answer.out, answer.err
    assert "warning" not in answer.out


def test_a_wrong_label_is_a_suspect(
    labels: Place, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, *rows = read_rows(labels.data / "train.csv")
    rows[7][1] = "0"  # 07.png is bright
    write_rows(labels.data / "train.csv", header, rows)
    monkeypatch.chdir(labels.data.parent)
    place = Path("input") / "weights"
    place.mkdir(parents=True)
    (place / f"{MODEL}.safetensors").write_bytes(weights.read_bytes())
    done = labels.start("scripts.check_data", "--device", "cpu", "--image_size", "32")
    assert done.status == 0, done.err
    _, first, *_ = read_rows(labels.output / "suspect_labels.csv")
    assert first[1:5] == ["train/07.png", "train/07.png", "not bright", "bright"]
    counted = json.loads((labels.output / "report" / "data.json").read_text())
    assert counted["by_class"] == {"bright": 17, "striped": 18} and counted["train"] == 36


def test_the_check_is_told_that_an_image_has_several_labels(labels: Place) -> None:
    """Columns with one 1 a line are classes, unless the metric says otherwise, as in training."""
    whole_way(labels)
    header, *rows = read_rows(labels.data / "train.csv")
    names = [header.index(name) for name in ("bright", "striped")]
    for number, row in enumerate(rows):
        row[names[0]], row[names[1]] = str(number % 2), str(1 - number % 2)
    write_rows(labels.data / "train.csv", header, rows)

    def judges(*flags: str) -> tuple[bool, str]:
        done = labels.start("scripts.check_data", "--device", "cpu", "--probe", "off", *flags)
        assert done.status == 0 and "Warning" not in done.err, done.err
        page = (labels.output / "report" / "data.html").read_text()
        return "contradicted by the OOF (" in done.out, page

    judged, page = judges()
    assert not judged and "they are of several labels an image, and" in page
    assert judges("--metric", "mean_auc")[0]


def test_mistakes_are_one_line(labels: Place) -> None:
    refused = labels.train("--metric", "accuracy")
    assert refused.is_one_line("--metric accuracy", "several labels", "f1_samples")
    assert labels.train("--loss", "bi_tempered").is_one_line("bi_tempered", "asymmetric")
    aliases = labels.data / "aliases.csv"
    aliases.write_text("bright,striped\n")
    assert labels.train("--aliases", str(aliases)).is_one_line("--aliases", "several labels")
    assert labels.train("--loss", "nonsense").is_one_line("nonsense")
    whole_way(labels)  # by log loss; the table of aliases is about classes
    weights = read_json(labels.output / "weights.json")
    weights["contest"]["decision"]["slopes"] = [1.0]
    write_json(labels.output / "weights.json", weights)
    assert labels.infer().is_one_line("weights.json", "labels out of range")
