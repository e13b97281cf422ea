"""Blend made-up OOF predictions from disk: time of the solve and of all, peak memory, and Optuna.

python benchmarks/blend.py                                  33,137 rows × 396 classes × 7 × 5
python benchmarks/blend.py --rows 3000 --classes 40         a minute

Writes `optimize_weights.py`'s input to a temporary folder (920 MB at full size), runs the script in
a process of its own, then compares the convex solve with Optuna's TPE over raw weights on the same
table. Lower is better everywhere.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import run_measured

MODELS = (
    "efficientnetv2_l", "convnext_large", "swin_large", "efficientnet_b7", "convnext_base",
    "resnet152d", "vit_base",
)  # fmt: skip


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how much :func:`make_output` makes."""
    sizes = {"rows": 33137, "classes": 396, "models": 7, "views": 5, "folds": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_sizes(parser)
    parser.add_argument("--tpe_trials", type=int, default=300)
    parser.add_argument("--tpe_seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_output(Path(folder), options)
        run_script(Path(folder), options)
        compare_with_tpe(Path(folder), options)


def write_folds(path: Path, ids: list[str], targets: list[str], folds: np.ndarray) -> str:
    """Write a ``folds.csv`` of images that are not there; return the hash OOF files carry."""
    from src.data.folds import Folds, read_folds, save_folds

    columns = {"id": ids, "image": ids, "target": targets, "fold": folds.tolist()}
    columns |= {"group": [""] * len(ids), "content": ["0" * 16] * len(ids)}
    save_folds(Folds(columns, folds, int(folds.max()) + 1, "0" * 16, ""), path)
    return read_folds(path).folds_hash


def make_output(root: Path, options: argparse.Namespace) -> None:
    """Write folds.csv and the OOF files of models that are right in about nine of ten rows.

    Every row has its own difficulty, shared by all models; a model adds its own noise and a view
    more; models differ in strength, sharpness and in a rare, very confident kind of mistake.
    """
    from src.ensemble.predictions import save_oof
    from src.views import view_names

    rng = np.random.default_rng(0)
    num, num_classes = options.rows, options.classes
    targets = rng.integers(0, num_classes, num)
    folds = rng.permutation(np.arange(num) % options.folds)
    classes = [f"차_{k:03d}" for k in range(num_classes)]
    ids = [f"train/{classes[t]}/{row:05d}.jpg" for row, t in enumerate(targets)]
    names = [classes[t] for t in targets]
    folds_hash = write_folds(root / "folds.csv", ids, names, folds)
    ease = rng.gamma(4.0, 2.5, num).astype(np.float32)
    for model in range(options.models):
        for fold in range(options.folds):
            here = np.flatnonzero(folds == fold)
            shared = rng.standard_normal((len(here), num_classes), dtype=np.float32)
            logits = np.empty((options.views, len(here), num_classes), dtype=np.float16)
            for view in range(options.views):
                noise = rng.standard_normal((len(here), num_classes), dtype=np.float32)
                values = 1.3 * shared + (0.6 + 0.15 * view) * noise
                values[np.arange(len(here)), targets[here]] += ease[here] - 0.2 * model
                wrong = rng.random(len(here)) < 0.004 * (1 + model)
                values[wrong, rng.integers(0, num_classes, wrong.sum())] += 14.0
                logits[view] = values * (1.5 + 0.2 * model)
            save_oof(
                root / MODELS[model] / f"fold{fold}" / "oof.npz", logits=logits,
                ids=np.array(ids)[here], targets=targets[here], views=view_names(options.views),
                classes=classes, fold=str(fold), config_hash="0", folds_hash=folds_hash,
            )  # fmt: skip


def run_script(root: Path, options: argparse.Namespace) -> None:
    """Run the script as a user does, and print its output, times and peak memory."""
    done = run_measured(["optimize_weights.py", "--output_dir", str(root), "--data_dir", str(root)])
    print(f"\n{describe(options)}\nwhole script: {done}")


def describe(options: argparse.Namespace) -> str:
    """Return what was made and where it is read."""
    return (
        f"{options.rows} rows × {options.classes} classes × {options.models} models × "
        f"{options.views} views, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )


def compare_with_tpe(root: Path, options: argparse.Namespace) -> None:
    """Solve and search the same table."""
    from src.data.folds import read_folds
    from src.ensemble.blend import NUM_FLOORS, build_tables
    from src.ensemble.oof import FoldTable, load_oof
    from src.ensemble.pool import mixture_losses, solve_mixture

    folds = read_folds(root / "folds.csv")
    text = {name: folds.table[name].to_numpy(dtype=str) for name in ("id", "target")}
    oof = load_oof(root, FoldTable(text["id"], text["target"], folds.fold, folds.folds_hash))
    started = time.perf_counter()
    table = build_tables(oof).raw
    print(f"reading {len(oof.members)} members: {time.perf_counter() - started:.1f} s")
    table = table[:, :-NUM_FLOORS]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        solution = solve_mixture(table)
        times.append(time.perf_counter() - started)
    print(
        f"solve: median {np.median(times):.3f} s of {len(times)} ({min(times):.3f} to "
        f"{max(times):.3f}), {solution.steps} steps, log loss {solution.loss:.6f}, gap "
        f"{solution.gap:.1e}"
    )
    excess, seconds = [], []
    for seed in range(options.tpe_seeds):
        started = time.perf_counter()
        weights = search_weights(table, trials=options.tpe_trials, seed=seed)
        seconds.append(time.perf_counter() - started)
        loss = mixture_losses(table, weights).mean()
        excess.append(float(loss - solution.loss))
    print(
        f"Optuna's TPE over {table.shape[1]} raw weights, {options.tpe_trials} trials, "
        f"{options.tpe_seeds} seeds: {np.median(seconds):.1f} s, "
        f"{np.median(excess):.5f} nats above the optimum ({min(excess):.5f} to {max(excess):.5f})"
    )


def search_weights(table: np.ndarray, *, trials: int, seed: int) -> np.ndarray:
    """Return the best weights (M,) that TPE alone finds for log probabilities (N, M)."""
    import optuna

    from src.ensemble.pool import mixture_losses

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def weights_of(raw: dict[str, float]) -> np.ndarray:
        return np.array(list(raw.values())) / max(sum(raw.values()), 1e-9)

    def objective(trial: optuna.Trial) -> float:
        for member in range(table.shape[1]):
            trial.suggest_float(str(member), 0.0, 1.0)
        return float(np.minimum(mixture_losses(table, weights_of(trial.params)), 34.5).mean())

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
    return weights_of(study.best_params)


if __name__ == "__main__":
    main()
