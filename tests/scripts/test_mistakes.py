"""Bad input: one line that names file or flag and the remedy, status 2, nothing half-written."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.script import run_script
from tests.engine.conftest import Bomb
from tests.scripts.conftest import Place

TEST_IMAGE = "test/033.png"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--modle", "x"], ["--modle", "--model"]),
        (["--model", "test_resnte"], ["test_resnte", "test_resnet"]),
        (["--model", ""], ["--model is missing"]),
        (["--fold", "7"], ["--fold 7", "0 to 1"]),
        (["--fold", "-1"], ["--fold"]),
        (["--fold", "first"], ["--fold first"]),
        (["--folds", "4", "--name", "x"], ["folds.csv", "2 folds, not 4"]),
        (["--name", "x", "--data_dir", "no/such"], ["no/such"]),
        (["--config", "no/such.yaml"], ["no/such.yaml"]),
        (["--lr", "quick"], ["lr", "quick"]),
        (["--lr", "1e-5"], ["finished, with other options", "lr was 0.002"]),
        (["--name", "x", "--pretrained", "no/weights.pth"], ["no/weights.pth"]),
        (["--name", "x", "--aliases", "no/aliases.csv"], ["no/aliases.csv"]),
        (["--name", "x", "--device", "mps"], ["--device mps"]),
    ],
)
def test_train_fold(place: Place, flags: list[str], words: list[str]) -> None:
    before = place.whole_results()
    prediction = place.train(*flags)
    assert prediction.status == 2 and prediction.is_one_line(*words)
    assert place.whole_results() == before


@pytest.mark.parametrize(
    "flags", [["--model", "test_resnte"], ["--pretrained", "no/weights.pth"], ["--fold", "first"]]
)
def test_a_mistake_settles_no_folds(fresh: Place, flags: list[str]) -> None:
    assert fresh.train(*flags).status == 2
    assert not fresh.output.exists()


def test_refused_options_change_nothing_of_the_run_that_has_begun(fresh: Place) -> None:
    assert fresh.train("--keep_last", "true").status == 0
    (fresh.run / "finished.json").unlink()  # as if it had been stopped
    before = fresh.whole_results()
    for flags in (["--lr", "1e-5"], ["--seed", "7", "--precision", "bf16"]):
        answer = fresh.train(*flags)
        assert answer.status == 2 and answer.is_one_line("was started with other options")
        assert fresh.whole_results() == before  # what it computes in, above all


def no_classes(place: Place) -> None:
    shutil.rmtree(place.data / "train")
    (place.data / "train").mkdir()


def lost_image(place: Place) -> None:
    (place.data / "train" / "noon" / "001.png").unlink()


def lost_folds(place: Place) -> None:
    (place.output / "folds.csv").write_text("id,fold\n1")


def broken_finish(place: Place) -> None:
    (place.run / "finished.json").write_text("[1")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_classes, ["train"]),
        (lost_image, ["made for other data", "1 removed"]),
        (lost_folds, ["folds.csv", "damaged"]),
        (broken_finish, ["finished.json", "damaged"]),
    ],
)
def test_training_data(place: Place, harm: Callable[[Place], None], words: list[str]) -> None:
    harm(place)
    before = place.whole_results()
    prediction = place.train("--fold", "all")
    assert prediction.status == 2 and prediction.is_one_line(*words)
    assert place.whole_results() == before


def foreign_fold(place: Place) -> None:
    """Overwrite the OOF predictions with others of the same shape but other folds."""
    from src.ensemble.predictions import open_oof, save_oof

    path = place.run / "oof.npz"
    oof = open_oof(path)
    values = {k: getattr(oof, k) for k in ("ids", "targets", "views", "fold", "config_hash")}
    values |= {"logits": np.array(oof.logits), "classes": oof.classes, "folds_hash": "others"}
    save_oof(path, **values)


def other_classes(place: Place) -> None:
    from src.ensemble.predictions import open_oof, save_oof

    path = place.run / "oof.npz"
    oof = open_oof(path)
    keys = ("ids", "targets", "views", "fold", "config_hash", "folds_hash")
    values = {k: getattr(oof, k) for k in keys}
    save_oof(path, **values, logits=np.array(oof.logits), classes=("noon", "night"))


def pickled_oof(place: Place) -> None:
    path = place.run / "oof.npz"
    with np.load(path, allow_pickle=False) as oof:
        arrays = {k: oof[k] for k in oof.files}
    arrays["classes"] = np.array([Bomb(place.output / "executed")], object)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def cut_oof(place: Place) -> None:
    path = place.run / "oof.npz"
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("harm", [foreign_fold, other_classes, pickled_oof, cut_oof])
def test_blending(place: Place, harm: Callable[[Place], None]) -> None:
    harm(place)
    before = place.whole_results()
    prediction = place.optimize()
    assert prediction.status == 2 and prediction.is_one_line("oof.npz")
    assert place.whole_results() == before
    assert not (place.output / "executed").exists()


def blended_without(place: Place) -> None:
    shutil.rmtree(place.run.parent)


def empty_image(place: Place) -> None:
    (place.data / TEST_IMAGE).write_bytes(b"")


def cut_image(place: Place) -> None:
    path = place.data / TEST_IMAGE
    path.write_bytes(path.read_bytes()[:900])


def text_as_image(place: Place) -> None:
    (place.data / TEST_IMAGE).write_text("photograph")


def strange_columns(place: Place) -> None:
    path = place.data / "sample_submission.csv"
    path.write_text(path.read_text().replace("evening,noon", "dawn,dusk"))


def way_out(place: Place) -> None:
    (place.data.parent / "secret.png").write_bytes((place.data / TEST_IMAGE).read_bytes())
    path = place.data / "test.csv"
    path.write_text(path.read_text().replace("./test/033.png", "../secret.png"))


def absolute_way_out(place: Place) -> None:
    way_out(place)
    path = place.data / "test.csv"
    secret = place.data.parent / "secret.png"
    path.write_text(path.read_text().replace("../secret.png", str(secret)))


def pickled_weights(place: Place) -> None:
    (place.run / "best.safetensors").write_bytes(pickle.dumps(Bomb(place.output / "executed")))


def foreign_weights(place: Place) -> None:
    import torch

    from src.engine.weights import save_weights

    save_weights(place.run / "best.safetensors", {"w": torch.zeros(2)}, {})


def hostile_config(place: Place) -> None:
    bomb = f"!!python/object/apply:os.mkdir ['{place.output / 'executed'}']"
    (place.run / "config.yaml").write_text(f"options: {bomb}\n")


def strange_config(place: Place) -> None:
    (place.run / "config.yaml").write_text("options: {}\n")


def cut_weights_json(place: Place) -> None:
    path = place.output / "weights.json"
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (blended_without, ["test_resnet", "--models"]),
        (empty_image, [TEST_IMAGE]),
        (cut_image, [TEST_IMAGE]),
        (text_as_image, [TEST_IMAGE]),
        (strange_columns, ["sample_submission"]),
        (way_out, ["../secret.png", "--allow_outside"]),
        (absolute_way_out, ["secret.png", "--allow_outside"]),
        (pickled_weights, ["best.safetensors", "train"]),
        (foreign_weights, ["best.safetensors"]),
        (hostile_config, ["config.yaml"]),
        (strange_config, ["config.yaml"]),
        (cut_weights_json, ["weights.json"]),
    ],
)
def test_inference(place: Place, harm: Callable[[Place], None], words: list[str]) -> None:
    for path in place.output.rglob("test.json"):
        path.unlink()  # the networks have to run
    harm(place)
    before = place.whole_results()
    prediction = place.infer()
    assert prediction.status == 2 and prediction.is_one_line(*words)
    after = place.whole_results()
    assert {k: v for k, v in after.items() if "/fold1/test" not in k} == {
        k: v for k, v in before.items() if "/fold1/test" not in k
    }
    assert not (place.output / "executed").exists()


def test_allow_outside_lets_a_path_out(place: Place) -> None:
    way_out(place)
    assert place.infer("--allow_outside").status == 0


def test_names_with_control_characters_cannot_forge_lines(capsys: Any, monkeypatch: Any) -> None:
    from src.script import UserError

    def fail(_: list[str]) -> int:
        raise UserError("a\nerror: forged\x1b[2J.png is damaged: restore it")

    with pytest.raises(SystemExit):
        run_script(fail)
    assert capsys.readouterr().err == "error: a error: forged [2J.png is damaged: restore it\n"


@pytest.mark.parametrize("script", ["train_fold", "optimize_weights", "infer_ensemble"])
def test_a_shell_sees_one_line_and_status_2(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--outptu_dir", "x"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: unknown flag --outptu_dir (did you mean --output_dir?)\n"
