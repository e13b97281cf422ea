"""train_distill.py, end to end on tiny images: masks and classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import infer_segmentation
import train_distill
from benchmarks.tracks import draw_bars
from src.engine.runtime import Runtime
from src.script import UserError
from tests.mask_runs import TINY


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Three classes."""
    for split, names in (("train", "abcdefgh"), ("val", "ijkl"), ("test", "mn")):
        draw_bars(tmp_path / "shapes" / split, names, 3, seed=len(names))
    return tmp_path / "shapes"


def distill(out: Path, data: Path, *argv: str) -> int:
    nets = ["--student", "tu-test_resnet", "--teacher", "tu-test_resnet", "--name", "trio"]
    return train_distill.main(
        [*TINY, "--config", "", "--data_dir", str(data), "--output_dir", str(out), *nets,
         "--student_pretrained", "none", "--teacher_pretrained", "none", "--arch", "unet",
         "--batch_size", "4", "--lr", "2e-3", "--head_lr_mult", "1", "--loss", "ce",
         "--student_width", "16", "--teacher_width", "32", *argv]
    )  # fmt: skip


def test_three_runs_a_table_and_a_prediction(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--epochs", "2", "--allow_weak_teacher", "--ablate", "--tune", "2"]
    assert distill(out, shapes, *options) == 0
    said = capsys.readouterr().out
    roles = ["student", "teacher", "distilled", *(f"only_{t}" for t in (
        "kl", "attention", "similarity", "channel", "feature"))]  # fmt: skip
    for role in roles:
        assert (out / "distill" / f"trio-{role}" / "fold0" / "finished.json").is_file()
        assert f"\n{role} " in said
    assert "best mIoU" in said and "final mAcc" in said
    assert "student -> distilled, 1 seed: pooled_mean_iou" in said
    assert "search: 2 trials" in said
    metrics = (out / "distill" / "trio-distilled" / "fold0" / "metrics.csv").read_text()
    assert "train_kl_size" in metrics and "train_kl_share" in metrics
    assert not (out / "distill" / "trio-trial0").exists()  # the journal has its scores

    assert distill(out, shapes, *options) == 0
    assert capsys.readouterr().out.count("skipped") == len(roles)
    teacher = out / "distill" / "trio-teacher"
    teacher.rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"trio-distilled/fold0 was taught by another .*teacher/fo"):
        distill(out, shapes, *options, "--teacher_epochs", "1")  # is no option of the student
    journal = (out / "distill" / "trio" / "trials.journal").read_text()
    assert journal.count('"study"') == 4  # its trials, too, had another
    shutil.rmtree(teacher)
    (tmp_path / "kept").rename(teacher)
    run = str(out / "distill" / "trio-only_feature" / "fold0")  # it has a projector to drop
    assert infer_segmentation.main(
        ["--runs", run, "--output", str(tmp_path / "masks"), "--device", "cpu"]
    ) == 0  # fmt: skip
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 2
    assert "numbers there and in masks.csv: 0 = background, 1 = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--teacher", "convnext_tiny"),
            r"encoder convnext_tiny is unknown \(did you mean tu-conv",
        ),
        (("--teacher", "resnet19"), r"encoder resnet19 is unknown \(did you mean resnet1"),
        (("--teacher", "tu-test_vit"), "--encoder tu-test_vit does not work with --arch unet"),
        (("--teacher_arch", "segnet"), "teacher_arch: 'segnet' is none of empty, segformer"),
        (
            ("--weight_kl", "0", "--weight_channel", "0"),
            "no term has a weight: give one, --weight_kl",
        ),
        (("--seeds", "1", "0", "1"), "--seeds 1 0 1: name each once"),
        (("--image_size", "32"), "--image_size 32: is for --kind classification"),
    ],
)
def test_mistakes_are_met_before_the_student_is_trained(
    shapes: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        distill(tmp_path / "out", shapes, *flags)
    assert not (tmp_path / "out").exists()


def test_a_search_in_several_processes_is_refused_before_the_student_is_trained(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "num_processes", 2)
    with pytest.raises(UserError, match="--tune searches in one process: start it without torch"):
        distill(tmp_path / "out", shapes, "--tune", "2", "--epochs", "1")
    assert not (tmp_path / "out").exists()


def test_a_weak_teacher_is_refused(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.pipelines.distillation as roles

    def pretend(own: Any, role: str, *_: Any) -> dict[str, Any]:
        score = {"student": 0.5, "teacher": 0.4}[role]  # a third role must never begin
        return {"score": score, "monitor": "pooled_mean_iou"}

    monkeypatch.setattr(roles, "train_fresh", pretend)
    with pytest.raises(UserError, match="does not beat"):
        distill(tmp_path, shapes)


def test_classifiers_are_distilled_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for label, shade in (("dark", 40), ("bright", 200)):
        (tmp_path / "data" / "train" / label).mkdir(parents=True)
        for number in range(8):
            image = np.clip(rng.normal(shade, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "data" / "train" / label / f"{number}.png"), image)
    nets = ["--student", "test_resnet", "--teacher", "test_convnext"]
    places = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    tiny = TINY[: TINY.index("--resolution")]  # which is for masks
    kind = [*tiny, "--config", "", "--kind", "classification", *places]
    for flag, value, hint in (("window", "64x64", ""), ("crop", "32x32", "; photographs have --im"),
                              ("student_width", "16", ""), ("arch", "unet", "")):  # fmt: skip
        with pytest.raises(UserError, match=f"--{flag} {value}: is for --kind segmentation{hint}"):
            train_distill.main([*kind, *nets, f"--{flag}", value])
    with pytest.raises(UserError, match="'dice' is unknown; choose from cross_entropy, focal"):
        train_distill.main([*kind, *nets, "--loss", "dice"])
    assert train_distill.main([*kind, *nets, "--folds", "2", "--dry_run"]) == 0
    assert "16 training images, 2 classes" in capsys.readouterr().out
    assert not (tmp_path / "out" / "folds.csv").exists()
    assert train_distill.main(
        [*kind, *nets, "--name", "trio", "--loss", "cross_entropy + 0.5 focal(gamma=1)",
         "--student_pretrained", "none", "--teacher_pretrained", "none", "--image_size", "32",
         "--weight_feature", "0.2", "--weight_attention", "0.2",
         "--batch_size", "4", "--epochs", "1", "--folds", "2", "--allow_weak_teacher"]
    ) == 0  # fmt: skip
    assert "best calibrated" in capsys.readouterr().out
