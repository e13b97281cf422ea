"""Precision of an exported graph: int8 by static quantisation, or float16, with loss and speed.

int8: weights by channel, activations by the ranges that training images give (symmetric int8 and
asymmetric uint8; https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
The last layer and all around the network stay float32. float16: all but resizing.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.decode import decode_image
from src.data.folds import read_folds
from src.data.masks import VOID, VoidReader
from src.data.root import find_root
from src.ensemble.predictions import open_oof
from src.files import SEAL, seal
from src.metrics.classification import Array, log_loss
from src.metrics.segmentation import SegmentationMeter, score_counts
from src.pipelines.deploy.model import ImageModel
from src.pipelines.segmentation.ensemble import Member
from src.pipelines.segmentation.report import read_images
from src.runs import Output, Run
from src.script import UserError, counted

NUM_TRAIN = 64  # training images, which settle the ranges of int8


@dataclass(frozen=True)
class Samples:
    """Images of a run with their truth."""

    train: Sequence[Path]  # paths of images it was trained on
    valid: Sequence[Path]  # paths of images it held out
    # number of a held-out image → a class number, 0 or 1 for each label, or a mask (H, W)
    # with void as 255
    truth: Callable[[int], Array]


def thin(count: int, most: int) -> Array:
    """Return at most ``most`` of the numbers below ``count``, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def class_samples(run: Run, data_dir: str, num_valid: int) -> Samples:
    """Return samples of a classification run.

    Raises:
        UserError: its photographs, folds or OOF predictions are gone.
    """
    root = find_root(data_dir)
    folds = read_folds(Output(run.folder.parent.parent).folds)
    name = run.folder.name.removeprefix("fold")
    paths = dict(zip(folds.table["id"], folds.table["image"], strict=True))
    rows = folds.train_rows(int(name) if name.isdigit() else None)
    inner = rows[folds.fold[rows] >= 0]  # external images lie elsewhere
    inner = inner[thin(len(inner), NUM_TRAIN)]
    train = [root / image for image in folds.table["image"].iloc[inner]]
    if not name.isdigit():
        return Samples(train, [], lambda _: np.array(0))
    oof = open_oof(run.oof)
    kept = thin(len(oof.ids), num_valid)
    targets = oof.targets[kept]
    return Samples(train, [root / paths[i] for i in oof.ids[kept].tolist()], lambda n: targets[n])


def mask_samples(member: Member, num_valid: int) -> Samples:
    """Return samples of a mask run.

    Raises:
        UserError: its images are gone, or are others by now.
    """
    index, held = read_images(member)
    inner = np.setdiff1d(np.arange(len(index)), held)
    inner, held = inner[thin(len(inner), NUM_TRAIN)], held[thin(len(held), num_valid)]
    read = VoidReader(index)

    def truth(number: int) -> Array:
        return read(index.mask_path(int(held[number])))

    return Samples([index.image_path(r) for r in inner], [index.image_path(r) for r in held], truth)


# Not Gemm, the last layer: in int8 it left 20 % of 99.5 % accuracy (lite0 on digits, onnxruntime
# 1.32), while all 49 convolutions cost nothing.
QUANTISED = ("Conv", "MatMul", "Add", "Relu", "Clip", "MaxPool")


def convert(graph: Path, to: Path, precision: str, train: Sequence[Path]) -> None:
    """Write the float32 ``graph`` to ``to`` in another precision.

    ``precision`` is int8, whose ranges the activations of ``train`` settle, or fp16.

    Raises:
        UserError: int8 without images.
    """
    import onnx

    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        found = convert_float_to_float16(onnx.load(graph), keep_io_types=True)
    else:
        quantise(graph, to, train)
        found = onnx.load(to)
    for entry in found.metadata_props:
        if entry.key == "checksum":
            entry.value = json.dumps(SEAL)
    to.write_bytes(seal(found.SerializeToString()))


def quantise(graph: Path, to: Path, train: Sequence[Path]) -> None:
    """Write the int8 version of a float32 graph."""
    if not train:
        raise UserError("--precision int8 needs training images for its ranges: pass --data_dir")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it wants a preparation that refuses graphs of any image size
    quantize_static(
        str(graph), str(to), calibration(train), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=list(QUANTISED), activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    logger.setLevel(level)


def calibration(paths: Sequence[Path]) -> Any:
    """Return onnxruntime's reader of images (1, H, W, 3)."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images: Iterator[dict[str, Array]] = (
                {"image": np.ascontiguousarray(decode_image(path)[None])} for path in paths
            )

        def get_next(self) -> dict[str, Array] | None:
            return next(self.images, None)

    return Reader()


def compare(name: str, plain: ImageModel, other: ImageModel, samples: Samples) -> list[str]:
    """Return lines that say what ``other`` loses and gains beside the float32 graph.

    Both predict the held-out images in turns, one at a time. Without held-out ``samples`` they are
    the training images, of which agreement alone counts.
    """
    paths = samples.valid or samples.train
    scores = [Scores(model, samples) for model in (plain, other)]
    took: list[list[float]] = [[], []]
    same: list[float] = []
    for number, path in enumerate(paths):
        image = decode_image(path)
        found = []
        for model, score, times in zip((plain, other), scores, took, strict=True):
            start = time.perf_counter()
            found.append(model.probs(image))
            times.append(1e3 * (time.perf_counter() - start))
            if samples.valid:
                score.add(number, found[-1])
        same.append(float((_decide(plain, found[0]) == _decide(plain, found[1])).mean()))
    of = counted(len(paths), f"{'held-out' if samples.valid else 'training'} image")
    what = "of pixels" if plain.task == "masks" else "of labels" * (plain.task == "labels")
    lines = [
        f"{name} beside fp32 on {of}: the same decision for {np.mean(same):.1%} {what}".rstrip()
    ]
    if samples.valid:
        pairs = zip(*(score.values().items() for score in scores), strict=True)
        lines += [
            f"  {key}: fp32 {a:.4f}, {name} {b:.4f} ({b - a:+.4f})" for (key, a), (_, b) in pairs
        ]
    p50, p95 = np.percentile(took, (50, 95), axis=1)
    lines.append(
        f"  ms an image, {plain.engine}: fp32 p50 {p50[0]:.1f} p95 {p95[0]:.1f}, {name} p50 "
        f"{p50[1]:.1f} p95 {p95[1]:.1f} ({p50[0] / p50[1]:.2f} times as fast)"
    )
    return lines


class Scores:
    """Scores of one model over held-out images."""

    def __init__(self, model: ImageModel, samples: Samples) -> None:
        self.model, self.samples = model, samples
        self.probs: list[Array] = []
        self.targets: list[Array] = []
        if model.task == "masks":
            self.meter = SegmentationMeter(
                len(model.classes), VOID, model.classes, 0, background=model.background
            )

    def add(self, number: int, probs: Array) -> None:
        """Count the prediction of the held-out image ``number``."""
        truth = self.samples.truth(number)
        if self.model.task != "masks":
            self.probs.append(probs)
            self.targets.append(truth)
        else:
            self.meter.add(number, self.model.mask(probs), truth)

    def values(self) -> dict[str, float]:
        """Return the scores by their full names."""
        if self.model.task == "masks":
            scores = score_counts(self.meter.counts(), self.model.classes)
            one = {f"pooled IoU of {self.model.classes[1]}":
                   scores.get(f"pooled_iou/{self.model.classes[1]}", math.nan)}  # fmt: skip
            many = {"pooled mean IoU": scores.get("pooled_mean_iou", math.nan)}
            return (one if len(self.model.classes) == 2 else {}) | many
        probs, targets = np.stack(self.probs), np.stack(self.targets)
        if self.model.task == "labels":
            pairs = np.stack([1 - probs, probs], -1).reshape(-1, 2)
            return {"log loss": log_loss(pairs, targets.ravel())}
        right = float((probs.argmax(1) == targets).mean())
        return {"log loss": log_loss(probs, targets), "accuracy": right}


def _decide(model: ImageModel, probs: Array) -> Array:
    """Return what is decided: the likeliest class, each label's half, each pixel's label."""
    if model.task == "masks":
        return model.mask(probs)
    return probs >= 0.5 if model.task == "labels" else np.array([probs.argmax()])
