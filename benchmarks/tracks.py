"""Tracks that are damaged or killed: tiny data, and the commands from them to results."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kill_resume import LEARNED, MODEL, WEIGHTS, make_competition, plan_command

MASKS = (
    *("segmentation_models_pytorch", "src.pipelines.segmentation.train", "src.pipelines.micro"),
    *("src.pipelines.segmentation.ensemble", "src.pipelines.segmentation.report"),
    *("src.pipelines.distillation", "train_lane", "train_micro", "train_distill"),
    "infer_segmentation",
)
MASK_TRACKS = ("lane", "micro", "distill")
TOOLS = ("scripts.plan", "scripts.report", "scripts.export", "scripts.predict")
TOOLS += (
    "src.pipelines.report",
    "src.pipelines.deploy.export",
    "src.pipelines.classification.panels",
)
TINY = (
    "--config= --device cpu --autotune off --precision fp32 --num_workers 0 --warmup_epochs 0 "
    "--resolution 32x32 --ema_decay 0 --batch_size 4 --lr 2e-3 --checkpoint_minutes 0"
)
PLAN_S = 30.0
MORE_S = 6.0  # seconds that a plan gets when it is started again
SHORT = "--epochs 2 --num_workers 0 --device cpu --cache disk --config= --checkpoint_minutes 0"
PROBED = "--head_start probe --norms frozen --head_lr_mult 1 --pretrained"
PLAIN = "--pretrained none --head_lr_mult 1 --cutmix_alpha 0"
EXPORT, PREDICTIONS = "export.safetensors", "predictions.csv"
LANE = (
    "--arch unet --encoder tu-test_resnet --pretrained none --decoder_width 16 --epochs 2 "
    "--name net --folds 2"
)
MICRO = "--dataset CFD --protocol free --name net --epochs 2"
DISTILL = (
    "--student tu-test_resnet --teacher tu-test_resnet --name trio --arch unet "
    "--student_pretrained none --teacher_pretrained none --student_width 16 --teacher_width 32 "
    "--loss ce --epochs 2 --allow_weak_teacher --tune 2"
)


@dataclass(frozen=True)
class Track:
    """One way from images to results.

    Attributes:
        commands: (data, output, seed) → scripts with their flags.
        make: writes the images.
        last: patterns, below the output, of what the last command makes.
    """

    commands: Callable[[Path, Path, int], list[list[str]]]
    make: Callable[[Path], None]
    last: tuple[str, ...] = ("submission.csv", "masks/**/masks.csv", "masks/**/*.png")


def ensemble(
    data: Path, output: Path, seed: int, *flags: str, metric: str = "log_loss"
) -> list[list[str]]:
    """Two folds, blend, submission; ``flags`` are further ones of the training."""
    place = ["--data_dir", str(data), "--output_dir", str(output)]
    train = ["train_fold", *place, *LEARNED.split(), *SHORT.split(), *flags]
    train += ["--seed", str(seed), "--metric", metric]
    blend = ["optimize_weights", *place, "--metric", metric, "--trials", "5", "--presets", ""]
    infer = ["infer_ensemble", *place, "--num_workers", "0", "--device", "cpu"]
    return [[*train, "--fold", "0"], [*train, "--fold", "1"], blend, infer]


def classify(data: Path, output: Path, seed: int) -> list[list[str]]:
    """A classification that starts from a probe."""
    return ensemble(data, output, seed, *PROBED.split(), str(data.parent / WEIGHTS))


def labels(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Several labels an image, thresholds for them, images of a second folder in both folds."""
    more = ["--extra_train", str(data.parent / "more")]
    return ensemble(data, output, seed, *PLAIN.split(), *more, metric="f1_samples")


def tools(data: Path, output: Path, seed: int) -> list[list[str]]:
    """A classification by a metric of labels; then report, leaderboard's score, export, predict."""
    made = ensemble(data, output, seed, *PLAIN.split(), metric="macro_f1")
    place = ["--data_dir", str(data), "--output_dir", str(output)]
    report = ["scripts.report", *place, "--device", "cpu", "--submit_log", "public 0.5"]
    run = ["--run", str(output / MODEL / "fold0")]
    export = ["scripts.export", "--data_dir", str(data), *run, "--format", "safetensors"]
    export += ["--output", str(output / EXPORT)]
    predict = ["scripts.predict", str(data / "test"), "--output_dir", str(output)]
    predict += ["--device", "cpu", "--output", str(output / PREDICTIONS)]
    return [*made, report, export, predict]


def lane(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Two folds and their blend's masks."""
    place = ["--data_dir", str(data), "--output_dir", str(output)]
    train = ["train_lane", *place, *TINY.split()]
    train += LANE.split()
    train += ["--seed", str(seed), "--cache", "disk"]
    runs = str(output / "lane" / "net" / "fold*")
    return [[*train, "--fold", "0"], [*train, "--fold", "1"], predict(output, runs)]


def micro(data: Path, output: Path, seed: int) -> list[list[str]]:
    """One net of few parameters."""
    train = ["train_micro", "--data_dir", str(data), "--output_dir", str(output), *MICRO.split()]
    train += [*TINY.replace("ema_decay", "ema_share").split(), "--seeds", str(seed)]
    return [train, predict(output, str(output / "micro" / "net-CFD*" / "fold*"))]


def distill(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Student, teacher, a search of two trials, taught student."""
    train = ["train_distill", "--data_dir", str(data), "--output_dir", str(output), *TINY.split()]
    train += DISTILL.split()
    runs = str(output / "distill" / "trio-distilled" / "fold*")
    return [[*train, "--seed", str(seed)], predict(output, runs)]


def plan(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Half a minute in; the hours are raised when it goes on."""
    spent, state = 0.0, output / "plan_state.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        spent = float(json.loads(state.read_bytes())["spent_s"])
    seconds = max(PLAN_S, min(spent, 3 * PLAN_S) + MORE_S * bool(spent))
    return [plan_command(data, output, seconds=seconds, seed=seed)]


def predict(output: Path, runs: str) -> list[str]:
    """Return the command that predicts the test masks of some runs."""
    place = ["--output_dir", str(output), "--device", "cpu", "--num_workers", "0"]
    return ["infer_segmentation", "--runs", runs, *place]


def draw_masks(root: Path, *, num_classes: int = 2) -> None:
    """Draw a train, a valid and a test split."""
    for seed, (split, names) in enumerate(
        {"train": "abcdefgh", "val": "ijk", "test": "lm"}.items()
    ):
        draw_bars(root / split, names, num_classes, seed)


def draw_bars(folder: Path, names: str, num_classes: int, seed: int) -> None:
    """Draw images with a bright bar of class 1; with more classes the top third is class 2."""
    import cv2
    import numpy as np

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
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{name}.png"), pixels)


def draw_labels(root: Path) -> None:
    """Images bright or not and striped or not, as columns of train.csv; six more beside them."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    tables: dict[Path, list[str]] = {}
    for row in range(54):
        bright, striped = row % 2, row // 2 % 2
        image = rng.integers(0, 60, (32, 32, 3)) + 100 * bright
        image[:, ::4] += 90 * striped
        place = root.parent / "more" if row >= 48 else root
        path = place / ("test" if 36 <= row < 48 else "train") / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image.astype(np.uint8))
        if path.parent.name == "train":
            table = tables.setdefault(place / "train.csv", ["image,bright,striped"])
            table.append(f"{path.name},{bright},{striped}")
    ids = [f"{row:02d}" for row in range(36, 48)]
    tables[root / "sample_submission.csv"] = ["id,bright,striped", *(f"{i},0,0" for i in ids)]
    for path, lines in tables.items():
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


TRACKS = {
    "classify": Track(classify, make_competition),
    "labels": Track(labels, draw_labels),
    "tools": Track(tools, make_competition, (PREDICTIONS,)),
    "lane": Track(lane, draw_masks),
    "micro": Track(micro, lambda root: draw_masks(root / "CFD")),
    "distill": Track(distill, lambda root: draw_masks(root, num_classes=3)),
    "plan": Track(plan, make_competition),
}
