"""Wall time of `--help` of every script, and of meeting a fold that is finished already.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.growth import make_folder, make_originals
from benchmarks.timing import ROOT, alternate, print_table, run_python, seconds, spread

SCRIPTS = (
    "train_fold.py", "optimize_weights.py", "infer_ensemble.py", "train_micro.py", "train_lane.py",
    "train_distill.py", "infer_segmentation.py",
)  # fmt: skip


NUM_IMAGES = 10_000


def finished_fold(scratch: Path) -> list[str]:
    """Lay down images and a fold that counts as finished; return the command that meets it."""
    from src.config import FoldConfig, config_hash, learned_options
    from src.data.folds import make_folds, save_folds
    from src.data.index import read_train
    from src.files import write_json
    from src.reader import parse
    from src.runs import Output

    data, output = scratch / "data", scratch / "output"
    originals = [scratch / "originals" / name for name in make_originals(scratch, NUM_IMAGES)]
    make_folder(data, originals, NUM_IMAGES)
    flags = ["--model", "resnet18", "--data_dir", str(data), "--output_dir", str(output)]
    config = parse(FoldConfig, flags, prog="train_fold.py", description="", row_by="model")
    folds = make_folds(read_train(data).table, data, num_folds=5, seed=0)
    output.mkdir()
    save_folds(folds, Output(output).folds)
    done = {"config_hash": config_hash(config), "config": learned_options(config)}
    done |= {"split_hash": folds.folds_hash}
    run = Output(output).run(config.model, 0)
    write_json(run.finished, done | {"monitor": "calibrated_log_loss", "score": 0.5})
    return ["train_fold.py", *flags]


def timed(arguments: list[str]) -> Callable[[], float]:
    """Return the wall time of one run of a script."""
    return lambda: seconds(lambda: run_python(arguments))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as text:
        runs = {
            f"{name} --help": timed([name, "--help"]) for name in SCRIPTS if (ROOT / name).exists()
        }
        runs[f"train_fold.py, finished fold of {NUM_IMAGES:,} images"] = timed(
            finished_fold(Path(text))
        )
        runs["python -c pass"] = timed(["-c", "pass"])
        times = alternate(runs, args.rounds)
    print(f"n = {args.rounds} runs, wall time in seconds, median (least … most)\n")
    print_table(("command", "s"), ((name, spread(values)) for name, values in times.items()))


if __name__ == "__main__":
    main()
