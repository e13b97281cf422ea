from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest

import infer_ensemble
from src.data.index import read_test
from src.ensemble.pool import Blend
from src.ensemble.predictions import save_test_info
from src.ensemble.weights import OofSummary, Weights, write_weights
from src.files import read_json, write_json
from src.pipelines.classification.infer import hash_images
from src.script import UserError
from tests.tables import read_rows

CLASSES = ("고양이", "dog", "bird")
VIEWS = ("identity", "hflip")
NUM = 120


@pytest.fixture
def place(tmp_path):
    """A data set whose test logits are already there, so that no network runs."""
    rng = np.random.default_rng(0)
    data, output = tmp_path / "data", tmp_path / "output"
    (data / "test").mkdir(parents=True)
    (data / "train").mkdir()
    ids = [f"{k:03d}" for k in range(NUM)]
    for id_ in ids:
        (data / "test" / f"{id_}.jpg").write_bytes(b"is not opened")
    lines = ["ID,img_path", *(f"{id_},./test/{id_}.jpg" for id_ in ids)]
    (data / "test.csv").write_text("\n".join(lines), encoding="utf-8")
    header = "ID,dog,bird,고양이"
    sample = [header, *(f"{id_},0,0,0" for id_ in ids[::-1])]
    (data / "sample_submission.csv").write_text("\ufeff" + "\r\n".join(sample), encoding="utf-8")
    # classes are equally frequent in test, while the train frequencies are .9, .05, .05
    targets = rng.integers(0, 3, NUM)
    prior = np.array([0.9, 0.05, 0.05])
    features = rng.standard_normal((NUM, 3)) + 2.5 * np.eye(3)[targets]
    for model in ("a", "b"):
        for fold in range(2):
            noise = 0.1 * rng.standard_normal((2, NUM, 3))
            folder = output / model / f"fold{fold}"
            folder.mkdir(parents=True)
            logits = 2.5 * features + np.log(prior) + noise
            logits = logits.astype(np.float16)
            np.save(folder / "test_logits.npy", logits)
            save_test_info(
                folder / "test.json", logits=logits, ids_hash=hash_images(read_test(data)),
                views=VIEWS, classes=CLASSES, trained=model,
            )  # fmt: skip
            write_json(folder / "finished.json", {"config_hash": model})
    members = tuple((model, view) for model in "ab" for view in VIEWS)
    weights = Weights(
        blend=Blend("linear", members, np.full(4, 0.25), np.ones(4), 1.0, (0.0, 0.0), prior),
        order="after", classes=CLASSES, source_classes=CLASSES, alias_groups=(), folds_hash="f",
        config_hashes={model: {"0": model, "1": model} for model in "ab"}, scores={},
        summary=OofSummary(
            loss=0.068, implied_prior=prior, accuracy=0.98, entropy=0.07,
            residual_error=0.003, confidence=0.98, confidence_error=0.002,
            design_effect=1.0, num_rows=2000.0, num_units=2000.0,
        ),
        adaptive_threshold=0.99,
    )  # fmt: skip
    write_weights(output / "weights.json", weights)
    return tmp_path, targets[::-1], weights


def run(place, *flags):
    root = place[0]
    return infer_ensemble.main(
        ["--data_dir", str(root / "data"), "--output_dir", str(root / "output"), *flags]
    )


def read(path):
    header, *rows = read_rows(path)
    return header, [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=float)


def test_submission_in_the_samples_order_and_the_report(place, capsys):
    assert run(place) == 0
    text = capsys.readouterr().out
    header, ids, probs = read(place[0] / "output" / "submission.csv")
    assert header == ["ID", "dog", "bird", "고양이"]
    assert ids == [f"{k:03d}" for k in reversed(range(NUM))]
    assert (probs.argmax(axis=1) == np.array([2, 0, 1])[place[1][::-1]]).mean() > 0.6
    for words in (
        "predicted test log loss",
        "averaging the folds",
        "agreement",
        "least certain",
        "label shift",
    ):
        assert words in text
    assert "forbid" in text  # what a correction would use
    expected = read_json(place[0] / "output" / "prediction.json")["test_log_loss"]
    actual = -np.log(probs[np.arange(NUM), np.array([2, 0, 1])[place[1][::-1]]]).mean()
    assert expected["low"] < actual < expected["high"]


def test_results_are_written_before_they_are_reported(place, monkeypatch):
    def fail(*_):
        raise RuntimeError("no report")

    monkeypatch.setattr("src.ensemble.report.test_bins_table", fail)
    with pytest.raises(RuntimeError, match="no report"):
        run(place)
    assert len(read(place[0] / "output" / "submission.csv")[1]) == NUM
    assert read_json(place[0] / "output" / "prediction.json")["test_log_loss"]


def test_no_forecast_outlives_its_submission(place, monkeypatch):
    """Killed between the two files, the next reader would take the one for the other's."""
    run(place)
    output = place[0] / "output"
    forecast = (output / "prediction.json").read_bytes()

    def full(*_, **__):
        assert not (output / "prediction.json").exists()  # were it killed here
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as broken:
        broken.setattr(infer_ensemble, "submit", full)
        with pytest.raises(OSError, match="no room"):
            run(place)
    assert (output / "prediction.json").read_bytes() == forecast  # its submission stands, too
    monkeypatch.setattr("src.ensemble.report.report_forecast", full)
    with pytest.raises(OSError, match="no room"):
        run(place)
    assert (output / "submission.csv").exists() and not list(output.glob(".prediction*"))
    assert not (output / "prediction.json").exists()


def test_prior_correction_lowers_the_actual_log_loss(place):
    losses = {}
    for choice in ("off", "on"):
        path = place[0] / f"{choice}.csv"
        run(place, "--prior_correction", choice, "--output", str(path))
        probs = read(path)[2]
        true = probs[np.arange(NUM), np.array([2, 0, 1])[place[1][::-1]]]
        losses[choice] = -np.log(true).mean()
    assert losses["on"] < losses["off"] - 0.1


def test_fewer_models_and_views_say_so(place, capsys):
    assert run(place, "--models", "a", "--tta_steps", "1") == 0
    said = capsys.readouterr().out
    assert "75% of the weight moved" in said and "the forecast is of those" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "zebra"], "its models are a, b"),
        (["--tta_steps", "0"], "--tta_steps 0"),
        (["--alias_policy", "halve"], "alias_policy"),
        (["--data_dir", "no/such/folder"], "no/such/folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_the_earlier_submission(place, flags, message):
    run(place)
    path = place[0] / "output" / "submission.csv"
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as error:
        run(place, *flags)
    assert "\n" not in str(error.value) and path.read_bytes() == before


def test_models_that_are_gone_or_trained_again_are_refused(place):
    output = place[0] / "output"
    write_json(output / "b" / "fold1" / "finished.json", {"config_hash": "new"})
    with pytest.raises(UserError, match="trained otherwise"):
        run(place)
    write_json(
        output / "b" / "fold1" / "finished.json", {"config_hash": "b", "split_hash": "other"}
    )
    with pytest.raises(UserError, match="or on other folds"):
        run(place)
    for fold in range(2):
        (output / "b" / f"fold{fold}" / "finished.json").unlink()
    with pytest.raises(UserError, match="has no finished fold"):
        run(place)
    assert run(place, "--models", "a") == 0


def test_a_copy_of_a_folds_folder_is_not_averaged(place):
    run(place)
    path = place[0] / "output" / "submission.csv"
    before = path.read_bytes()
    folder = place[0] / "output" / "b"
    shutil.copytree(folder / "fold0", folder / "fold0_before")
    assert run(place) == 0 and path.read_bytes() == before


def test_columns_that_match_no_class_are_refused(place):
    path = place[0] / "data" / "sample_submission.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("dog", "dig"), encoding="utf-8")
    with pytest.raises(UserError, match=r"'dig' matches no class .* column: dog\)"):
        run(place)


def test_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"run optimize_weights\.py first"):
        infer_ensemble.main(["--output_dir", str(tmp_path)])


def test_other_images_under_the_same_ids_are_answered_anew(place):
    (place[0] / "data" / "test" / "000.jpg").write_bytes(b"another picture")
    with pytest.raises(UserError):  # the fakes have no network: it would have to be run
        run(place)
