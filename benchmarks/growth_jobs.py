"""The jobs of benchmarks/growth.py: python benchmarks/growth_jobs.py JOB FOLDER.

Each reads a folder of images (or predictions), does one thing, and prints its seconds and the
peak memory of the process as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import peak_memory

CLASSES, SIDE, BATCH = 100, 32, 64


def start_job(root: Path) -> dict[str, Any]:
    """Import what the jobs import, and do nothing."""
    import pandas  # noqa: F401

    import src.data.folds
    import src.data.index  # noqa: F401

    return {"seconds": 0.0}


def start_torch_job(root: Path) -> dict[str, Any]:
    """Import what training imports, and do nothing."""
    import src.engine.loop
    import src.models.classifier  # noqa: F401

    return start_job(root)


def index_job(root: Path) -> dict[str, Any]:
    """Index the folder."""
    from src.data.index import read_train

    started = time.perf_counter()
    index = read_train(root)
    return {"seconds": time.perf_counter() - started, "rows": len(index)}


def folds_job(root: Path) -> dict[str, Any]:
    """Make five folds, write and read them."""
    from src.data.folds import load_folds, make_folds, save_folds
    from src.data.index import read_train

    index = read_train(root)
    path = root / "folds.csv"
    started = time.perf_counter()
    save_folds(make_folds(index.table, root, num_folds=5, seed=0), path)
    load_folds(path, index.table, root)
    return {"seconds": time.perf_counter() - started}


def hash_job(root: Path) -> dict[str, Any]:
    """Hash names, sizes and times, as a cache is named; and the ids."""
    from src.data.canonical import ImageSource
    from src.data.index import read_train
    from src.ensemble.store import hash_ids

    table = read_train(root).table
    started = time.perf_counter()
    ImageSource(root, table["image"].tolist(), SIDE).fingerprint()
    hash_ids(table["id"].tolist())
    return {"seconds": time.perf_counter() - started}


def cache_job(root: Path) -> dict[str, Any]:
    """Decode all images into a cache on disk."""
    from src.data.cache import build
    from src.data.canonical import ImageSource
    from src.data.index import read_train

    source = ImageSource(root, read_train(root).table["image"].tolist(), SIDE)
    started = time.perf_counter()
    build(source, root / "cache")
    return {"seconds": time.perf_counter() - started}


def make_data(root: Path, *, shuffle: bool) -> Any:
    """Return a loader over the files themselves, as the scripts build it."""
    from src.data.canonical import ImageSource
    from src.data.dataset import ImageDataset
    from src.data.index import read_train
    from src.data.loader import EpochSampler, make_loader
    from src.data.transforms import eval_transform, train_transform

    index = read_train(root)
    place = {name: k for k, name in enumerate(index.classes)}
    source = ImageSource(root, index.table["image"].tolist(), SIDE)
    targets = [place[name] for name in index.table["target"]]
    transform = train_transform(SIDE) if shuffle else eval_transform(SIDE)
    data = ImageDataset(source, targets, transform)
    return make_loader(data, EpochSampler(len(source), BATCH, shuffle=shuffle))


def tiny_network() -> Any:
    """Return a network that costs next to nothing."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))


class Floats:
    """Classification of images given as bytes, by a network that wants floats."""

    loss_metric = monitor = "loss"

    def loss(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the mean cross-entropy."""
        from torch.nn import functional as F

        return {"loss": F.cross_entropy(self.predict(model, batch), batch["target"])}

    def predict(self, model: Any, batch: dict[str, Any]) -> Any:
        """Return logits."""
        return model(batch["image"].float() / 255)


def train_job(root: Path) -> dict[str, Any]:
    """Train one epoch by ``fit``."""
    import torch

    from src.config import EngineConfig
    from src.engine.loop import fit
    from src.engine.runtime import start_runtime
    from src.runs import Run

    loader, model = make_data(root, shuffle=True), tiny_network()
    model(torch.zeros(1, 3, SIDE, SIDE))
    names = [str(row) for row in range(loader.batch_sampler.num_rows)]
    started = time.perf_counter()
    fit(
        model, Floats(), loader, None, config=EngineConfig(epochs=1, batch_size=BATCH),
        run=Run(root / "run"), runtime=start_runtime("cpu"), names=names,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started}


def infer_job(root: Path) -> dict[str, Any]:
    """Write the logits of every image to disk, two views."""
    import numpy as np
    import torch

    from src.engine.predict import predict_logits
    from src.engine.runtime import start_runtime
    from src.engine.tta import first_views
    from src.files import atomic_array
    from src.runs import Run

    loader, model, run = make_data(root, shuffle=False), tiny_network(), Run(root)
    model(torch.zeros(1, 3, SIDE, SIDE))
    shape = (2, loader.batch_sampler.num_rows, CLASSES)
    started = time.perf_counter()
    with atomic_array(run.test_logits, shape, np.float16) as logits:
        predict_logits(
            model, loader, Floats(), start_runtime("cpu"), out=logits, views=first_views(2)
        )
    return {"seconds": time.perf_counter() - started}


def blend_job(root: Path) -> dict[str, Any]:
    """Find the weights of predictions that lie in ``root``."""
    import contextlib
    import io

    from optimize_weights import main as optimize

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        optimize(["--output_dir", str(root), "--data_dir", str(root)])
    return {"seconds": time.perf_counter() - started}


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    name.removesuffix("_job"): value for name, value in globals().items() if name.endswith("_job")
}

if __name__ == "__main__":
    result = JOBS[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(result | {"peak": peak_memory()}))
