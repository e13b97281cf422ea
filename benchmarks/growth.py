"""Time and peak memory of index, folds and content hash while the number of images grows.

    python benchmarks/growth.py                                (two minutes)
    python benchmarks/growth.py --counts 1000 100000

Images are hard links to a few hundred small JPEG files, in 100 class folders. Every measurement
runs in a process of its own, so that its peak is its own; `start` is a process that only imports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import peak_memory, print_table, run_python, seconds, write_photographs

os.environ["OMP_NUM_THREADS"] = "1"  # of the jobs, which are processes of their own

CLASSES, SIDE = 100, 32


Work = Callable[[], object]  # what is timed


def start_job(root: Path) -> Work:
    """Import what the jobs import, and do nothing."""
    import pandas  # noqa: F401

    import src.data.folds
    import src.data.index  # noqa: F401

    return lambda: None


def index_job(root: Path) -> Work:
    """Index the folder."""
    from src.data.index import read_train

    return lambda: read_train(root)


def folds_job(root: Path) -> Work:
    """Make five folds, write and read them."""
    from src.data.folds import load_folds, make_folds, save_folds
    from src.data.index import read_train

    table, path = read_train(root).table, root / "folds.csv"

    def work() -> None:
        save_folds(make_folds(table, root, num_folds=5, seed=0), path)
        load_folds(path, table, root)

    return work


def hash_job(root: Path) -> Work:
    """Hash names, sizes and times, as a cache is named; and the ids."""
    from src.data.canonical import ImageSource
    from src.data.index import read_train
    from src.ensemble.predictions import hash_ids

    table = read_train(root).table

    def work() -> None:
        ImageSource(root, table["image"].tolist(), SIDE).fingerprint()
        hash_ids(table["id"].tolist())

    return work


JOBS = {"start": start_job, "index": index_job, "folds": folds_job, "hash": hash_job}


def make_folder(root: Path, originals: list[Path], count: int) -> None:
    """Fill ``root/train/<class>/`` with ``count`` hard links."""
    folders = [root / "train" / f"class{k:03d}" for k in range(min(CLASSES, count))]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(count):
        name = folders[number % len(folders)] / f"{number:07d}.jpg"
        os.link(originals[number % len(originals)], name)


def measure(job: str, root: Path) -> tuple[float, float]:
    """Return (seconds, peak MB) of a job in a process of its own."""
    done = run_python(["benchmarks/growth.py", "--job", job, "--folder", str(root)])
    result = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["peak"]


def measure_counts(counts: list[int], jobs: tuple[str, ...], scratch: Path) -> list[list[str]]:
    """Return table rows: job, images, seconds, images/s, peak MB."""
    rows = []
    originals = [scratch / "originals" / name for name in make_originals(scratch, max(counts))]
    for count in counts:
        with tempfile.TemporaryDirectory(dir=scratch) as text:
            root = Path(text)
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
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--job", choices=JOBS, help="this one alone, on the images in --folder")
    parser.add_argument("--folder", help="where the files are made; default: the temporary one")
    args = parser.parse_args(argv)
    if args.job:
        took = seconds(JOBS[args.job](Path(args.folder)))
        print(json.dumps({"seconds": took, "peak": peak_memory()}))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as text:
        scratch = Path(text)
        rows = [row("start (imports only)", 0, 0.0, measure("start", scratch)[1])]
        rows += measure_counts(sorted(args.counts), tuple(JOBS)[1:], scratch)
    print("one run each, a process each, one thread\n")
    print_table(("job", "images", "s", "images/s", "peak memory, MB"), rows)


if __name__ == "__main__":
    main()
