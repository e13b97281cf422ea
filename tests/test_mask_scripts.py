"""train_lane.py, train_distill.py and infer_segmentation.py, end to end on tiny images."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import infer_segmentation
import train_distill
import train_lane
from src.engine.checkpoint import load_weights
from src.ensemble.masks import decode_rle
from src.mask_config import DistillConfig, InferSegmentationConfig, LaneConfig
from src.reader import read_rows
from src.script import UserError
from src.tracks.scenes import find_images

TINY = [
    *("--device", "cpu", "--autotune", "off", "--precision", "fp32", "--ema_decay", "0"),
    *("--num_workers", "0", "--warmup_epochs", "0", "--resolution", "32x32"),
]
LANE = [
    *TINY,
    *("--config", "", "--arch", "unet", "--encoder", "tu-test_resnet", "--pretrained", "none"),
    *("--decoder_width", "32", "--batch_size", "4", "--lr", "2e-3", "--head_lr_mult", "1"),
]


def draw(root: Path, split: str, names: str, num_classes: int, seed: int) -> None:
    """Bright vertical bars are class 1; with more classes the top third is class 2."""
    rng = np.random.default_rng(seed)
    for name in names:
        image = rng.integers(0, 60, (40, 48, 3), np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        left = int(rng.integers(4, 36))
        mask[:, left : left + 8] = 1
        image[mask == 1] += 150
        if num_classes > 2:
            mask[:12], image[:12, :, 0] = 2, 255
        for kind, pixels in (("images", image), ("masks", mask)):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / split / kind / f"{name}.png"), pixels)


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    """Two classes, test masks withheld."""
    for split, names in (("train", "abcdefgh"), ("val", "ijk"), ("test", "lm")):
        draw(tmp_path / "bars", split, names, 2, seed=len(names))
    for path in (tmp_path / "bars" / "test" / "masks").iterdir():
        path.unlink()
    return tmp_path / "bars"


def lane(out: Path, *argv: str) -> int:
    return train_lane.main([*LANE, "--output_dir", str(out), *argv])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_lanes_from_images_to_submitted_masks(
    bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = ("--data_dir", str(bars))
    for seed in ("0", "1"):
        assert lane(out, *data, "--epochs", "12", "--seed", seed, "--name", f"net{seed}",
                    "--postprocess", "--crop", "24x32") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "lane alone, pooled: iou" in said and "all background scores" in said
    assert "post-processing refused" in said  # three images prove nothing
    done = read(out / "lane" / "net0" / "fold0" / "finished.json")
    assert done["scores"]["pooled_iou/lane"] > 0.5
    assert [row["views"] for row in done["views"]] == [1, 2, 3, 4, 5]

    assert lane(out, *data, "--epochs", "12", "--seed", "0", "--name", "net0",
                "--postprocess", "--crop", "24x32") == 0  # fmt: skip
    assert "skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="epochs was 12"):
        lane(out, *data, "--epochs", "3", "--name", "net0", "--postprocess", "--crop", "24x32")

    masks = tmp_path / "masks"
    runs = str(out / "lane" / "net*" / "fold*")
    assert infer_segmentation.main(
        ["--runs", runs, "--output", str(masks), "--overlays", "--device", "cpu"]
    ) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "2 runs, weights from 3 images" in said and "no scores" in said
    with (masks / "masks.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == ["l", "m"]
    for line in lines:
        mask = cv2.imread(str(masks / "masks" / f"{line['id']}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (40, 48) and set(np.unique(mask)) <= {0, 1}
        assert np.array_equal(decode_rle(line["rle"], 40, 48), mask == 1)
        assert (masks / "overlays" / f"{line['id']}.png").is_file()

    valid = ["--split", "valid", "--device", "cpu", "--worst", "2"]
    one = ["--runs", str(out / "lane" / "net0" / "fold0")]
    assert infer_segmentation.main([*one, *valid, "--output", str(tmp_path / "v")]) == 0
    # the same net, views and threshold on the same images: the same pixels
    again = read(tmp_path / "v" / "scores.json")["scores"]
    assert again == pytest.approx(done["scores"], abs=2e-3)
    assert (tmp_path / "v" / "worst.png").is_file()
    capsys.readouterr()
    pair = [str(out / "lane" / f"net{seed}" / "fold0") for seed in "01"]
    assert infer_segmentation.main(["--compare", *pair]) == 0
    assert "pooled_mean_iou_foreground: " in capsys.readouterr().out
    weights = str(out / "lane" / "net0" / "fold0" / "best.safetensors")
    assert infer_segmentation.main(
        ["--checkpoint", weights, "--resolution", "native", "--output", str(tmp_path / "n"),
         "--device", "cpu", "--tta_steps", "2"]
    ) == 0  # fmt: skip


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


def test_without_data_road_scenes_are_generated(tmp_path: Path) -> None:
    assert lane(tmp_path, "--epochs", "1", "--num_scenes", "6", "--num_frames", "2") == 0
    run = tmp_path / "lane" / "road_scenes-unet-tu-test_resnet" / "fold0"
    resolved = yaml.safe_load((run / "config.yaml").read_text())["resolved"]
    assert resolved["split"] == "fold 0 of 5, grouped"  # frames of a scene stay together
    assert infer_segmentation.main(
        ["--runs", str(run), "--output", str(tmp_path / "masks"), "--device", "cpu"]
    ) == 0  # fmt: skip
    assert "pooled_iou/lane" in read(tmp_path / "masks" / "scores.json")["scores"]


def test_mistakes_are_one_line(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        lane(tmp_path, "--data_dir", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--fold"):
        lane(tmp_path, "--data_dir", str(bars), "--fold", "3")
    with pytest.raises(UserError, match="--runs"):
        infer_segmentation.main(["--runs", str(tmp_path / "nothing*")])
    with pytest.raises(UserError, match="--runs is missing"):
        infer_segmentation.main([])
    with pytest.raises(UserError, match="two runs"):
        infer_segmentation.main(["--compare", "a"])


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Three classes."""
    for split, names in (("train", "abcdefgh"), ("val", "ijkl"), ("test", "mn")):
        draw(tmp_path / "shapes", split, names, 3, seed=len(names))
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
    assert "student -> distilled, 1 seeds: pooled_mean_iou" in said
    assert "search: 2 trials" in said
    metrics = (out / "distill" / "trio-distilled" / "fold0" / "metrics.csv").read_text()
    assert "train_kl_size" in metrics and "train_kl_share" in metrics
    assert not list((out / "distill" / "trio-trial0").rglob("*.safetensors"))

    assert distill(out, shapes, *options) == 0
    assert capsys.readouterr().out.count("skipped") == len(roles)
    run = str(out / "distill" / "trio-only_feature" / "fold0")  # it has a projector to drop
    assert infer_segmentation.main(
        ["--runs", run, "--output", str(tmp_path / "masks"), "--device", "cpu"]
    ) == 0  # fmt: skip
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 2


def test_a_weak_teacher_is_refused(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.tracks.roles as roles

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
    assert train_distill.main(
        [*TINY, "--config", "", "--kind", "classification", *nets, "--name", "trio",
         "--student_pretrained", "none", "--teacher_pretrained", "none", "--image_size", "32",
         "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"),
         "--weight_feature", "0.2", "--weight_attention", "0.2",
         "--batch_size", "4", "--epochs", "1", "--folds", "2", "--allow_weak_teacher"]
    ) == 0  # fmt: skip
    assert "best calibrated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "config"), [("configs/lane.yaml", LaneConfig), ("configs/distill.yaml", DistillConfig)]
)
def test_presets_parse(path: str, config: type) -> None:
    from src.reader import fill

    rows = read_rows(Path(path), config)[1]
    for name in rows:
        fill(config, {"model": name, "config": path}, row_by="model")
    assert rows and InferSegmentationConfig().split == "test"


def test_other_folds_and_a_disk_cache(bars: Path, tmp_path: Path) -> None:
    argv = ("--data_dir", str(bars), "--epochs", "1", "--name", "f", "--cache", "disk")
    assert lane(tmp_path / "out", *argv, "--folds", "2", "--seed", "1") == 0
    with pytest.raises(UserError, match="folds was 2"):
        lane(tmp_path / "out", *argv, "--folds", "3", "--seed", "1")
    run = tmp_path / "out" / "lane" / "f" / "fold0"
    assert infer_segmentation.main(  # the folds do not depend on the run's own seed
        ["--runs", str(run), "--split", "valid", "--device", "cpu", "--output", str(tmp_path / "v")]
    ) == 0  # fmt: skip


def test_masks_saved_as_jpeg_are_named(bars: Path, tmp_path: Path) -> None:
    for path in (bars / "train" / "masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(UserError, match=r"masks holds no \.png.*save masks as PNG"):
        lane(tmp_path / "out", "--data_dir", str(bars))


def test_generated_scenes_of_other_sizes_lie_apart(tmp_path: Path) -> None:
    places = []
    for size in ("32x32", "32x48"):
        config = LaneConfig(output_dir=str(tmp_path), resolution=size)
        places.append(find_images(config, num_scenes=5, num_frames=1)[1])
    assert len(set(places)) == 2
    assert all(len(list((place / "images").iterdir())) == 5 for place in places)


@pytest.mark.parametrize("layout", ["coco", "folders"])
def test_lane_runs_alone_see_two_classes_in_a_layout_of_any(tmp_path: Path, layout: str) -> None:
    place = {"coco": "train/_annotations.coco.json", "folders": "images/1.jpg"}[layout]
    (tmp_path / place).parent.mkdir()
    (tmp_path / place).touch()
    assert find_images(LaneConfig(data_dir=str(tmp_path)))[0] == "lanes"
    assert find_images(DistillConfig(data_dir=str(tmp_path)))[0] == layout
    assert find_images(LaneConfig(data_dir=str(tmp_path), source=layout))[0] == layout
