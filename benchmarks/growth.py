"""Time and peak memory while the number of images grows: flat, or linear with a small slope?

    python benchmarks/growth.py                                (six minutes)
    python benchmarks/growth.py --counts 1000 100000 --network_counts 1000 10000

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import print_table, run_python, write_photographs

os.environ["OMP_NUM_THREADS"] = "1"  # of the jobs, which are processes of their own

CLASSES = 100
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


def make_predictions(root: Path, count: int) -> None:
    """Write OOF files of ``count`` rows."""
    from benchmarks.blend import make_output

    make_output(root, argparse.Namespace(rows=count, classes=20, models=3, views=2, folds=5))


def measure(job: str, root: Path) -> tuple[float, float]:
    """Return (seconds, peak MB) of a job in a process of its own."""
    done = run_python(["benchmarks/growth_jobs.py", job, str(root)])
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
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--network_counts", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--blend_counts", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", help="where the files are made; default: the temporary one")
    args = parser.parse_args(argv)
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
