"""Blend weights of all models and views: python optimize_weights.py.

OOF predictions of all models in, output/weights.json out. The weights are the certified optimum of
a convex problem; Optuna searches how to pool, what to leave out and where to calibrate.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import BlendConfig, FoldConfig
from src.files import hold, sweep
from src.reader import coerce, parse, read_rows
from src.runs import Output, safe_name
from src.script import UserError, run_script

if TYPE_CHECKING:
    from src.classes import Aliases
    from src.ensemble.nested import Fitted
    from src.ensemble.oof import Oof
    from src.ensemble.search import Panel, Structure
    from src.ensemble.weights import Weights


def main(argv: list[str]) -> int:
    """Fit and compare the blends that ``argv`` asks for."""
    config = parse(BlendConfig, argv, prog="optimize_weights.py", description=__doc__ or "")
    priors = read_priors(config.presets)
    output = Output(Path(config.output_dir))
    if not output.folds.exists():
        raise UserError(f"{output.folds} does not exist; run train_fold.py first")
    with hold(output.root / ".blend.lock", str(output.weights)):
        sweep(output.root, output.weights.name, "suggested_aliases.csv")
        optimize(config, output, priors)
    return 0


def optimize(config: BlendConfig, output: Output, priors: dict[str, float]) -> None:
    """Fit, compare, write."""
    from src.ensemble.blend import build_tables
    from src.ensemble.nested import (
        contest,
        contributions,
        entry_of,
        fit_blend,
        is_better,
        score_entries,
    )
    from src.ensemble.report import contributions_table, scores_table
    from src.ensemble.search import build_panel, whole

    started = time.monotonic()
    oof, alias_groups = load(config, output)
    print(
        f"{len(oof.models)} models, {len(oof.members)} members (model × view), "
        f"{len(oof.targets)} rows, {len(oof.classes)} classes"
    )
    tables = build_tables(oof)
    solving = time.monotonic()
    entries, mixture = contest(oof.members, tables, priors)
    print(
        f"convex: within {mixture.gap:.1e} nats of the optimum, as the duality gap proves "
        f"({mixture.steps} steps; all methods {time.monotonic() - solving:.1f} s)"
    )
    gains = contributions(oof.members, tables, entries[-1].weights)
    panel = build_panel(oof, tables)
    start = whole(oof.members)
    adopted, structure, name = fit_blend(panel, start), start, "calibrated"
    entries.append(entry_of(name, adopted))
    found = search(config, output, panel, start) if config.trials else start
    if found != start:
        searched = fit_blend(panel, found)
        entries.append(entry_of("searched", searched))
        if is_better(searched.nested_losses, adopted.nested_losses):
            adopted, structure, name = searched, found, "searched"
    scores = score_entries(entries)
    weights, share = write(output, oof, alias_groups, adopted, structure.order, scores)
    print(f"\n{scores_table(scores, name)}\n\n{contributions_table(gains)}\n")
    if config.suggest_aliases:
        suggest(output, oof, adopted)
    report_trust(oof, adopted, weights, share)
    print(f"{output.weights} written in {time.monotonic() - started:.1f} s")


def load(config: BlendConfig, output: Output) -> tuple[Oof, list[tuple[str, ...]]]:
    """Join the OOF predictions against folds.csv; return them and the alias groups."""
    import numpy as np

    from src.data.folds import read_folds
    from src.ensemble.oof import FoldTable, load_oof

    folds = read_folds(output.folds)
    used = folds.fold >= 0  # the others are quarantined
    targets = folds.table["target"].to_numpy(dtype=str)
    table = FoldTable(
        ids=folds.table["id"].to_numpy(dtype=str)[used],
        targets=targets[used],
        folds=folds.fold[used],
        hash=folds.folds_hash,
    )
    aliases = find_aliases(config, tuple(np.unique(targets).tolist()))
    groups = [names for names in aliases.members() if len(names) > 1]
    oof = load_oof(
        output.root,
        table,
        models=[safe_name(model) for model in config.models],
        alias_groups=groups,
        tta_steps=config.tta_steps,
    )
    for note in oof.notes:
        print(f"note: {note}")
    return oof, groups


def find_aliases(config: BlendConfig, classes: tuple[str, ...]) -> Aliases:
    """Read the alias file: the flag's, else the data folder's, else none."""
    from src.data.aliases import load_aliases
    from src.data.index import find_root

    root = None
    with contextlib.suppress(UserError):  # blending needs no images
        root = find_root(config.data_dir)
    return load_aliases(root, config.aliases, classes)


def read_priors(presets: str) -> dict[str, float]:
    """Return each model's prior weight, from the presets; empty = none."""
    rows = read_rows(Path(presets), FoldConfig, flag="presets")[1] if presets else {}
    given = {
        name: coerce(f"{presets}: {name}: prior_weight", row.get("prior_weight", 0), float)
        for name, row in rows.items()
    }
    return {safe_name(k): FoldConfig(prior_weight=v).prior_weight for k, v in given.items()}


def search(config: BlendConfig, output: Output, panel: Panel, start: Structure) -> Structure:
    """Let Optuna look for a better structure than ``start``; a stopped search goes on."""
    from src.ensemble.search import SCORE_VERSION, affordable_trials, search_structures

    oof = panel.oof
    what = [SCORE_VERSION, oof.members, oof.config_hashes, oof.folds_hash, oof.classes]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    trials = min(config.trials, affordable_trials(panel))
    best, value = search_structures(
        panel.score, start, journal=output.study, name=name, trials=trials, seed=config.seed
    )
    print(
        f"Optuna, {trials} structures: nested {value:.5f} with {best.pool} pool, members "
        f"calibrated {'first too' if best.order == 'before' else 'after pooling only'}, "
        f"models {' '.join(best.models)}, "
        f"views {' '.join(best.views)}"
    )
    return best


def suggest(output: Output, oof: Oof, adopted: Fitted) -> None:
    """Print the classes that cannot be told apart, and write them as an alias file."""
    from src.data.csv_io import write_csv
    from src.ensemble.aliases import suggest_aliases
    from src.ensemble.report import suggestion_lines

    found = suggest_aliases(adopted.nested, oof.targets, oof.classes)
    if not found:
        print("no two classes look like the same thing under two names\n")
        return
    path = output.root / "suggested_aliases.csv"
    write_csv(path, ["class", "alias"], [(pair.first, pair.second) for pair in found])
    print(f"{suggestion_lines(found)}\n{path} written; --aliases {path} takes them as one class\n")


def write(
    output: Output,
    oof: Oof,
    alias_groups: list[tuple[str, ...]],
    adopted: Fitted,
    order: str,
    scores: dict[str, dict[str, float]],
) -> tuple[Weights, float]:
    """Write weights.json; return it and the share of images that adaptive TTA shows more views."""
    from src.ensemble.calibration import adaptive_threshold, summarise_oof
    from src.ensemble.weights import Weights, write_weights

    threshold, share = adaptive_threshold(oof, adopted.blend)
    content = Weights(
        blend=adopted.blend,
        order=order,
        classes=oof.classes,
        source_classes=oof.source_classes,
        alias_groups=tuple(alias_groups),
        folds_hash=oof.folds_hash,
        config_hashes=oof.config_hashes,
        scores=scores,
        summary=summarise_oof(adopted.nested, oof.targets),
        adaptive_threshold=threshold,
    )
    write_weights(output.weights, content)
    return content, share


def report_trust(oof: Oof, adopted: Fitted, weights: Weights, share: float) -> None:
    """Print how far the predictions can be trusted."""
    from src.ensemble.calibration import reliability
    from src.ensemble.report import reliability_table

    summary, threshold = weights.summary, weights.adaptive_threshold
    adaptive = (
        f"a model that gives its first view {threshold:g} or more needs no other; "
        f"{share:.1%} of the images do need more"
        if threshold <= 1
        else "would move the log loss by 1e-4 or more at any threshold; every image needs all views"
    )
    print(
        f"{reliability_table(reliability(adopted.nested, oof.targets))}\n\n"
        f"OOF log loss {summary.loss:.5f}, accuracy {summary.accuracy:.4f}; temperature "
        f"{adopted.blend.temperature:.4f}; mean entropy {summary.entropy:.5f}\n"
        f"--tta_adaptive: {adaptive}"
    )


if __name__ == "__main__":
    run_script(main)
