"""Blend weights of all models and views: python optimize_weights.py.

OOF predictions of all models in, output/weights.json out. The weights are the certified optimum of
a convex problem; Optuna searches how to pool, what to leave out and where to calibrate.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import BlendConfig, FoldConfig
from src.files import hold, sweep
from src.reader import coerce, parse, read_rows
from src.runs import Output, read_config, read_done, safe_name
from src.script import UserError, counted, format_table, run_script

if TYPE_CHECKING:
    from src.ensemble.blend import Tables
    from src.ensemble.oof import Oof
    from src.ensemble.search import Fitted
    from src.ensemble.weights import ContestScore, Weights
    from src.metrics.classification import Array
    from src.metrics.contest import Metric

GAINS = ("linear pool", "", "weight", "alone", "gained")  # what each model and view is worth


def main(argv: list[str]) -> int:
    """Fit and compare the blends that ``argv`` asks for."""
    config = parse(BlendConfig, argv, prog="optimize_weights.py", description=__doc__ or "")
    priors = read_priors(config.presets)
    output = Output(Path(config.output_dir))
    if not output.folds.exists():
        raise UserError(f"{output.folds} does not exist; run train_fold.py first")
    with hold(output.blend_lock, str(output.weights)):
        sweep(output.root, output.weights.name, output.suggested_aliases.name)
        optimize(config, output, priors)
    return 0


def optimize(config: BlendConfig, output: Output, priors: dict[str, float]) -> None:
    """Fit, compare, write."""
    from src.ensemble import blend, report
    from src.ensemble.search import build_panel, fit_blend, full_structure, is_better, search_panel

    started = time.monotonic()
    oof, alias_groups = load(config, output)
    size = f"{len(oof.targets)} rows, {len(oof.classes)} classes"
    if oof.labels:
        size = f"{len(oof.targets) // len(oof.labels)} images, {len(oof.labels)} labels"
    members = counted(len(oof.members), "member")
    print(f"{counted(len(oof.models), 'model')}, {members} (model × view), {size}")
    tables = blend.build_tables(oof)
    metric = find_contest_metric(config, output, oof)
    if metric is not None:
        optimize_metric(config, output, oof, alias_groups, tables, metric)
        return
    solving = time.monotonic()
    methods, mixture = blend.compare_methods(oof.members, tables, priors)
    print(
        f"convex: within {mixture.gap:.1e} nats of the optimum, as the duality gap proves "
        f"({mixture.steps} steps; all methods {time.monotonic() - solving:.1f} s)"
    )
    gains = format_table(GAINS, blend.contributions(oof.members, tables.raw, methods[-1].weights))
    panel = build_panel(oof, tables)
    start = full_structure(oof.members)
    adopted, structure, name = fit_blend(panel, start), start, "calibrated"
    methods.append(adopted.as_method(name))
    found = start
    if config.trials:
        found = search_panel(
            panel, output.study, trials=config.trials, seed=config.seed, storage=config.storage
        )
    if found != start:
        searched = fit_blend(panel, found)
        methods.append(searched.as_method("searched"))
        if is_better(searched.nested_losses, adopted.nested_losses):
            adopted, structure, name = searched, found, "searched"
    scores = blend.score_methods(methods, oof.groups)
    weights, share = write_blend(
        output.weights, oof, alias_groups, adopted, structure.order, scores, slice(None)
    )
    kept = "→ in weights.json: calibrated, or searched where lower by more than a standard error"
    print(f"\n{report.scores_table(scores, name)}\n{kept}\n\n{gains}\n")
    if config.suggest_aliases:
        suggest(output, oof, adopted, oof.targets)
    report.report_trust(adopted, weights, share, oof.targets)
    print(f"{output.weights} written in {time.monotonic() - started:.1f} s")


def find_contest_metric(config: BlendConfig, output: Output, oof: Oof) -> Metric | None:
    """Return the contest's metric: as said, else as the runs were trained.

    None is log loss of one class an image.
    """
    from src.metrics.contest import find_metric

    name, ordinal = config.metric, config.ordinal
    if name == "runs":
        trained = {
            (done.get("metric", "log_loss"), tuple(done.get("ordinal", ())))
            for model in oof.models
            for run in output.finished_runs(model)
            for done in [read_done(run).get("config", {})]
            if "columns" not in done  # a tabular member follows the networks
        } or {("log_loss", ())}
        if len(trained) > 1:
            names = ", ".join(sorted({name for name, _ in trained}))
            raise UserError(f"the runs were trained for different metrics ({names}): pass --metric")
        name, order = trained.pop()
        ordinal = ordinal or order
    if oof.labels:
        return find_metric(name, oof.labels, ordinal, several=True)
    found = find_metric(name, oof.classes, ordinal)
    return None if name == "log_loss" else found


def optimize_metric(
    config: BlendConfig,
    output: Output,
    oof: Oof,
    alias_groups: list[tuple[str, ...]],
    tables: Tables,
    metric: Metric,
) -> None:
    """Fit, compare and write by a metric that is not log loss."""
    from src.ensemble import blend, contest, report
    from src.ensemble.weights import ContestScore

    started = time.monotonic()
    weights, mixture = blend.convex(tables.raw)
    print(
        f"convex log loss, where {metric.name} starts: within {mixture.gap:.1e} nats of the "
        "optimum, as the duality gap proves"
    )
    board = contest.build_board(metric, oof, tables)
    num_rows = len(board.rows) // metric.unit
    if len(board.rows) < len(oof.targets):
        every = len(oof.targets) // metric.unit
        print(f"note: judged on {num_rows} of {every} rows, evenly thinned")
    candidates = contest.find_candidates(board, trials=config.trials, seed=config.seed)
    adopted, score = contest.adopt(board, candidates)
    decision, ordinal = adopted.decision, tuple(oof.classes[k] for k in metric.order)
    result = ContestScore(
        metric.name, ordinal, decision, score.value, score.low, score.high, num_rows
    )
    table, scores = report.candidates_table(board, candidates, adopted)
    fitted = contest.as_fitted(board, adopted)
    content, share = write_blend(
        output.weights, oof, alias_groups, fitted, adopted.order, scores, board.rows, result
    )
    gains = format_table(GAINS, blend.contributions(oof.members, tables.raw, weights))
    print(f"\n{table}\n\nby log loss:\n{gains}\n")
    if config.suggest_aliases and not oof.labels:
        suggest(output, oof, fitted, board.targets)
    report.report_trust(fitted, content, share, board.targets)
    print(
        f"decision: {decision}\n{metric.name}, choice and decision cross-fitted: {score.value:.5f}"
        f"  (95 %: {score.low:.5f} to {score.high:.5f})\n"
        f"{output.weights} written in {time.monotonic() - started:.1f} s"
    )


def write_blend(
    path: Path,
    oof: Oof,
    alias_groups: list[tuple[str, ...]],
    adopted: Fitted,
    order: str,
    scores: dict[str, dict[str, float]],
    rows: Array | slice,
    contest: ContestScore | None = None,
) -> tuple[Weights, float]:
    """Write weights.json; return it and the share of images that adaptive TTA shows more views."""
    from src.ensemble.calibration import adaptive_threshold, summarise_oof
    from src.ensemble.weights import Weights, write_weights

    threshold, share = (1.1, 1.0) if oof.labels else adaptive_threshold(oof, adopted.blend)
    weights = Weights(
        blend=adopted.blend,
        order=order,
        classes=oof.classes,
        source_classes=oof.source_classes,
        alias_groups=tuple(alias_groups),
        folds_hash=oof.folds_hash,
        config_hashes=oof.config_hashes,
        scores=scores,
        summary=summarise_oof(adopted.nested, oof.targets[rows], oof.groups[rows]),
        adaptive_threshold=threshold,
        contest=contest,
        labels=oof.labels,
    )
    write_weights(path, weights)
    return weights, share


def load(config: BlendConfig, output: Output) -> tuple[Oof, list[tuple[str, ...]]]:
    """Join the OOF predictions against folds.csv; return them and the alias groups."""
    from src.classes import join_groups
    from src.data.folds import read_folds
    from src.data.root import find_root
    from src.data.sample import load_aliases
    from src.ensemble.oof import FoldTable, find_models, load_oof
    from src.ensemble.predictions import learns_labels

    folds = read_folds(output.folds)
    models = [safe_name(model) for model in config.models] or find_models(output.root)
    groups: list[tuple[str, ...]] = []
    if not learns_labels(output.root):
        root = None
        with contextlib.suppress(UserError):  # blending needs no images
            root = find_root(config.data_dir)
        aliases = load_aliases(root, config.aliases, sorted(set(folds.table["target"])))
        said = [names for names in aliases.members() if len(names) > 1]
        groups = join_groups([*said, *trained_aliases(output, models)])
    oof = load_oof(
        output.root,
        FoldTable.of(folds),
        models=models,
        alias_groups=groups,
        tta_steps=config.tta_steps,
    )
    for note in oof.notes:
        print(f"note: {note}")
    return oof, groups


def trained_aliases(output: Output, models: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the names that are one class to the runs, whatever the alias file says by now."""
    runs = [run for model in models for run in output.finished_runs(model)[:1]]
    found = [read_config(run)["resolved"].get("aliases", []) for run in runs if run.config.exists()]
    return [tuple(names) for groups in found for names in groups]


def read_priors(presets: str) -> dict[str, float]:
    """Return each model's prior weight, from the presets; empty = none."""
    rows = read_rows(Path(presets), FoldConfig, flag="presets")[1] if presets else {}
    given = {
        name: coerce(f"{presets}: {name}: prior_weight", row.get("prior_weight", 0), float)
        for name, row in rows.items()
    }
    return {safe_name(k): FoldConfig(prior_weight=v).prior_weight for k, v in given.items()}


def suggest(output: Output, oof: Oof, adopted: Fitted, targets: Array) -> None:
    """Print the classes that cannot be told apart, and write them as an alias file."""
    from src.data.csv_io import write_csv
    from src.ensemble.aliases import suggest_aliases, suggestions_table

    found = suggest_aliases(adopted.nested, targets, oof.classes)
    if not found:
        print("no two classes look like the same thing under two names\n")
        return
    path = output.suggested_aliases
    write_csv(path, ["class", "alias"], [(pair.first, pair.second) for pair in found])
    print(f"{suggestions_table(found)}\n{path} written; --aliases {path} takes them as one class\n")


if __name__ == "__main__":
    run_script(main)
