"""Options of the scripts around the main job: plan, report, checks, prediction, export, tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from src.config import (
    MAX_MEMBERS,
    MAX_SEED,
    AliasConfig,
    CacheConfig,
    ColumnsConfig,
    ContestConfig,
    DeviceConfig,
    HardwareConfig,
    MetricConfig,
    OutsideConfig,
    PlaceConfig,
    ResumeConfig,
    RowsConfig,
)
from src.option import Options, option
from src.views import VIEWS


@dataclass(frozen=True, kw_only=True)
class ReportConfig(PlaceConfig, DeviceConfig, group="run"):
    """``scripts/report.py``: everything under output/ → one page."""

    examples: int = option(
        24, "photographs of costly mistakes; 0 = a page without photographs", least=0, most=500,
        first=True,
    )  # fmt: skip
    heatmaps: bool = option(
        False, "run the networks again to show what costly mistakes looked at (Grad-CAM)",
        first=True,
    )  # fmt: skip
    watch: bool = option(
        False, "show running folds with the time they have left, here and on report/watch.html",
        first=True,
    )  # fmt: skip
    submit_log: str = option(
        "", 'record what the leaderboard said of the submission: "private 0.128"', first=True
    )


@dataclass(frozen=True, kw_only=True)
class CheckConfig(
    PlaceConfig, OutsideConfig, ContestConfig, ColumnsConfig, DeviceConfig, group="data and output"
):
    """``scripts/check_data.py``: what is in the data, before the first epoch."""

    masks: Literal["auto", "on", "off"] = option(
        "auto", "check images with masks; auto = where the folder is no classification", first=True
    )
    source: str = option("auto", "layout of the masks (docs/layouts.md)")
    model: str = option(
        "", "backbone whose features judge the labels; empty = the first in input/weights",
        group="model",
    )  # fmt: skip
    probe: Literal["auto", "off"] = option(
        "auto",
        "judge labels by a linear probe where weights are at hand",
        group="model",
        first=True,
    )
    image_size: int = option(
        0, "side of the probe's images, px; 0 = the backbone's own", least=16, most=4096, also=0,
        group="model",
    )  # fmt: skip
    examples: int = option(
        24, "photographs in each gallery; 0 = none", least=0, most=500, group="run"
    )
    seed: int = option(0, "seed of subsamples and of the bootstrap", least=0, most=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(DeviceConfig, group="run"):
    """``scripts/predict.py``: photographs or a video in, classes, masks or overlays out."""

    output_dir: str = option(
        "output", "folder of the ensemble, where no run is named", group="data and output",
        first=True,
    )  # fmt: skip
    images: tuple[str, ...] = option((), "photographs and folders of them", first=True)
    run: str = option("", "folder of one finished run; empty = the ensemble of --output_dir",
                      first=True)  # fmt: skip
    model: str = option("", "ONNX file of scripts/export.py, or a run's folder", first=True)
    video: str = option(
        "", "video file, stream's address or number of a camera, instead of photographs", first=True
    )
    live: bool = option(
        False, "play a video at its own speed, as a camera would: late frames are dropped"
    )
    frames: int = option(0, "frames of a video to predict; 0 = all", least=0, most=10**9)
    top: int = option(5, "classes of each photograph that are named", least=1, most=1000)
    tta_steps: int = option(1, "views of a run of classes", least=1, most=len(VIEWS))
    output: str = option(
        "", "CSV or JSON file of the predictions; for masks a folder (default: predicted), for a "
        "video a file (default: predicted.mp4)",
        first=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options, group="run"):
    """``scripts/export.py``: a finished run, or the ensemble → one file with its preprocessing."""

    data_dir: str = option(
        "input", "folder of the data set, whose images check the file", group="data and output",
        first=True,
    )  # fmt: skip
    run: str = option("", "folder of the finished run, or output/: its whole ensemble", first=True)
    format: Literal["onnx", "safetensors"] = option("onnx", "kind of file", first=True)
    precision: Literal["fp32", "int8", "fp16"] = option(
        "fp32", "of an ONNX file; int8 is calibrated on training images of --data_dir", first=True
    )
    output: str = option("", "file to write; empty = export.<format> in the run's folder")
    num_checked: int = option(
        32, "images that onnxruntime and PyTorch must agree on", least=1, most=10_000
    )
    num_scored: int = option(
        200, "held-out images that tell what int8 or fp16 loses", least=1, most=10**6
    )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(
    PlaceConfig, OutsideConfig, HardwareConfig, CacheConfig, AliasConfig, MetricConfig,
    ResumeConfig, RowsConfig, group="data and output",
):  # fmt: skip
    """``scripts/plan.py``: hours in, the best submission out."""

    hours: float = option(
        1.0, "hours until the last submission stands, the survey included",
        above=0, most=10_000, first=True,
    )  # fmt: skip
    models: tuple[str, ...] = option(
        (), "timm ids to choose from; none = all with weights in input/weights", group="model",
        first=True,
    )  # fmt: skip
    sizes: tuple[int, ...] = option(
        (), "image sizes to choose from, px; none = shares of each native size", group="model",
        least=16, most=4096, first=True,
    )  # fmt: skip
    pretrained: str = option("auto", "`auto`, or a weights file (one model)", group="model")
    folds: int = option(
        0, "K, settled by the first run on the data; 0 = as settled, at first 3 (5 from 2 hours)",
        least=2, most=1000, also=0,
    )  # fmt: skip
    dry_run: bool = option(False, "survey and plan, train nothing", group="run", first=True)
    seed: int = option(0, "seed of folds, sample and members", least=0, most=MAX_SEED - MAX_MEMBERS)


@dataclass(frozen=True, kw_only=True)
class TabularConfig(
    PlaceConfig, OutsideConfig, HardwareConfig, AliasConfig, MetricConfig, RowsConfig,
    group="data and output",
):  # fmt: skip
    """``scripts/train_tabular.py``: further columns of train.csv and test.csv → a member."""

    columns: tuple[str, ...] = option(
        (), "columns to use; none = all that are no id, path, label, group or constant", first=True
    )
    stack: bool = option(
        False, "use OOF log-probabilities of the image models as columns too", first=True
    )
    models: tuple[str, ...] = option(
        (), "image models that --stack uses; none = all with every fold", group="model", first=True
    )
    table: str = option("", "CSV of the training images' columns; empty = train.csv of the data")
    test_table: str = option("", "CSV of the test images' columns; empty = test.csv of the data")
    name: str = option("", "name of the folder; empty = tabular, or tabular_stack", group="run")
    folds: int = option(
        0, "K, settled by the first run on the data; 0 = as settled, at first 5",
        least=2, most=1000, also=0,
    )  # fmt: skip
    seed: int = option(0, "seed of folds and boosting", least=0, most=MAX_SEED, group="run")
    dry_run: bool = option(False, "show the columns, train nothing", group="run", first=True)
