"""scripts/check_data.py on data with planted faults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from benchmarks.tracks import draw_bars
from scripts import check_data
from src.pipelines.check_data import Check, show_aliases
from src.pipelines.check_labels import Verdict, rank
from tests.scripts.conftest import Place


def check(place: Place, *flags: str) -> tuple[int, dict[str, Any], str]:
    """Return exit status, data.json and the page."""
    done = place.start("scripts.check_data", "--device", "cpu", *flags)
    assert "Traceback" not in done.err, done.err
    folder = place.output / "report"
    content = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    return done.status, content, (folder / "data.html").read_text(encoding="utf-8")


def said(content: dict[str, Any], gravity: str) -> str:
    return "\n".join(f["finding"] for f in content["findings"] if f["gravity"] == gravity)


def test_sound_data_are_counted_and_nothing_is_amiss(fresh: Place) -> None:
    for name in ("report/.data.json", ".suspect_labels.csv"):  # a check was killed
        half = fresh.output / f"{name}.4242.tmp"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.touch()
    status, content, html = check(fresh, "--probe", "off")
    assert status == 0 and not said(content, "error") and not said(content, "warning")
    assert not [*fresh.output.rglob("*.tmp")]
    assert (content["train"], content["test"], content["classes"]) == (32, 12, 2)
    assert content["by_class"] == {"evening": 16, "noon": 16}
    assert content["sizes"]["width train"] == [32.0] * 5
    assert "too few images to compare" in said(content, "note") and "32 × 32" in html
    assert not list(fresh.output.glob("*.csv")), "nothing judged the labels"


def test_columns_are_those_that_are_named(fresh: Place) -> None:
    rows = [(f"{n}.png", f"x{n % 3}", f"y{n % 4}") for n in range(12)]
    for image, *_ in rows:
        cv2.imwrite(str(fresh.data / "train" / image), np.full((32, 32, 3), 9, np.uint8))
    table = pd.DataFrame(rows, columns=["image", "label", "tone"])
    table.to_csv(fresh.data / "train.csv", index=False)
    _, content, _ = check(fresh, "--probe", "off", "--label_column", "tone")
    assert content["by_class"] == {f"y{n}": 3 for n in range(4)}


def test_planted_faults_are_found(fresh: Place) -> None:
    train, test = fresh.data / "train", fresh.data / "test"
    evening, noon = (sorted((train / name).iterdir()) for name in ("evening", "noon"))
    shutil.copy(evening[0], train / "noon" / "copy.png")  # a copy under the other label
    first, second = sorted(test.iterdir())[:2]
    shutil.copy(noon[0], first)  # a train image in test
    second.write_bytes(second.read_bytes()[:60])
    evening[1].write_bytes(b"no image")
    shutil.copytree(train / "evening", train / "Even ing")
    status, content, html = check(fresh, "--probe", "off")
    assert status == 1
    assert "1 test image unreadable: restore test " + second.stem in said(content, "error")
    warned = said(content, "warning")
    assert "2 unreadable train images" in warned
    assert "of class names with the same letters, as Even ing and evening" in warned
    assert content["copies"]["exact, several labels"] == 15, "14 doubles and the planted one"
    assert content["copies"]["exact, train and test"] == 1
    assert "data:image/jpeg" in html and "several labels" in html


def test_numbers_of_the_same_digits_are_not_alike() -> None:
    counted = Check()
    show_aliases(counted, ["10", "01", "c12", "c21", "noon", "no on"])
    assert counted.numbers["names_alike"] == [["noon", "no on"]]


def test_copies_in_several_folds_are_a_leak(place: Place) -> None:
    folds = pd.read_csv(place.output / "folds.csv", dtype=str)
    one, other = (folds[folds["fold"] == fold]["image"].iloc[0] for fold in ("0", "1"))
    shutil.copy(place.data / one, place.data / other)
    _, content, _ = check(place, "--probe", "off")
    assert "1 set of exact copies in several folds" in said(content, "warning")


def test_a_wrong_label_is_the_first_suspect_of_oof(place: Place) -> None:
    status, content, html = check(place, "--probe", "off", "--examples", "2")
    suspects = pd.read_csv(place.output / "suspect_labels.csv", dtype={"id": str})
    assert status == 0 and content["suspect_labels"] == len(suspects)
    assert re.search(r"\(([\d.]+%)\) contradicted by the OOF \(\1\): ", said(content, "note"))
    assert (suspects["label"] != suspects["suggested"]).all()
    assert (suspects["p_suggested"] > suspects["p_label"]).all()
    assert suspects["p_label"].is_monotonic_increasing and set(suspects["judge"]) <= {"OOF"}
    assert "Suspicious labels" in html


def test_a_probe_judges_where_weights_are(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import save_file

    wrong = sorted((fresh.data / "train" / "noon").iterdir())[0]
    shutil.move(wrong, fresh.data / "train" / "evening" / "wrong.png")
    monkeypatch.chdir(fresh.data.parent)
    weights = Path("input") / "weights"
    weights.mkdir(parents=True)
    model = timm.create_model("test_resnet.r160_in1k")
    save_file(model.state_dict(), weights / "test_resnet.r160_in1k.safetensors")
    _, content, _ = check(fresh, "--image_size", "32")
    assert content["probe"]["accuracy"] > 0.8, "dark and bright on one side are told apart"
    suspects = pd.read_csv(fresh.output / "suspect_labels.csv")
    assert suspects["id"].iloc[0] == "train/evening/wrong.png"
    assert suspects["suggested"].iloc[0] == "noon" and suspects["judge"].iloc[0] == "probe"


def test_what_two_judges_contradict_comes_first() -> None:
    label = {"a": "x", "b": "x", "c": "x"}
    one = Verdict("OOF", ["a", "b"], np.array([9.0, 2.0]), ["y", "y"], np.array([0.9, 0.8]))
    two = Verdict("probe", ["b", "c"], np.array([3.0, 1.0]), ["y", "x"], np.array([0.9, 0.6]))
    rows = rank([one, two], label)
    assert [row[0] for row in rows] == ["b", "a"], "c's label is not contradicted"
    assert rows[0][5] == "OOF and probe" and rows[0][3] == pytest.approx(np.exp(-2.0))


def test_masks_are_counted_and_unusable_ones_are_errors(tmp_path: Path) -> None:
    data, out = tmp_path / "bars", tmp_path / "out"
    draw_bars(data / "train", "abcdef", 2, seed=0)
    argv = ["--data_dir", str(data), "--output_dir", str(out)]
    masks = data / "train" / "masks"
    cv2.imwrite(str(masks / "a.png"), np.zeros((40, 48), np.uint8))
    assert check_data.main(argv) == 0
    content = json.loads((out / "report" / "data.json").read_text())
    assert content["images"] == 6 and content["without_foreground"] == 1
    assert content["labels"]["foreground"]["share"] == pytest.approx(5 * 8 / (6 * 48))
    assert content["sizes"] == {"48 × 40": 6} and content["foreground"]["least"] == 0
    cv2.imwrite(str(masks / "b.png"), np.zeros((20, 48), np.uint8))
    assert check_data.main(argv) == 1
    said = json.loads((out / "report" / "data.json").read_text())["findings"][0]["finding"]
    assert "1 image not usable with its mask" in said and "b.png is 48x20 pixels but its" in said


def test_no_data_is_one_line(tmp_path: Path, call: Any) -> None:
    assert call("scripts.check_data", "--data_dir", str(tmp_path / "gone")).is_one_line("missing")


def test_classes_that_no_mask_holds_are_named_in_one_line(tmp_path: Path) -> None:
    draw_bars(tmp_path / "train", "abcdef", 3, seed=0)
    for path in (tmp_path / "train" / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(mask == 2, 4, mask))
    assert check_data.main(["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "o")]) == 0
    content = json.loads((tmp_path / "o" / "report" / "data.json").read_text())
    assert "2 classes are in no mask: class_2, class_3" in said(content, "warning").splitlines()


def test_classes_of_masks_that_are_worn_are_classes(tmp_path: Path) -> None:
    for number, name in enumerate(["with_mask", "without_mask"] * 3):
        path = tmp_path / f"data/train/{name}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        cv2.imwrite(str(path), pixels)
    config = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    assert check_data.main(config) == 0


def test_columns_are_refused_where_masks_are_checked(tmp_path: Path, call: Any) -> None:
    for name in ("images/1.jpg", "masks/1.png"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), np.zeros((32, 32), np.uint8))
    said = call("scripts.check_data", "--data_dir", str(tmp_path), "--label_column", "x")
    assert said.is_one_line("--label_column: names a column of a table", "leave it out")


def test_masks_beside_the_images_are_checked(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(3):
        image = np.full((32, 32, 3), 90 + number, np.uint8)
        cv2.imwrite(str(tmp_path / f"train/{number}_sat.jpg"), image)
        cv2.imwrite(str(tmp_path / f"train/{number}_mask.png"), np.eye(32, dtype=np.uint8))
    config = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert check_data.main(config) == 0


def test_a_source_that_there_is_not_is_refused_in_photographs_too(place: Place, call: Any) -> None:
    said = call("scripts.check_data", "--data_dir", str(place.data), "--source", "nonsense")
    assert said.is_one_line("--source 'nonsense'", "auto, or one of")


def test_what_is_neither_is_said_as_training_says_it(tmp_path: Path, call: Any) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    answer = call("scripts.check_data", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path))
    assert answer.status == 2 and answer.is_one_line("write the images of train-images-idx3-ubyte")
