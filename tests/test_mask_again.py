"""Mask runs that are started again: on other data, with other options, after a stop."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

import infer_segmentation
import train_distill
import train_micro
from src.engine.weights import load_weights
from src.pipelines import micro
from src.runs import Run
from src.script import UserError
from tests.mask_runs import FREE, TINY, draw_lanes, lane


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    return draw_lanes(tmp_path / "bars")


def test_a_name_taken_by_other_data_is_refused_and_moved_data_are_not(
    bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of two projects are often called the same, and so are their images."""
    other = tmp_path / "elsewhere" / "bars"
    shutil.copytree(bars, other)
    short = ("--epochs", "1", "--tta_steps", "1")
    assert lane(tmp_path / "out", "--data_dir", str(bars), *short) == 0
    run = next((tmp_path / "out" / "lane").glob("*/fold0"))
    for place in (("--data_dir", str(other)), ("--name", run.parent.name)):  # or scenes
        with pytest.raises(UserError, match=f"was trained on --data_dir {bars}, not on .*--name"):
            lane(tmp_path / "out", *place, *short)
    (run / "finished.json").unlink()
    (run / "last.pt").touch()  # as if it had been stopped
    with pytest.raises(UserError, match=f"if both hold the same, --data_dir {bars}$"):
        lane(tmp_path / "out", "--data_dir", str(other), *short)
    (run / "last.pt").unlink()
    assert lane(tmp_path / "out", "--data_dir", str(bars), *short) == 0
    shutil.rmtree(bars)
    assert lane(tmp_path / "out", "--data_dir", str(other), *short) == 0
    assert "skipped" in capsys.readouterr().out


def test_changed_masks_are_told_by_a_finished_run_and_by_one_that_goes_on(
    bars: Path, tmp_path: Path
) -> None:
    mask = bars / "train" / "masks" / "a.png"
    whole = mask.read_bytes()
    options = ("--data_dir", str(bars), "--epochs", "2", "--tta_steps", "1", "--name", "net")
    again = f"{tmp_path / 'out' / 'lane' / 'net' / 'fold0'} was .* on other images.*: restore them,"

    def change() -> None:
        cv2.imwrite(str(mask), 1 - cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE))

    assert lane(tmp_path / "out", *options) == 0
    run = Run(tmp_path / "out" / "lane" / "net" / "fold0")
    change()
    with pytest.raises(UserError, match=again):
        lane(tmp_path / "out", *options)
    run.finished.unlink()  # as if it had been stopped
    with pytest.raises(UserError, match=again):
        lane(tmp_path / "out", *options)
    mask.write_bytes(whole)
    assert lane(tmp_path / "out", *options) == 0
    picture = bars / "train" / "images" / "b.png"
    cv2.imwrite(str(picture), 255 - cv2.imread(str(picture)))
    with pytest.raises(UserError, match=again):
        lane(tmp_path / "out", *options)


@pytest.mark.parametrize("track", ["micro", "distill"])
def test_runs_of_changed_data_are_refused_on_every_track(
    bars: Path, tmp_path: Path, track: str
) -> None:
    where = ["--data_dir", str(bars), "--output_dir", str(tmp_path / "out"), "--name", "net"]

    def train() -> int:
        micro._read.cache_clear()  # another process
        if track == "micro":
            return train_micro.main([*FREE, *where, "--epochs", "1"])
        nets = ("--student", "tu-test_resnet", "--teacher", "tu-test_resnet", "--arch", "unet")
        plain = ("--student_pretrained", "none", "--teacher_pretrained", "none")
        short = ("--epochs", "1", "--allow_weak_teacher", "--batch_size", "4", "--config", "")
        return train_distill.main([*TINY, *where, *nets, *plain, *short])

    assert train() == 0
    for kind in ("images", "masks"):
        shutil.copy(bars / "train" / kind / "a.png", bars / "train" / kind / "z.png")
    with pytest.raises(UserError, match=r"was trained on other images.*: restore them, pass"):
        train()


def test_an_interrupted_run_goes_on_bit_for_bit(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.engine.loop as loop

    data = ("--data_dir", str(bars), "--epochs", "3", "--name", "net")
    assert lane(tmp_path / "whole", *data) == 0
    write, calls = loop.write_metrics, []

    def stop_after_first(*args: Any) -> None:
        write(*args)
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "write_metrics", stop_after_first)
    assert lane(tmp_path / "parts", *data) != 0
    assert not (tmp_path / "parts" / "lane" / "net" / "fold0" / "finished.json").exists()
    assert lane(tmp_path / "parts", *data) == 0
    ours, theirs = (
        load_weights(tmp_path / name / "lane" / "net" / "fold0" / "best.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_refused_options_change_nothing_of_the_run_that_has_begun(
    bars: Path, tmp_path: Path
) -> None:
    data = ("--data_dir", str(bars), "--name", "net")
    assert lane(tmp_path, *data, "--epochs", "1", "--keep_last", "true") == 0
    run = tmp_path / "lane" / "net" / "fold0"
    (run / "finished.json").unlink()  # as if it had been stopped
    before = [(run / name).read_bytes() for name in ("config.yaml", "runtime.json")]
    with pytest.raises(UserError, match="was started with other options"):
        lane(tmp_path, *data, "--epochs", "2", "--precision", "bf16")
    assert before == [(run / name).read_bytes() for name in ("config.yaml", "runtime.json")]


def test_other_folds_and_a_disk_cache(bars: Path, tmp_path: Path) -> None:
    argv = ("--data_dir", str(bars), "--epochs", "1", "--name", "f", "--cache", "disk")
    assert lane(tmp_path / "out", *argv, "--folds", "2", "--seed", "1") == 0
    with pytest.raises(UserError, match="folds was 2"):
        lane(tmp_path / "out", *argv, "--folds", "3", "--seed", "1")
    run = tmp_path / "out" / "lane" / "f" / "fold0"
    assert infer_segmentation.main(  # the folds do not depend on the run's own seed
        ["--runs", str(run), "--split", "valid", "--device", "cpu", "--output", str(tmp_path / "v")]
    ) == 0  # fmt: skip
