r"""Search the form of a net of at most 10,000 parameters: Optuna, with pruning, journal kept.

    python benchmarks/micro_search.py --data_dir input/micro --dataset CFD --hours 8

A candidate is a residual U-Net (:class:`MegaNetV1`): its levels, how its channels grow, its blocks
and its rate; channels are as wide as the budget allows. It is judged by the nested score of folds
of train + valid, the mean over folds and sets; after each fold the worse half is given up. So the
data's own valid images choose, too: for a choice that they shall judge afterwards, give a folder
that has the train part alone. Several processes with one --out share the work. What follows ``--``
are options of ``train_micro.py``. The best form becomes a row of ``MICRO_NETS``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_micro
from src.ensemble.studies import open_study
from src.models.micro.registry import (
    BUDGET_CLASSES,
    MEGA,
    MICRO_NETS,
    MicroSpec,
    count_trainable,
)
from src.models.micro.unet import MegaNetV1
from src.pipelines.micro import chosen
from src.runs import Output, read_done
from src.script import format_table

FIRST = {  # about meganet_10k, so that the others are judged beside it
    "levels": 4, "growth": 1.45, "lr": 2e-2, "gradient": True, "pyramid": False, "attention": False,
}  # fmt: skip
SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Search until the time is over, then print the best."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder of sets, as of train_micro.py")
    parser.add_argument("--dataset", nargs="+", default=["CFD"], help="sets that judge")
    parser.add_argument("--out", type=Path, default=Path("output/micro_search"))
    parser.add_argument("--hours", type=float, default=8.0, help="no candidate starts later")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of nets and folds")
    parser.add_argument("--budget", type=int, default=10_000, help="parameters at most")
    options = parser.parse_args(words[:cut])
    study = open_study(
        str(options.out / "search.journal"), "micro", direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )  # fmt: skip
    if not study.trials:
        study.enqueue_trial(FIRST)
    end = time.monotonic() + 3600 * options.hours
    while time.monotonic() < end:
        study.optimize(lambda trial: judge(trial, options, words[cut + 1 :]), n_trials=1)
    print(table(study))
    return 0


def judge(trial: optuna.Trial, options: argparse.Namespace, rest: Sequence[str]) -> float:
    """Train a candidate on each fold of each set; return its mean nested score.

    Raises:
        optuna.TrialPruned: it is behind the median of the others after as many folds.
    """
    form, rate = draw_form(trial, options.budget), trial.suggest_float("lr", 4e-3, 6e-2, log=True)
    trial.set_user_attr("widths", form["widths"])
    name = f"trial{trial.number}"
    MICRO_NETS[name] = MicroSpec(MegaNetV1, form, max_params=options.budget)
    scores = []
    for fold in range(options.folds):
        for where in options.dataset:
            flags = ["--data_dir", options.data_dir, "--dataset", where, "--net", name]
            flags += ["--name", name, "--output_dir", str(options.out), "--lr", f"{rate:g}"]
            flags += ["--folds", str(options.folds), "--fold", str(fold)]
            flags += ["--seed", str(options.seed), "--max_params", str(options.budget), *rest]
            if train_micro.main(flags):
                sys.exit(f"{name} failed")
            run = Output(options.out).track("micro").run(f"{name}-{where}-seed{options.seed}", fold)
            scores.append(chosen(read_done(run))["nested"])
        trial.report(float(np.mean(scores)), fold)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(np.mean(scores))


def draw_form(trial: optuna.Trial, budget: int) -> dict[str, Any]:
    """Return a candidate's arguments: as wide as ``budget`` parameters with 21 classes allow."""
    levels = trial.suggest_int("levels", 3, 5)
    growth = trial.suggest_float("growth", 1.1, 1.9)
    blocks = ("gradient", "pyramid", "attention")
    form: dict[str, Any] = dict.fromkeys(MEGA, False)
    form |= {block: trial.suggest_categorical(block, [True, False]) for block in blocks}
    fitting = []
    for first in np.arange(1.0, 24.0, 0.25):
        widths = tuple(round(first * growth**level) for level in range(levels))
        if count_trainable(MegaNetV1(BUDGET_CLASSES, **form, widths=widths)) <= budget:
            fitting.append(widths)
    if not fitting:
        raise optuna.TrialPruned
    return {**form, "widths": fitting[-1]}


def table(study: optuna.Study) -> str:
    """Return the best candidates, those of all folds first."""
    judged = [trial for trial in study.trials if trial.intermediate_values]
    judged.sort(key=lambda trial: (len(trial.intermediate_values), trial.value or 0), reverse=True)
    rows = [
        (f"trial{trial.number}", str(len(trial.intermediate_values)),
         f"{list(trial.intermediate_values.values())[-1]:.4f}",
         *(f"{trial.params[key]:.3g}" for key in FIRST), str(trial.user_attrs["widths"]))
        for trial in judged[:SHOWN]
    ]  # fmt: skip
    return format_table(("net", "folds", "nested", *FIRST, "widths"), rows)


if __name__ == "__main__":
    sys.exit(main())
