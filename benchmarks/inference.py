"""Inference with everything around it: 1 and 5 views, all or only where unsure, beside the floor.

    python benchmarks/inference.py            (two minutes on two cores)

JPEG photographs are decoded once and shown in up to five views. The floor is the bare forward pass
in inference mode on one resident batch, of the net as it was trained; ours has its norms folded.
Which images are unsure is data's and threshold's matter (`optimize_weights.py` finds the threshold
at which log loss moves by less than 1e-4); here given shares of the images, those the network is
least confident of, see all five views.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import (
    alternate,
    num_cores,
    paired,
    print_table,
    seconds,
    spread,
    write_photographs,
)

os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))

import numpy as np
import torch

from src.data.canonical import ImageSource
from src.data.dataset import EpochSampler, ImageDataset, default_num_workers, make_loader
from src.data.transforms import eval_transform
from src.engine.predict import default_batch_size, predict_logits
from src.engine.runtime import Runtime, start_runtime
from src.models.classifier import build_classifier
from src.models.convolutions import fold_norms
from src.pipelines.classification.infer import unsure_below
from src.tasks.classification import Classification
from src.views import VIEWS

NUM_CLASSES = 100
SHARES = (0.1, 0.25)


def contestants(
    name: str, size: int, folder: Path, names: list[str], runtime: Runtime
) -> dict[str, Callable[[], float]]:
    """Return seconds of one pass over all images, by contestant."""
    torch.manual_seed(0)
    model = build_classifier(name, NUM_CLASSES, image_size=size).eval()
    data = ImageDataset(ImageSource(folder, names, size), None, eval_transform(size))
    batch_size = default_batch_size(size, runtime.device)
    device = runtime.device.type
    loader = make_loader(
        data, EpochSampler(len(names), batch_size),
        num_workers=default_num_workers(device), device_type=device,
    )  # fmt: skip
    task = Classification(NUM_CLASSES, lambda logits, target: logits.sum())
    out = np.empty((len(VIEWS), len(names), NUM_CLASSES), np.float16)

    def predict(views: int, is_unsure: Any = None) -> Callable[[], float]:
        options = {"out": out[:views], "views": VIEWS[:views], "is_unsure": is_unsure}
        return lambda: seconds(lambda: predict_logits(folded, loader, task, runtime, **options))

    folded = runtime.place(fold_norms(model, size))  # as `infer_ensemble.py` does
    predict(1)()
    with torch.no_grad():  # else a random head is sure of every image alike
        folded.head.weight.div_(max(float(out[0].astype(np.float32).std()), 1e-6))
    predict(1)()
    logits = torch.from_numpy(out[0].astype(np.float32))
    confidence = logits.softmax(-1).amax(-1)
    adaptive = {
        f"5 views for {share:.0%}": predict(5, unsure_below(float(confidence.quantile(share))))
        for share in SHARES
    }
    image = torch.randint(0, 256, (batch_size, 3, size, size)).to(torch.uint8)
    batch, bare = runtime.upload({"image": image}), runtime.place(model)

    @torch.inference_mode()
    def floor() -> None:
        for start in range(0, len(names), batch_size):
            rows = min(batch_size, len(names) - start)
            with runtime.autocast():
                bare(batch["image"][:rows]).cpu()

    return {
        "floor, 1 view": lambda: seconds(floor),
        "1 view": predict(1),
        **adaptive,
        "5 views": predict(5),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=("tf_efficientnet_lite0", "resnet18"))
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    runtime = start_runtime(args.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = write_photographs(Path(folder), args.images)
        for model in args.models:
            runners = contestants(model, args.image_size, Path(folder), names, runtime)
            timed = alternate(runners, args.rounds)
            floor, one = timed["floor, 1 view"], timed["1 view"]
            for label, times in timed.items():
                rate, beside = spread([args.images / s for s in times], 1), ""
                if " for " not in label:  # as many views of all images
                    views = 5 if label == "5 views" else 1
                    beside = spread([views * r for r in paired(floor, times)])
                rows.append((f"{model}: {label}", rate, beside, spread(paired(times, one), 2)))
    print(
        f"n = {args.rounds} rounds over {args.images} JPEG photographs (640x480), "
        f"{args.image_size} px, {runtime.precision}; median (least … most)\n"
    )
    header = ("network: views", "images/s", "÷ floor of as many views", "time ÷ 1 view")
    print_table(header, rows)


if __name__ == "__main__":
    main()
