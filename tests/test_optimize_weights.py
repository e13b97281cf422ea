from __future__ import annotations

import json

import numpy as np
import pytest

import optimize_weights
import tests.ensemble.conftest as shared
from benchmarks.blend import write_folds as save_folds
from src.data.csv_io import read_csv
from src.ensemble.weights import read_weights
from src.script import UserError

make_world = shared.make_world


def write_folds(world, folds=None):
    """Write the world's folds.csv, and return the hash its OOF files must carry."""
    names = [world.classes[k] for k in world.targets]
    folds = world.folds if folds is None else folds
    return save_folds(world.root / "folds.csv", world.ids.tolist(), names, folds)


@pytest.fixture
def world(make_world):
    world = make_world(num_rows=240)
    folds_hash = write_folds(world)
    world.save("strong", world.logits(signal=3.5), folds_hash=folds_hash)
    world.save("weak", world.logits(signal=2.0, scale=3.0), folds_hash=folds_hash)
    return world


def run(world, *flags):
    place = ["--output_dir", str(world.root), "--data_dir", str(world.root / "none")]
    return optimize_weights.main([*place, "--trials", "4", "--presets", "", *flags])


def test_weights_are_written_and_every_method_is_shown(world, capsys):
    assert run(world) == 0
    text = capsys.readouterr().out
    for method in ("uniform", "prior weights", "best single", "greedy", "convex"):
        assert method in text
    assert "duality gap" in text and "calibrated" in text and "95 % interval" in text
    assert "\nlinear pool " in text, "whose weights these are: weights.json may have others"
    weights = read_weights(world.root / "weights.json")
    scores = weights.scores
    fitted = {name: score["fitted"] for name, score in scores.items()}
    assert all(fitted["convex"] <= fitted[n] + 1e-6 for n in fitted if n in text.split("convex")[0])
    assert scores["calibrated"]["low"] < scores["calibrated"]["nested"]
    assert weights.blend.members[0] == ("strong", "identity")
    assert weights.config_hashes["weak"] == dict.fromkeys("012", "hash of weak")
    assert run(world) == 0  # the search resumes
    assert (world.root / "weights.json").exists()


def test_weights_are_written_before_they_are_reported(world, monkeypatch):
    def fail(*_):
        raise RuntimeError("no report")

    monkeypatch.setattr("src.ensemble.report.scores_table", fail)
    with pytest.raises(RuntimeError, match="no report"):
        run(world, "--trials", "0")
    assert read_weights(world.root / "weights.json").scores


def test_the_same_command_gives_the_same_weights(world):
    run(world)
    first = (world.root / "weights.json").read_bytes()
    (world.root / "blend_study.journal").unlink()
    run(world)
    assert (world.root / "weights.json").read_bytes() == first


def test_one_model_with_one_view(world):
    assert run(world, "--models", "weak", "--tta_steps", "1", "--trials", "0") == 0
    blend = read_weights(world.root / "weights.json").blend
    assert blend.members == (("weak", "identity"),)
    assert blend.temperature > 1.5  # its logits are three times too large


def test_quarantined_rows_are_not_missed(world, capsys):
    folds = world.folds.copy()
    folds[5] = -1
    folds_hash = write_folds(world, folds)
    world.folds = folds
    logits = world.logits()
    for fold in range(3):
        world.save_fold("strong", fold, logits, folds_hash=folds_hash)
    assert run(world, "--models", "strong") == 0
    assert "239 rows" in capsys.readouterr().out


def test_prior_weights_come_from_the_presets(world, tmp_path):
    presets = tmp_path / "presets.yaml"
    presets.write_text("models:\n  strong: {prior_weight: 0}\n  weak: {prior_weight: 7}\n")
    assert optimize_weights.read_priors(str(presets)) == {"strong": 0.0, "weak": 7.0}


def test_names_of_the_same_thing_are_suggested_and_then_taken(make_world, capsys):
    world = make_world(num_rows=400)
    folds_hash = write_folds(world)
    logits = world.logits(signal=8.0)
    same = (world.targets == 1) | (world.targets == 2)
    half = logits[:, same][..., 1:3].mean(axis=2)
    logits[:, same, 1] = half + 0.2 * world.rng.standard_normal(half.shape)
    logits[:, same, 2] = half + 0.2 * world.rng.standard_normal(half.shape)
    world.save("m", logits, folds_hash=folds_hash)
    run(world, "--suggest_aliases")
    assert "class_1_가" in capsys.readouterr().out
    path = world.root / "suggested_aliases.csv"
    (pair,) = read_csv(path, unescape=True).to_numpy().tolist()
    assert set(pair) == {"class_1_가", "class_2_가"}
    before = json.loads((world.root / "weights.json").read_text(encoding="utf-8"))
    run(world, "--aliases", str(path))
    after = json.loads((world.root / "weights.json").read_text(encoding="utf-8"))
    assert len(after["classes"]) == 3 and len(after["source_classes"]) == 4
    gained = before["scores"]["calibrated"]["nested"] - after["scores"]["calibrated"]["nested"]
    assert gained == pytest.approx(np.log(2) * same.mean(), abs=0.08)


def test_names_that_a_run_learned_as_one_class_stay_one_without_the_alias_file(make_world):
    world = make_world(num_rows=120)
    folds_hash, names = write_folds(world), world.classes
    world.targets[world.targets == 1] = 0
    world.targets[world.targets > 1] -= 1
    world.classes = (names[0], *names[2:])
    world.save("m", world.logits(), folds_hash=folds_hash)
    done = {"config_hash": "hash of m", "files": {}}
    for fold in range(3):
        folder = world.root / "m" / f"fold{fold}"
        (folder / "finished.json").write_text(json.dumps(done))
        config = {"options": {}, "resolved": {"aliases": [names[:2]]}, "runtime": {}}
        (folder / "config.yaml").write_text(json.dumps(config))
    run(world)
    assert read_weights(world.root / "weights.json").alias_groups == (names[:2],)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "absent"], "--models absent"),
        (["--tta_steps", "6"], "--tta_steps 6"),
        (["--trails", "3"], "did you mean --trials"),
        (["--aliases", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_are_one_line(world, flags, message):
    with pytest.raises(UserError, match=message) as error:
        run(world, *flags)
    assert "\n" not in str(error.value)
    assert not (world.root / "weights.json").exists()


def test_before_any_training(tmp_path):
    with pytest.raises(UserError, match=r"train_fold\.py"):
        optimize_weights.main(["--output_dir", str(tmp_path)])
