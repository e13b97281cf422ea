"""Report of an output folder as one HTML page: forecast, runs, curves, OOF, mistakes, masks.

Reads what the scripts wrote, trains and changes nothing. A panel whose files are missing or damaged
says so in its place; the others stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.files import Json, hold, sweep, write_text
from src.page import Html, line_plot, note, page, plots, table
from src.pipelines.classification import panels
from src.pipelines.run_folder import as_number, read_table
from src.runs import Done, Output, Run, read_config, read_done
from src.script import UserError, counted
from src.tool_config import ReportConfig

IDLE = frozenset({"model", "name", "fold", "data_dir", "output_dir"})  # of no difference to compare
MAX_CURVES = 24  # models whose learning curves are drawn


@dataclass(frozen=True)
class RunSummary:
    """What one run left."""

    run: Run
    name: str  # of the model, with the track's folder before it
    options: Json = field(default_factory=dict)  # what it was taught with
    # content of ``finished.json``, empty while it is not finished
    done: Done = field(default_factory=Done)
    metrics: Sequence[Mapping[str, str]] = ()  # rows of ``metrics.csv``
    minutes: float = float("nan")  # from the last start to the end, by the times of the files

    @property
    def fold(self) -> str:
        """Number of the held-out fold, or ``full``."""
        return self.run.folder.name.removeprefix("fold")

    @property
    def track(self) -> str:
        """Folder of its track: ``lane``, ``distill``, ``micro``; empty for a classification."""
        return self.name.rpartition("/")[0]

    @property
    def monitor(self) -> str:
        """Name of the score that chose its epoch."""
        return str(self.done.get("monitor", ""))


def write_report(config: ReportConfig) -> Path:
    """Write ``report/index.html`` below the output folder and return its path.

    Raises:
        UserError: nothing was trained there.
    """
    output = Output(Path(config.output_dir))
    runs, notes = find_runs(output)
    if not runs and not output.folds.exists():
        raise UserError(f"{output.root} holds no run: train one, or pass its --output_dir")
    sections = class_sections(config, output)
    middle = {"Runs": [*run_tables(runs), *map(note, notes)], "Learning curves": curves(runs)}
    masks = mask_sections(config, [r.run for r in runs if r.run.oof_counts.exists()])
    first = {name: sections.pop(name) for name in ("Forecast",) if name in sections}
    html = page(f"Report of {output.root}", first | middle | sections | masks,
                about=counted(len(runs), "run"))  # fmt: skip
    path = output.report / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(output.report / ".lock", str(output.report), wait=True):
        sweep(output.report, path.name)
        write_text(path, html)
    return path


def class_sections(config: ReportConfig, output: Output) -> dict[str, list[Html]]:
    """Return the panels of the classification, none where no fold of one was trained."""
    if not output.folds.exists() or not any(output.root.glob("*/fold*/oof.npz")):
        return {}
    try:
        found = panels.study(output)
    except UserError as error:
        return {"Forecast": [note(error)]}
    root, why = panels.find_photographs(config.data_dir) if config.examples else (None, "")
    heat, several = None, bool(found.diagnosis.oof.labels)
    if config.heatmaps and root is not None and not several:
        from src.pipelines.classification.heatmaps import open_heatmaps

        heat = open_heatmaps(config, output, found.diagnosis)
    sections = guarded("Forecast", panels.forecast, output, found)
    sections |= guarded("OOF by model, view and fold", panels.losses, found)
    sections |= guarded("Blend", panels.contest, found)
    sections |= guarded("Reliability", panels.reliability, found)
    if several:
        sections |= guarded("Labels", panels.labels, found)
        shown = guarded("Mistakes", panels.label_mistakes, found, root, config.examples)
    else:
        sections |= guarded("Classes", panels.classes, found)
        shown = guarded("Mistakes", panels.mistakes, found, root, config.examples, heat)
    if why:
        shown = {name: [*parts, note(why)] for name, parts in shown.items()}
    return sections | shown


def mask_sections(config: ReportConfig, runs: Sequence[Run]) -> dict[str, list[Html]]:
    """Return the panels of the mask tracks, none where none was trained."""
    if not runs:  # torch and timm are imported for overlays: seconds
        return {}
    from src.pipelines.segmentation.report import mask_panels

    return guarded("Masks", mask_panels, config, runs)


def guarded(
    name: str, build: Callable[..., list[Html] | dict[str, list[Html]]], *values: object
) -> dict[str, list[Html]]:
    """Return the panels that ``build`` makes of the values, one without a heading as ``name``.

    Where a file that it needs is damaged, the reason stands in their place.
    """
    try:
        found = build(*values)
        return found if isinstance(found, dict) else {name: found}
    except UserError as error:
        return {name: [note(error)]}
    except (KeyError, IndexError, TypeError, ValueError) as error:  # a file of ours, edited by hand
        return {name: [note(f"cannot be shown ({type(error).__name__}: {error})")]}


def find_runs(output: Output) -> tuple[list[RunSummary], list[str]]:
    """Return the runs of all tracks below ``output``, by name and fold, and notes on others."""
    runs, notes = [], []
    for folder in run_folders(output):
        try:
            runs.append(read_run(Run(folder), folder.parent.relative_to(output.root).as_posix()))
        except UserError as error:
            notes.append(str(error))
    return runs, notes


def run_folders(output: Output) -> list[Path]:
    """Return the folders of all runs below ``output``, by name and fold."""
    return sorted({p for pattern in ("*/fold*", "*/*/fold*") for p in output.root.glob(pattern)
                   if (p / "config.yaml").exists() or (p / "finished.json").exists()})  # fmt: skip


def read_run(run: Run, name: str) -> RunSummary:
    """Read what a run left.

    Raises:
        UserError: damaged.
    """
    metrics = read_table(run.metrics)
    try:
        done = read_done(run)
    except FileNotFoundError:
        return RunSummary(run, name, read_config(run)["options"], {}, metrics)
    minutes = float("nan")
    if run.config.exists():
        seconds = run.finished.stat().st_mtime - run.config.stat().st_mtime
        minutes = max(seconds, 0.0) / 60
    return RunSummary(run, name, done.get("config", {}), done, metrics, minutes)


def run_tables(runs: Sequence[RunSummary]) -> list[Html]:
    """Return a table for each track: score, epochs, minutes, and the options that differ."""
    tracks: dict[str, list[RunSummary]] = {}
    for run in runs:
        tracks.setdefault(run.track, []).append(run)
    tables = []
    for track, members in tracks.items():
        kept = sorted({k for run in members for k in run.options if k not in IDLE})
        told = {k: {str(r.options[k]) for r in members if k in r.options} for k in kept}
        differing = [k for k in kept if len(told[k]) > 1]  # a running one says more of itself
        heads = ["run", "fold", "state", "score", "best epoch", "epochs", "minutes", "score is"]
        rows = [_run_row(run, differing) for run in members]
        caption = f"{track or 'classification'}: runs ({len(members)}), the options that differ"
        tables.append(table([*heads, *differing], rows, caption=caption))
    return [*tables, note("minutes: from the last start to the end, by the times of the files")]


def _run_row(run: RunSummary, options: Sequence[str]) -> list[object]:
    epochs = run.done.get("epochs", run.options.get("epochs", 0))
    state, best = "finished", run.done.get("best_epoch")
    if not run.done:
        last = run.metrics[-1].get("epoch", "0") if run.metrics else "0"
        state, best = f"at epoch {last} of {epochs}", None
    values = [run.options.get(name) for name in options]
    shown = [v if isinstance(v, (int, float)) else "" if v is None else str(v) for v in values]
    fold = int(run.fold) if run.fold.isdigit() else run.fold
    name = run.name.removeprefix(f"{run.track}/")
    score = run.done.get("score")
    return [name, fold, state, score, best, epochs, run.minutes, run.monitor, *shown]


def curves(runs: Sequence[RunSummary]) -> list[Html]:
    """Plot validation score and training loss over the epochs, a line for each fold."""
    by_name: dict[str, list[RunSummary]] = {}
    for run in runs:
        if len(run.metrics) > 1:
            by_name.setdefault(run.name, []).append(run)
    figures = []
    for name, folds in list(by_name.items())[:MAX_CURVES]:
        monitor = next((r.monitor for r in folds if r.monitor), "") or monitored(folds[0])
        for column in (monitor, "train_loss"):
            series = {f"fold {run.fold}": _curve(run, column) for run in folds}
            if any(series.values()):
                kind = "loss" if "loss" in column else "score"  # the title has the whole name
                figures.append(line_plot(series, title=f"{name}: {column}", x_label="epoch",
                                         y_label=kind))  # fmt: skip
    left = len(by_name) - MAX_CURVES
    more = [note(f"{left} further models are left out")] if left > 0 else []
    return [plots(figures), *more] if figures else []


def monitored(run: RunSummary) -> str:
    """Return the name of the score to show of a run that has not finished; "" without one."""
    keys = [key.partition("_") for key in (run.metrics[-1] if run.metrics else {})]
    names = [name for prefix, _, name in keys if prefix in ("valid", "ema")]
    return "calibrated_log_loss" if "calibrated_log_loss" in names else names[0] if names else ""


def _curve(run: RunSummary, column: str) -> list[tuple[float, float]]:
    """Return (epoch, value), of the raw weights or, where they were not scored, the averaged."""
    points = []
    for row in run.metrics:
        names = (column,) if column == "train_loss" else (f"valid_{column}", f"ema_{column}")
        values = [as_number(row.get(name)) for name in names]
        value = next((v for v in values if v == v), float("nan"))
        points.append((as_number(row.get("epoch")), value))
    return [point for point in points if point[1] == point[1]]
