"""Time and peak memory while the number of images grows: flat, or linear with a small slope?

    python benchmarks/growth.py                                (two minutes)
    python benchmarks/growth.py --counts 1000 1000000 --network_counts 1000 100000

Images are hard links to a few hundred small JPEG files, in 100 class folders. Every measurement
runs in a process of its own, so that its peak is its own; `start` is a process that only imports.

- index, folds, hash: of file names and sizes;
- cache: `--cache disk` built at 32 px; train, infer: one pass of a tiny network at 32 px with
  `--cache none`, a row predicted for every image; blend: `optimize_weights.py` on the made-up
  predictions of benchmarks/blend.py (3 models, 2 views, 20 classes).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import peak_memory, print_table, run_python, write_photographs

os.environ.setdefault("OMP_NUM_THREADS", "1")

CLASSES, SIDE, BATCH = 100, 32, 64
FILE_JOBS = ("index", "folds", "hash")
NETWORK_JOBS = ("cache", "infer", "train")


def make_folder(root: Path, originals: list[Path], count: int) -> None:
    """Fill ``root/train/<class>/`` with ``count`` hard links."""
    folders = [root / "train" / f"class{k:03d}" for k in range(min(CLASSES, count))]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(count):
        name = folders[number % len(folders)] / f"{number:07d}.jpg"
        os.link(originals[number % len(originals)], name)


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
    from src.runs import Run, atomic_array

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


def make_predictions(root: Path, count: int) -> None:
    """Write OOF files of ``count`` rows."""
    from benchmarks.blend import make_output

    make_output(root, argparse.Namespace(rows=count, classes=20, models=3, views=2, folds=5))


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    name.removesuffix("_job"): value for name, value in globals().items() if name.endswith("_job")
}


def measure(job: str, root: Path) -> tuple[float, float]:
    """Return (seconds, peak MB) of a job in a process of its own."""
    done = run_python([__file__, "--job", job, "--root", str(root)])
    result = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["peak"]


def measure_counts(counts: list[int], jobs: tuple[str, ...], scratch: Path) -> list[list[str]]:
    """Return table rows: job, images, seconds, images/s, peak MB."""
    rows = []
    originals = [scratch / "originals" / name for name in make_originals(scratch, max(counts))]
    for count in counts:
        with tempfile.TemporaryDirectory(dir=scratch) as text:
            root = Path(text)
            if jobs == ("blend",):
                make_predictions(root, count)
            else:
                make_folder(root, originals, count)
            rows += [row(job, count, *measure(job, root)) for job in jobs]
    order = {job: place for place, job in enumerate(jobs)}
    return sorted(rows, key=lambda cells: order[cells[0]])


def make_originals(scratch: Path, count: int) -> list[str]:
    """Write the files that all images are links to; no file system takes endless links of one."""
    folder = scratch / "originals"
    if folder.exists():
        return sorted(path.name for path in folder.iterdir())
    folder.mkdir()
    return write_photographs(folder, max(64, count // 10_000), (64, 64))


def row(job: str, count: int, seconds: float, peak: float) -> list[str]:
    """Return the cells of one measurement."""
    rate = f"{count / seconds:,.0f}" if seconds else ""
    return [job, f"{count:,}", f"{seconds:.2f}", rate, f"{peak:,.0f}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--network_counts", nargs="+", type=int, default=[1_000, 4_000, 16_000])
    parser.add_argument("--blend_counts", nargs="+", type=int, default=[1_000, 4_000, 16_000])
    parser.add_argument("--folder", help="where the files are made; default: the temporary one")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        result = JOBS[args.job](Path(args.root))
        print(json.dumps(result | {"peak": peak_memory()}))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as text:
        scratch = Path(text)
        rows = [row(f"{job} (imports only)", 0, 0.0, measure(job, scratch)[1])
                for job in ("start", "start_torch")]  # fmt: skip
        rows += measure_counts(sorted(args.counts), FILE_JOBS, scratch)
        rows += measure_counts(sorted(args.network_counts), NETWORK_JOBS, scratch)
        rows += measure_counts(sorted(args.blend_counts), ("blend",), scratch)
    print("one run each, a process each, one thread\n")
    print_table(("job", "images", "s", "images/s", "peak memory, MB"), rows)


if __name__ == "__main__":
    main()
