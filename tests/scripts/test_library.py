"""The library predicts what the scripts predict, from any working directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import src
from benchmarks.kill_resume import MODEL
from src.metrics.classification import softmax
from src.script import UserError
from tests.scripts.conftest import Place


def test_a_run_predicts_what_inference_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    images = sorted((place.data / "test").iterdir())
    found = src.load_run(place.run, device="cpu").predict(images)
    kept = softmax(np.load(place.run / "test_logits.npy")[0].astype(float))
    np.testing.assert_allclose(found.probs, kept, atol=2e-3)  # float16 logits
    assert found.classes == ("evening", "noon") and len(found.images) == len(images)
    best = found.top(1)[0][0]
    assert best == (found.classes[found.probs[0].argmax()], pytest.approx(found.probs[0].max()))


def test_the_ensemble_predicts_the_submission(place: Place) -> None:
    found = src.load_ensemble(place.output, device="cpu").predict(place.data / "test")
    submission = pd.read_csv(place.output / "submission.csv", dtype={"ID": str})
    assert [Path(name).stem for name in found.images] == submission["ID"].tolist()
    np.testing.assert_allclose(found.probs, submission[list(found.classes)], atol=1e-5)


def test_training_as_a_library(fresh: Place) -> None:
    config = src.FoldConfig(
        model=MODEL, data_dir=str(fresh.data), output_dir=str(fresh.output), pretrained="none",
        folds=2, image_size=32, epochs=1, batch_size=12, device="cpu", num_workers=0,
        autotune="off",
    )  # fmt: skip
    (folder,) = src.train(config)
    assert folder == fresh.run and (folder / "oof.npz").exists()
    assert src.load_run(folder, device="cpu").predict(fresh.data / "test").probs.shape == (12, 2)


def test_mistakes_are_one_line(place: Place) -> None:
    run = src.load_run(place.run, device="cpu")
    with pytest.raises(UserError, match="no such image"):
        run.predict("gone.jpg")
    with pytest.raises(UserError, match=r"is no run.* run optimize_weights.py first"):
        src.load_run(place.output)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = src.load_anything


def test_test_images_are_decoded_once_for_all_folds(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.data import canonical

    read, decode = [], canonical.decode_image
    monkeypatch.setattr(
        canonical, "decode_image", lambda path, **how: read.append(path) or decode(path, **how)
    )
    for sidecar in place.output.rglob("test.json"):
        sidecar.unlink()
    assert len(list(place.output.rglob("test_logits.npy"))) == 2
    assert place.infer().status == 0
    assert len(read) == len(set(read)) == 12


def test_the_forecast_of_another_blend_or_a_damaged_one_is_not_used(place: Place) -> None:
    path = place.output / "prediction.json"
    content = json.loads(path.read_text())
    del content["checksum"]  # edited on purpose
    assert src.load_ensemble(place.output).temperature == content["average_temperature"] != 1
    for change in ({"weights": "0" * 8}, {"average_temperature": -1}):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=r"prediction\.json.*run infer_ensemble\.py again"):
            src.load_ensemble(place.output)
    path.unlink()
    with pytest.raises(UserError, match=r"missing beside submission\.csv: run infer_ensemble"):
        src.load_ensemble(place.output)
    (place.output / "submission.csv").unlink()  # no inference yet
    assert src.load_ensemble(place.output).temperature == 1
