"""Library interface: load finished runs or the whole ensemble, predict images; train folds.

    from src import FoldConfig, load_ensemble, load_run, train

    train(FoldConfig(model="tf_efficientnet_lite0", data_dir="input", folds=3, fold="all"))
    found = load_run("output/tf_efficientnet_lite0/fold0").predict(["a.jpg", "b.jpg"])
    found.probs, found.classes           # (2, K) float32, K names
    found = load_ensemble("output").predict("photographs/")

The scripts call the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from src.config import InferConfig
from src.data.files import Scanner
from src.ensemble.predictions import TestRun
from src.ensemble.test_predictions import EnsemblePredictor
from src.ensemble.weights import (
    Weights,
    needed_views,
    read_forecast,
    read_weights,
    restrict,
    used_models,
)
from src.metrics.classification import softmax
from src.metrics.decisions import sigmoid
from src.runs import GO_ON, Output, Run, read_config
from src.script import UserError
from src.views import view_names

if TYPE_CHECKING:
    from src.engine.runtime import Runtime
    from src.pipelines.classification.infer import DecodedImages, TrainedFold
    from src.pipelines.segmentation.ensemble import Member

Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of N images."""

    images: tuple[str, ...]  # N paths, as they were given or found
    classes: tuple[str, ...]  # K names
    # (N, K) float32; rows sum to one, unless an image may have several of the classes
    probs: npt.NDArray[np.float32]

    def top(self, num: int = 5) -> list[list[tuple[str, float]]]:
        """Return the ``num`` most probable (class, probability) of each image, best first."""
        order = np.argsort(-self.probs, axis=1, kind="stable")[:, :num]
        return [
            [(self.classes[k], float(row[k])) for k in best]
            for row, best in zip(self.probs, order, strict=True)
        ]


@dataclass(frozen=True)
class MaskPredictions:
    """Label masks of N images, each (H, W) uint8 at its image's own size."""

    images: tuple[str, ...]
    classes: tuple[str, ...]
    masks: tuple[npt.NDArray[np.uint8], ...]


@dataclass(frozen=True)
class ClassifierRun:
    """One finished fold, ready to predict."""

    fold: TrainedFold

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.fold.classes

    def predict(self, images: Images, *, tta_steps: int = 1) -> Predictions:
        """Predict images: the mean probability over the first ``tta_steps`` views (1 … all).

        Raises:
            UserError: an image that is missing or cannot be decoded.
        """
        from src.pipelines.classification.infer import DecodedImages

        paths = list_images(images)
        views = view_names(tta_steps)
        logits = self.fold.predict(DecodedImages(Path(), paths), views)
        to_probs = sigmoid if self.fold.several else softmax
        probs = np.mean([to_probs(view.astype(np.float64)) for view in logits], axis=0)
        return Predictions(tuple(paths), self.classes, probs.astype(np.float32))


@dataclass(frozen=True)
class MaskRun:
    """One finished mask run, ready to predict."""

    member: Member
    runtime: Runtime

    def predict(self, images: Images) -> MaskPredictions:
        """Predict label masks, with the run's own views and threshold.

        Raises:
            UserError: an image that is missing or cannot be decoded.
        """
        from src.data.sources.masks import index_images
        from src.pipelines.segmentation.ensemble import blend_maps
        from src.pipelines.segmentation.score import to_mask

        paths = list_images(images)
        classes = tuple(self.member.resolved["classes"])
        index, rows = index_images(paths, classes), np.arange(len(paths))
        maps = blend_maps([self.member], index, rows, self.runtime)  # in the rows' order
        masks = tuple(to_mask(probs, self.member.threshold) for _, probs in maps)
        return MaskPredictions(tuple(paths), classes, masks)


@dataclass(frozen=True)
class Ensemble:
    """All models, folds and views of ``weights.json``."""

    weights: Weights  # the blend
    folds: Mapping[str, Sequence[TrainedFold]]  # model → its finished folds
    # of the folds' average, as this blend's submission estimated it; 1 = none was
    temperature: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.weights.labels or self.weights.classes

    def predict(self, images: Images) -> Predictions:
        """Predict images as ``infer_ensemble.py`` does: blended, calibrated, folds averaged.

        Raises:
            UserError: an image that is missing or cannot be decoded.
        """
        from src.pipelines.classification.infer import DecodedImages

        paths = list_images(images)
        probs = self.predict_decoded(DecodedImages(Path(), paths))
        return Predictions(tuple(paths), self.classes, probs)

    def predict_decoded(
        self, decoded: DecodedImages, dtype: type[np.floating[Any]] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return probabilities (N, K) of N images.

        ``dtype`` is that of the logits that are pooled; None = float16, which files keep.
        """
        weights = self.weights
        runs: dict[str, list[TestRun]] = {}
        for model, folds in self.folds.items():
            views = needed_views(weights.blend, model, view_names())
            runs[model] = [fold.as_test_run(decoded, views, dtype) for fold in folds]
        num_rows = len(decoded) * max(len(weights.labels), 1)
        predictor = EnsemblePredictor(
            runs, weights.blend, weights.columns, num_rows, temperature=self.temperature
        )
        log_probs = predictor.predict(slice(None)).log_probs
        probs = np.exp(log_probs)
        if weights.labels:
            assert weights.contest is not None
            plain = replace(weights.contest.decision, cuts=())
            probs = plain.apply(log_probs).reshape(len(decoded), -1)
        return probs.astype(np.float32)


def load_run(
    folder: str | Path, *, device: str = "auto", precision: str = "auto"
) -> ClassifierRun | MaskRun:
    """Load a finished run, ``output/<model>/fold<k>`` of any script.

    ``device`` is auto, cuda, mps, xpu or cpu; ``precision`` auto (as trained), fp32, bf16 or fp16.

    Raises:
        UserError: no such run, not finished, or damaged.
    """
    run = Run(Path(folder))
    if not run.config.exists() and not run.finished.exists():
        blend = ", or run optimize_weights.py first" if Output(run.folder).folds.exists() else ""
        raise UserError(
            f"{run.folder} is no run: pass a fold's folder, as output/lite0/fold0{blend}"
        )
    resolved = read_config(run)["resolved"]
    if not run.finished.exists():
        raise UserError(f"{run.folder} is not finished: {GO_ON}")
    if {"timm_id", "columns"} & resolved.keys():
        from src.pipelines.classification.infer import load_fold

        config = InferConfig(device=device, precision=precision)  # type: ignore[arg-type]
        return ClassifierRun(load_fold(run, config))
    from src.engine.runtime import start_runtime
    from src.pipelines.segmentation.ensemble import load_member

    return MaskRun(load_member(run), start_runtime(device, precision))


def is_ensemble(folder: Path) -> bool:
    """Tell whether ``folder`` is an output folder with a blend, not a run's."""
    return Output(folder).weights.exists() and not Run(folder).config.exists()


def load_ensemble(
    output_dir: str | Path = "output", *, device: str = "auto", precision: str = "auto"
) -> Ensemble:
    """Load the blend of ``weights.json`` with all networks that it gives weight.

    ``output_dir`` is where training and blending have written; the others are those of
    :func:`load_run`.

    Raises:
        UserError: no blend, a fold that is missing or was trained otherwise, a forecast of another
            blend, or damage.
    """
    from src.pipelines.classification.infer import blended_runs, load_fold

    output = Output(Path(output_dir))
    weights = keep_networks(read_weights(output.weights), output)
    config = InferConfig(output_dir=str(output_dir), device=device, precision=precision)  # type: ignore[arg-type]
    folds = {
        model: [load_fold(run, config) for run in blended_runs(config, output, model, weights)]
        for model in used_models(weights.blend)
    }
    try:
        forecast = read_forecast(output.prediction, blend=output.weights)
        temperature = float(forecast["average_temperature"])
    except FileNotFoundError:  # not made yet, or lost
        if output.submission.exists():
            raise UserError(
                f"{output.prediction} is missing beside {output.submission.name}: run "
                "infer_ensemble.py again"
            ) from None
        temperature = 1.0
    return Ensemble(weights, folds, temperature)


def keep_networks(weights: Weights, output: Output) -> Weights:
    """Return the blend without its tabular members: photographs alone have no columns.

    Raises:
        UserError: nothing else has weight.
    """
    used = used_models(weights.blend)
    tables = [
        name for name in used
        if any("columns" in read_config(run)["resolved"] for run in output.finished_runs(name)[:1])
    ]  # fmt: skip
    if not tables:
        return weights
    kept = [name for name in used if name not in tables]
    if not kept:
        raise UserError(
            f"{', '.join(tables)}: made of columns of tables, which photographs alone do not have"
        )
    blend, moved = restrict(weights.blend, models=kept)
    print(
        f"note: without {', '.join(tables)}, made of columns of tables: {moved:.0%} of the weight "
        "moved to the networks"
    )
    return replace(weights, blend=blend)


def list_images(images: Images) -> list[str]:
    """Return the paths that are meant: a file, all images below a folder, or a list of either.

    Raises:
        UserError: nothing of that name, or no image at all.
    """
    named = [images] if isinstance(images, (str, Path)) else list(images)
    found: list[str] = []
    for entry in named:
        path = Path(entry)
        if path.is_dir():
            found += [str(path / name) for name in Scanner(path).images()]
        elif path.is_file():
            found.append(str(path))
        else:
            raise UserError(f"{entry}: no such image or folder")
    if not found:
        raise UserError(f"{', '.join(map(str, named)) or 'nothing'}: holds no images")
    return found
