"""scripts/predict.py: what it prints and writes is what the library predicts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import src
from scripts.predict import name_images, write_masks
from src.data.decode import decode_mask, write_picture
from src.pipelines.library import MaskPredictions
from src.tool_config import PredictConfig
from tests.scripts.conftest import Place


def test_photographs_need_no_flag() -> None:
    assert name_images(["a.jpg", "--run", "r", "b/", "--top=3", "c"]) == [
        "--run", "r", "--top=3", "--images", "a.jpg", "b/", "c",
    ]  # fmt: skip
    assert name_images(["--images", "a", "b", "--top", "2", "c"]) == [
        "--top", "2", "--images", "a", "b", "c",
    ]  # fmt: skip
    assert name_images(["--help"]) == ["--help"]


@pytest.mark.parametrize("of", ["run", "ensemble", "ensemble as a run"])
def test_classes_are_printed_and_written(place: Place, call: Any, of: str) -> None:
    images = place.data / "test"
    flags = {
        "run": ["--run", str(place.run)],
        "ensemble": ["--output_dir", str(place.output)],
        "ensemble as a run": ["--run", str(place.output)],
    }[of]
    loaded = src.load_run(place.run, device="cpu") if of == "run" else src.load_ensemble(
        place.output, device="cpu"
    )  # fmt: skip
    expected = loaded.predict(images)
    table = place.output / "found.csv"
    done = call("scripts.predict", str(images), *flags, "--device", "cpu", "--output", str(table))
    assert done.status == 0, done.err
    first = done.out.splitlines()[0]
    (best, p), *_ = expected.top(1)[0]
    assert first.startswith(f"{expected.images[0]}: {best} {p:.3f}, ")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    written = np.array([[float(row[c]) for c in expected.classes] for row in rows])
    np.testing.assert_allclose(written, expected.probs, atol=1e-5)
    one = place.output / "one.json"
    image = sorted(images.iterdir())[0]
    assert call("scripts.predict", *flags, "--device", "cpu", "--top", "1", "--output", str(one),
                str(image)).status == 0  # fmt: skip
    (row,) = json.loads(one.read_text(encoding="utf-8"))["predictions"]
    assert row["image"] == str(image) and next(iter(row["classes"])) == best


def test_mistakes_are_one_line(place: Place, call: Any) -> None:
    run = ("--run", str(place.run))
    assert call("scripts.predict", *run).is_one_line("no photographs")
    assert call("scripts.predict", *run, "gone.jpg").is_one_line("gone.jpg", "no such image")
    assert call("scripts.predict", "--run", "nowhere", "a.jpg").is_one_line("nowhere")
    assert call("scripts.predict", *run, "a.jpg", "--output", "x.txt").is_one_line(".csv or .json")
    assert call("scripts.predict", *run, "a.jpg", "--topp", "1").is_one_line("--top")
    image = str(sorted((place.data / "test").iterdir())[0])
    ensemble = ("--run", str(place.output), image, "--tta_steps", "2")
    assert call("scripts.predict", *ensemble).is_one_line("--tta_steps 2", "leave it out")


@pytest.mark.parametrize("script", ["predict", "export"])
def test_output_replaces_nothing_of_yours(place: Place, call: Any, script: str) -> None:
    image = sorted((place.data / "test").iterdir())[0]
    more = [str(image)] if script == "predict" else ["--format", "safetensors"]
    command = (f"scripts.{script}", "--run", str(place.run), *more)
    own, link = place.output / "own.csv", place.output / "link.csv"
    own.write_text("days of work")
    link.symlink_to(own)
    for path in (own, link, place.data / "none" / "a.csv", place.run / "best.safetensors"):
        before = path.read_bytes() if path.exists() else b""
        assert call(*command, "--output", str(path)).is_one_line("--output", str(path)), path
        assert (path.read_bytes() if path.exists() else b"") == before
    for _ in range(2):
        assert call(*command, "--output", str(place.output / "new.csv")).status == 0


@pytest.mark.parametrize("script", ["predict", "export"])
def test_what_is_no_finished_run_is_one_line(fresh: Place, call: Any, script: str) -> None:
    assert fresh.train().status == 0
    image = sorted((fresh.data / "test").iterdir())[0]
    more = [str(image)] if script == "predict" else ["--format", "safetensors"]
    command = (f"scripts.{script}", "--run", str(fresh.run), *more)
    (fresh.run / "finished.json").unlink()
    assert call(*command).is_one_line("is not finished", "run its training command again")
    for name in ("finished.json", "config.yaml"):
        (fresh.run / name).unlink(missing_ok=True)
        (fresh.run / name).mkdir()
        assert call(*command).is_one_line(name, "run its training command again")


def test_masks_of_equal_names_stay_apart_where_case_is_not_seen(tmp_path: Path) -> None:
    names = ["x/a.png", "y/a-2.png", "z/a.png", "w/A.png"]
    for name in names:
        write_picture(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    images = tuple(str(tmp_path / name) for name in names)
    masks = tuple(np.full((4, 4), label, np.uint8) for label in range(4))
    found = MaskPredictions(images, ("background", "b", "c", "d"), masks)
    write_masks(PredictConfig(output=str(tmp_path / "out")), found)
    written = sorted((tmp_path / "out" / "masks").iterdir())
    assert len({path.name.casefold() for path in written}) == 4
    assert {int(decode_mask(path).max()) for path in written} == {0, 1, 2, 3}


def test_masks_of_earlier_photographs_are_said(tmp_path: Path, capsys) -> None:
    for name in ("a", "b"):
        write_picture(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
        found = MaskPredictions(
            (str(tmp_path / f"{name}.png"),), ("background", "b"), (np.ones((4, 4), np.uint8),)
        )
        write_masks(PredictConfig(output=str(tmp_path / "out")), found)
    said = capsys.readouterr().out
    assert said.count("note:") == 1 and "holds 1 mask of other images, such as a.png" in said
