"""train_lane.py and infer_segmentation.py, end to end on tiny images."""

from __future__ import annotations

import csv
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

import infer_segmentation
import train_distill
import train_lane
import train_micro
from benchmarks.tracks import draw_bars
from scripts import export, predict, report
from src.mask_config import DistillConfig, InferSegmentationConfig, LaneConfig
from src.pipelines.deploy.export import open_export
from src.pipelines.deploy.model import ImageModel
from src.pipelines.deploy.precision import Samples, Scores
from src.pipelines.segmentation import ensemble
from src.pipelines.segmentation.report import decode_rle
from src.pipelines.segmentation.train import describe_looks, locate_data
from src.reader import read_rows
from src.runs import Run, read_done
from src.script import UserError
from tests.mask_runs import FREE, draw_lanes, lane


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    return draw_lanes(tmp_path / "bars")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("script", "flags", "folder"),
    [
        (train_lane, ("--encoder", "tu-test_resnet"), "lane/bars-deeplabv3plus-tu-test_resnet"),
        (train_micro, ("--protocol", "free"), "micro/by_set-bars-seed0"),
        (train_distill, ("--arch", "unet"), "distill/bars-mit_b0-mit_b2-student"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_dry_run_shows_what_is_read_and_writes_nothing(
    bars: Path, tmp_path: Path, script: Any, flags: tuple[str, ...], folder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    place = ["--config", "", "--output_dir", str(out), "--resolution", "32x32", "--dry_run"]
    assert script.main([*place, *flags, "--data_dir", str(bars)]) == 0
    said = capsys.readouterr().out
    assert f"{bars}: 11 labelled images" in said
    assert "  16.67 % of the pixels, in 11 of 11 masks" in said  # 8 of 48 columns
    assert f"{out / folder / 'fold0'}: 8 images to train, 3 held out (the data's own" in said
    assert not out.exists()
    with pytest.raises(UserError, match="--dry_run: name the data, --data_dir"):
        script.main([*place, *flags])
    assert not out.exists()


def test_a_preset_without_the_file_of_presets_is_refused(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model cracks: a row of --config, which is empty"):
        lane(tmp_path, "--data_dir", str(bars), "--model", "cracks")


def test_held_out_images_without_a_lane_are_said_to_measure_nothing(
    bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (bars / "val" / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    assert lane(tmp_path, "--data_dir", str(bars), "--epochs", "1", "--tta_steps", "1") == 0
    assert "note: none of these images holds lane: no score" in capsys.readouterr().out


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
    assert said.count("best of 12 validations of the same images") == 2
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
    assert re.search(r"masks of 2 test images at native size, \d( or \d)? views?[,;]", said)
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
    again = read(tmp_path / "v" / "scores.json")
    row = done["views"][done["tta_steps"] - 1]
    assert again["scores"]["pooled_iou/lane"] == pytest.approx(row["score"], abs=2e-3)
    assert ("chosen on these images" in again["counted"]) == (row["threshold"] != 0.5)
    assert 0 < done["nested"] <= row["best"] + 1e-9
    # what is reported is counted at what the other folds chose, not at what these images like
    assert done["scores"]["pooled_iou/lane"] == pytest.approx(done["nested"], abs=2e-3)
    assert (tmp_path / "v" / "worst.png").is_file()
    assert report.main(["--output_dir", str(out), "--device", "cpu"]) == 0
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<h2>Masks: net") == 2 and "no overlays" not in page
    assert page.count("data:image/jpeg") == 2 * 3, "the three images that were held out"
    iou = done["scores"]["pooled_iou/lane"]
    assert f'<td>lane</td><td class="n" data-v="{iou!r}">' in page
    capsys.readouterr()
    images = bars / "test" / "images"
    assert predict.main(["--run", one[1], str(images), "--output", str(tmp_path / "p"),
                         "--device", "cpu"]) == 0  # fmt: skip
    assert "background" in capsys.readouterr().out.splitlines()[0]
    drawn = cv2.imread(str(tmp_path / "p" / "masks" / "l.png"), cv2.IMREAD_UNCHANGED)
    assert drawn.shape == (40, 48) and set(np.unique(drawn)) <= {0, 1}
    assert (tmp_path / "p" / "overlays" / "m.jpg").is_file()
    pair = [str(out / "lane" / f"net{seed}" / "fold0") for seed in "01"]
    assert infer_segmentation.main(["--compare", *pair]) == 0
    assert "pooled_mean_iou_foreground: " in capsys.readouterr().out
    weights = str(out / "lane" / "net0" / "fold0" / "best.safetensors")
    assert infer_segmentation.main(
        ["--checkpoint", weights, "--resolution", "native", "--output", str(tmp_path / "n"),
         "--device", "cpu", "--tta_steps", "2"]
    ) == 0  # fmt: skip


def test_a_lane_net_on_a_drive(
    bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's folder, and its ONNX file in int8, each draw the video that they are given."""
    out = tmp_path / "out"
    assert lane(out, "--data_dir", str(bars), "--epochs", "2", "--name", "net") == 0
    run = out / "lane" / "net" / "fold0"
    drive, drawn = tmp_path / "drive.avi", tmp_path / "drawn.mp4"
    writer = cv2.VideoWriter(str(drive), cv2.VideoWriter.fourcc(*"MJPG"), 25, (48, 40))
    for path in sorted((bars / "train" / "images").iterdir()):
        writer.write(cv2.imread(str(path)))
    writer.release()
    views = [{"views": n, "threshold": n / 10} for n in (1, 2, 3)]
    several = read_done(Run(run)) | {"views": views, "tta_steps": 3, "threshold": 0.3}
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "read_done", lambda _: several)
        assert open_export(run).about["threshold"] == 0.1, "of the one view that a file has"
    models = [run]
    if all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        assert export.main(["--run", str(run), "--precision", "int8", "--data_dir", ""]) == 0
        said = capsys.readouterr().out
        assert "agrees with PyTorch" in said and "on 3 held-out images" in said
        iou = read(run / "finished.json")["views"][0]["score"]
        assert f"pooled IoU of lane: fp32 {iou:.3f}"[:-1] in said or iou == 0
        models.append(run / "export.int8.onnx")
    for model in models:
        flags = ["--video", str(drive), "--model", str(model), "--output", str(drawn)]
        assert predict.main([*flags, "--device", "cpu", "--frames", "5"]) == 0
        said = capsys.readouterr().out
        assert "5 frames in" in said and "0 dropped" in said and f"{drawn} written" in said
        assert cv2.VideoCapture(str(drawn)).get(cv2.CAP_PROP_FRAME_COUNT) == 5
    content = bytearray(drive.read_bytes())
    frames = [m.start() for m in re.finditer(b"\xff\xd8\xff", content)]
    content[frames[3] :] = bytes(len(content) - frames[3])
    drive.write_bytes(content)
    flags = ["--video", str(drive), "--model", str(run), "--output", str(drawn), "--device", "cpu"]
    assert predict.main(flags) == 0
    assert "note: 3 of about 8 frames could be read: the rest is damaged" in capsys.readouterr().out
    content[frames[0] :] = bytes(len(content) - frames[0])
    drive.write_bytes(content)
    kept = drawn.read_bytes()
    with pytest.raises(UserError, match=f"{drive}: no frame of it can be read"):
        predict.main(flags)
    assert drawn.read_bytes() == kept
    for flag, value in (("--precision", "fp16"), ("--tta_steps", "2")):
        with pytest.raises(UserError, match=f"{flag} {value}: .*leave it out"):
            predict.main([*flags, flag, value])
    with pytest.raises(UserError, match="--model is missing"):
        predict.main(["--video", str(drive)])
    with pytest.raises(UserError, match="one or the other"):
        predict.main(["--video", str(drive), "a.jpg"])


def test_what_choosing_the_weights_was_worth_is_said() -> None:
    rows: list[dict[str, float]] = [
        {"valid_iou": 0.3, "ema_iou": 0.2}, {"train_loss": 1.0}, {"valid_iou": 0.5, "ema_iou": 0.6},
        {"valid_iou": 0.4, "ema_iou": 0.45},
    ]  # fmt: skip
    assert describe_looks(rows, "iou") == (
        "the weights are the best of 6 validations of the same images (0.6000, 0.4500 in the last "
        "epoch)"
    )
    assert describe_looks([{"ema_iou": 0.3}], "iou") == ""


def test_without_data_road_scenes_are_generated(tmp_path: Path) -> None:
    assert lane(tmp_path, "--epochs", "1", "--num_scenes", "6", "--num_frames", "2") == 0
    run = tmp_path / "lane" / "road_scenes-unet-tu-test_resnet" / "fold0"
    resolved = yaml.safe_load((run / "config.yaml").read_text())["resolved"]
    assert resolved["split"] == "fold 0 of 5, grouped"  # frames of a scene stay together
    assert infer_segmentation.main(
        ["--runs", str(run), "--output", str(tmp_path / "masks"), "--device", "cpu"]
    ) == 0  # fmt: skip
    assert "pooled_iou/lane" in read(tmp_path / "masks" / "scores.json")["scores"]


def test_a_threshold_needs_a_background(tmp_path: Path) -> None:
    """Of classes that are all things of their own the first would win nearly everywhere."""
    for split, names in (("train", "abcd"), ("val", "ef"), ("test", "g")):
        draw_bars(tmp_path / "data" / split, names, 3, seed=len(names))
    (tmp_path / "data" / "classes.txt").write_text("road\nsky\ntree\n")
    place = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path)]
    assert train_micro.main([*FREE, *place, "--epochs", "1"]) == 0
    infer = ["--runs", str(tmp_path / "micro" / "*" / "fold0"), "--device", "cpu"]
    infer += ["--output", str(tmp_path / "masks")]
    with pytest.raises(UserError, match="none is called background"):
        infer_segmentation.main([*infer, "--threshold", "0.9"])
    assert infer_segmentation.main(infer) == 0


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


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("configs/lane.yaml", LaneConfig),
        ("configs/lane_light.yaml", LaneConfig),
        ("configs/distill.yaml", DistillConfig),
    ],
)
def test_presets_parse(path: str, config: type) -> None:
    from src.reader import fill

    rows = read_rows(Path(path), config)[1]
    for name in rows:
        fill(config, {"model": name, "config": path}, row_by="model")
    assert rows and InferSegmentationConfig().split == "test"


def test_masks_saved_as_jpeg_are_named(bars: Path, tmp_path: Path) -> None:
    for path in (bars / "train" / "masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(UserError, match=r"masks holds no \.png.*save masks as PNG"):
        lane(tmp_path / "out", "--data_dir", str(bars))


def test_generated_scenes_of_other_sizes_lie_apart(tmp_path: Path) -> None:
    places = []
    for size in ("32x32", "32x48"):
        config = LaneConfig(output_dir=str(tmp_path), resolution=size)
        places.append(locate_data(config, num_scenes=5, num_frames=1)[1])
    assert len(set(places)) == 2
    assert all(len(list((place / "images").iterdir())) == 5 for place in places)


@pytest.mark.parametrize("layout", ["coco", "folders"])
def test_lane_runs_alone_see_two_classes_in_a_layout_of_any(tmp_path: Path, layout: str) -> None:
    place = {"coco": "train/_annotations.coco.json", "folders": "images/1.jpg"}[layout]
    (tmp_path / place).parent.mkdir()
    (tmp_path / place).touch()
    assert locate_data(LaneConfig(data_dir=str(tmp_path)))[0] == "lanes"
    assert locate_data(DistillConfig(data_dir=str(tmp_path)))[0] == layout
    assert locate_data(LaneConfig(data_dir=str(tmp_path), source=layout))[0] == layout


def test_a_checkpoint_that_is_none_or_stands_alone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    for name, message in (
        ("loop", "loop: no such file"),
        ("gone.safetensors", "gone.safetensors: no such file"),
        ("mine.safetensors", "no config.yaml beside it; name its run, too, --runs"),
    ):
        with pytest.raises(UserError, match=message):
            infer_segmentation.main(["--checkpoint", str(tmp_path / name)])


def test_held_out_images_without_foreground_stop_no_training_and_no_report(
    tmp_path: Path,
) -> None:
    for split, names in (("train", "abcd"), ("val", "ij")):
        draw_bars(tmp_path / "three" / split, names, 3, seed=len(names))
    for path in (tmp_path / "three" / "val" / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    place = ["--data_dir", str(tmp_path / "three"), "--output_dir", str(tmp_path / "out")]
    assert train_micro.main([*FREE, *place, "--epochs", "1"]) == 0
    done = read(next((tmp_path / "out" / "micro").glob("*/fold0/finished.json")))
    assert done["score"] == 0.0  # it has no value where no foreground is true
    assert report.main(["--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    page = (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "class_2" in page and "cannot be shown" not in page


def test_scores_that_an_export_has_not_are_nan() -> None:
    model = ImageModel(lambda _: np.zeros((1, 4, 4)), ("background", "lane"), "masks", background=0)
    scores = Scores(model, Samples([], [Path()], lambda _: np.zeros((4, 4), np.uint8)))
    scores.add(0, np.zeros((1, 4, 4), np.float32))
    assert np.isnan(scores.values()["pooled IoU of lane"])
