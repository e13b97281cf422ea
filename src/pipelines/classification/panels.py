"""Panels of the report on a classification: forecast, OOF losses, blend, labels, mistakes.

Each function returns parts of a page (``src/page.py``) from what the scripts wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.folds import Folds, read_folds
from src.data.index import find_root
from src.ensemble.calibration import FORECAST_LEVEL, name_bin
from src.ensemble.diagnosis import Diagnosis, costliest, diagnose, mean_blend
from src.ensemble.oof import FoldTable, find_models, load_oof
from src.ensemble.pool import MAX_LOSS
from src.ensemble.weights import Weights, read_forecast, read_weights
from src.metrics.classification import Array
from src.metrics.contest import mean_label_auc, mean_label_precision
from src.page import (
    Html,
    escape,
    gallery,
    interval_plot,
    join,
    line_plot,
    note,
    number,
    percent,
    picture,
    plots,
    shaded,
    table,
    terms,
)
from src.pipelines.classification.leaderboard import cells, read_entries
from src.pipelines.pictures import show_photograph
from src.pipelines.run_folder import as_number, read_table
from src.runs import Output, files_of_folds
from src.script import UserError, counted

LOG_LOSS = "log loss"
MAX_PAIRS = 12
MIN_BIN = 20  # rows of a range of confidence that is plotted
MAX_MEMBERS = 60  # rows of the table of members
Heat = Callable[[str, str, int], bytes | None]  # (id, path, class) → JPEG with a heat map


@dataclass(frozen=True)
class Study:
    """The OOF predictions, their diagnosis, and what ``weights.json`` says of them."""

    diagnosis: Diagnosis
    folds: Folds
    weights: Weights | None
    notes: tuple[str, ...]

    @property
    def images(self) -> dict[str, str]:
        """Id → path of the photograph, relative to the data folder."""
        rows = self.folds.table
        return dict(zip(rows["id"].tolist(), rows["image"].tolist(), strict=True))


def study(output: Output) -> Study:
    """Read folds, OOF predictions and weights.

    Raises:
        UserError: none there, or damaged.
    """
    folds = read_folds(output.folds)
    rows = FoldTable.of(folds)
    notes: list[str] = []
    weights = None
    try:
        weights = read_weights(output.weights) if output.weights.exists() else None
    except UserError as error:
        notes.append(str(error))
    if weights is not None and weights.folds_hash != folds.folds_hash:
        notes.append("weights.json was fitted on other folds; run optimize_weights.py again")
        weights = None
    if weights is not None:
        names = tuple(dict.fromkeys(model for model, _ in weights.blend.members))
        groups = weights.alias_groups
        oof = load_oof(output.root, rows, models=names, alias_groups=groups, finished_only=False)
        blend = weights.blend
    else:
        oof = load_oof(output.root, rows, models=_fullest(output), finished_only=False)
        blend = mean_blend(oof)
        notes.append("no blend yet: what stands below is of the plain mean of all members")
    return Study(diagnose(oof, blend), folds, weights, (*notes, *oof.notes))


def _fullest(output: Output) -> list[str]:
    """Return the models with the most folds of OOF predictions."""
    found = {m: len(files_of_folds(output.root / m, "oof.npz")) for m in find_models(output.root)}
    return [m for m, count in found.items() if count == max(found.values())]


def forecast(output: Output, found: Study) -> list[Html]:
    """Show what score is to be expected, and what earlier submissions said."""
    diagnosis, weights = found.diagnosis, found.weights
    expected = _expected(output, weights) if weights is not None else []
    pairs: list[tuple[str, object]] = [
        (f"{name} ({level}: {low:.4f} to {high:.4f})" if level else name, number(value))
        for name, level, value, low, high in expected
    ]
    names, rows = diagnosis.oof.labels, len(diagnosis.losses)
    right = "OOF pairs of image and label right at .5" if names else "OOF accuracy of the blend"
    pairs.append((right, f"{diagnosis.right.mean():.2%}"))
    pairs.append(("rows with OOF predictions", f"{rows // max(len(names), 1):,}"))
    kind, count = ("labels", len(names)) if names else ("classes", len(diagnosis.oof.classes))
    pairs.append((kind, f"{count:,}"))
    metric = weights.contest.metric if weights and weights.contest else LOG_LOSS
    drawn = [(name, value, low, high) for name, _, value, low, high in expected
             if name.endswith(f" {metric}")]  # fmt: skip
    figures = [interval_plot(drawn, title="expected score", x_label=metric)] if drawn else []
    figures += _history(output.history)
    return [terms(pairs), plots(figures), *_submissions(output), *map(note, found.notes)]


def _expected(output: Output, weights: Weights) -> list[tuple[str, str, float, float, float]]:
    """Return (name, level of the interval, value, low, high) of forecasts and nested OOF scores."""
    contest, rows = weights.contest, []
    said = read_forecast(output.prediction) if output.prediction.exists() else {}
    scored = [(LOG_LOSS, "test_log_loss")] + ([(contest.metric, "test")] if contest else [])
    for metric, key in scored:
        if said and said.get("metric") == (contest.metric if contest else None):
            value, low, high = (float(said[key][k]) for k in ("value", "low", "high"))
            rows.append((f"forecast test {metric}", FORECAST_LEVEL, value, low, high))
    loss = weights.summary.loss
    if contest is None:  # the scores of ways to blend are log losses
        score = min(weights.scores.values(), key=lambda s: abs(s["nested"] - loss), default={})
        low, high = score.get("low", np.nan), score.get("high", np.nan)
        rows.append(("nested OOF log loss", "95 %", loss, low, high))
    else:
        rows.append(("nested OOF log loss", "", loss, np.nan, np.nan))
        low, high = contest.low, contest.high
        rows.append((f"nested OOF {contest.metric}", "95 %", contest.score, low, high))
    return rows


def _submissions(output: Output) -> list[Html]:
    """Show forecasts and the leaderboard's scores over the submissions, where any was recorded."""
    entries = read_entries(output.submissions)
    if not entries:
        return [note('no leaderboard score yet: --submit_log "private 0.128" records one')]
    figures = []
    for metric in dict.fromkeys(entry.metric for entry in entries):
        mine = [entry for entry in entries if entry.metric == metric]
        place = {name: n for n, name in enumerate(dict.fromkeys(e.submission for e in mine), 1)}
        series: dict[str, list[tuple[float, float]]] = {
            name: [(place[e.submission], getattr(e, name)) for e in mine]
            for name in ("forecast", "low", "high")
        }
        for entry in mine:
            series.setdefault(entry.kind, []).append((place[entry.submission], entry.score))
        series = {name: sorted(set(points)) for name, points in series.items()}
        figures.append(line_plot(series, title="forecast and leaderboard", x_label="submission",
                                 y_label=metric))  # fmt: skip
    heads = ["submission", "models", "metric", "kind", "nested OOF", "forecast", "low", "high",
             "score", "inside", "recorded"]  # fmt: skip
    caption = "submissions: forecast with interval, and what the leaderboard said"
    return [plots(figures), table(heads, [cells(entry) for entry in entries], caption=caption)]


def _history(path: Path) -> list[Html]:
    """Plot nested OOF loss and forecast of each submission, where any was recorded."""
    rows = read_table(path)
    if not rows:
        return []
    names = {"nested_oof_log_loss": "nested OOF", "forecast_test_log_loss": "forecast"}
    series = {
        label: [(as_number(row.get("minutes")), as_number(row.get(name))) for row in rows]
        for name, label in names.items()
    }
    title = f"{counted(len(rows), 'submission')} of the plan"
    return [line_plot(series, title=title, x_label="minutes", y_label="log loss")]


def losses(found: Study) -> list[Html]:
    """Show OOF log loss by model, view and fold."""
    diagnosis = found.diagnosis
    oof, blend = diagnosis.oof, diagnosis.blend
    share = dict(zip(blend.members, blend.weights.tolist(), strict=True))
    own = dict(zip(blend.members, blend.temperatures.tolist(), strict=True))
    mean = np.minimum(-diagnosis.member_logs, MAX_LOSS).mean(axis=0).tolist()  # type: ignore[misc]
    right = diagnosis.member_right.mean(axis=0).tolist()
    rows = [
        [model, view, mean[m], right[m], share.get((model, view), 0.0), own.get((model, view), 1.0)]
        for m, (model, view) in enumerate(oof.members)
    ]
    folds, by_fold = diagnosis.fold_losses()
    low, high = float(by_fold.min()), float(by_fold.max())
    names = [f"{model} {view}" for model, view in oof.members] + ["blend"]
    heads = ["member", *(f"fold {fold}" for fold in folds.tolist()), "spread"]
    fold_rows = [
        [name, *(shaded(float(v), low, high) for v in line), float(np.std(line))]
        for name, line in zip(names, by_fold, strict=True)
    ]
    sums = "; weights of a log pool need not sum to 1" if blend.pool == "log" else ""
    columns = ["model", "view", "OOF log loss", "accuracy", "weight", "own temperature"]
    return [
        table(columns, rows[:MAX_MEMBERS], caption=f"each view of each model alone{sums}"),
        table(heads, fold_rows[-MAX_MEMBERS:], caption="OOF log loss by fold"),
    ]


def contest(found: Study) -> list[Html]:
    """Show the ways to blend with their intervals, what each member adds, and who agrees."""
    weights, diagnosis = found.weights, found.diagnosis
    parts: list[Html] = []
    if weights is not None:
        scores = {k: {n: float(v) for n, v in s.items()} for k, s in weights.scores.items()}
        rows = [[name, s["fitted"], s["nested"], s["low"], s["high"]] for name, s in scores.items()]
        plotted = [(name, s["nested"], s["low"], s["high"]) for name, s in scores.items()]
        metric = weights.contest.metric if weights.contest else LOG_LOSS
        parts.append(plots([interval_plot(plotted, title=f"nested {metric} of each way to blend",
                                          x_label=f"{metric}; bar: 95 %")]))  # fmt: skip
        heads = ["way to blend", "fitted", "nested", "low", "high"]
        caption = f"{metric} of blends: fitted on all rows, and nested"
        parts.append(table(heads, rows, caption=caption))
    gains = [[*row[:2], *map(float, row[2:])] for row in diagnosis.gains()]  # type: ignore[arg-type]
    heads = ["what", "name", "weight", "log loss alone", "gained by it"]
    parts.append(table(heads, gains, caption="what each model and view is worth (linear pool)"))
    models = diagnosis.oof.models
    shares = diagnosis.agreement()
    agreed = [
        [name, *(shaded(float(v), float(shares.min()), 1.0) for v in line)]
        for name, line in zip([*models, "blend"], shares, strict=True)
    ]
    caption = "share of rows on whose class two agree (first view of each model)"
    return [*parts, table(["model", *models], agreed, caption=caption)]


def reliability(found: Study) -> list[Html]:
    """Show claimed against observed accuracy before and after the blend's temperature."""
    before, after = found.diagnosis.reliability()
    temperature = found.diagnosis.blend.temperature
    series = {
        name: [(float(c), float(a)) for n, c, a in bins if n >= MIN_BIN]
        for name, bins in (("before", before), ("after", after))
    }
    plot = line_plot(series, title=f"reliability, temperature {temperature:.3f}", diagonal=True,
                     x_label="claimed probability", y_label="share right")  # fmt: skip
    rows: list[list[object]] = []
    for b, pair in enumerate(zip(before, after, strict=True)):
        cells = [(int(n), float(c), float(a)) if n else (0, None, None) for n, c, a in pair]
        rows.append([name_bin(b), *cells[0], *cells[1]])
    heads = ["confidence", "rows before", "claimed", "right", "rows after", "claimed", "right"]
    plotted = note(f"plotted: ranges of confidence with {MIN_BIN} rows or more")
    return [plots([plot]), plotted, table(heads, rows, caption="the blend on OOF rows")]


def classes(found: Study) -> list[Html]:
    """Show every class: rows, loss, accuracy, and what it is taken for."""
    diagnosis = found.diagnosis
    names, targets = diagnosis.oof.classes, diagnosis.oof.targets
    counts = np.bincount(targets, minlength=len(names))
    safe = np.maximum(counts, 1)
    loss = np.bincount(targets, diagnosis.losses, len(names))
    right = np.bincount(targets, diagnosis.right, len(names)) / safe
    total = max(float(loss.sum()), 1e-12)
    mistaken = diagnosis.mistaken_for()
    rows = []
    for k in np.argsort(-loss, kind="stable").tolist():
        other, times = mistaken.get(k, (-1, 0))
        taken = f"{names[other]} ({times}×)" if times else ""
        mean = float(loss[k] / safe[k]) if counts[k] else float("nan")
        accuracy = float(right[k]) if counts[k] else float("nan")
        rows.append(
            [names[k], int(counts[k]), mean, accuracy, percent(float(loss[k] / total)), taken]
        )
    heads = ["class", "rows", "log loss", "accuracy", "of all loss", "most often taken for"]
    return [table(heads, rows, caption=f"{len(names)} classes, the costliest first")]


def mistakes(
    found: Study, root: Path | None, examples: int, heat: Heat | None = None
) -> dict[str, list[Html]]:
    """Show the most confused pairs and the costliest rows, with photographs where data are there.

    ``root`` is None where the data are not there. Of costly rows so many ``examples`` are shown;
    ``heat`` draws what a network looked at.
    """
    diagnosis = found.diagnosis
    names, oof = diagnosis.oof.classes, diagnosis.oof
    pairs = diagnosis.confusions(MAX_PAIRS)
    rows = [[names[a], names[b], count] for a, b, count in pairs]
    confused = [table(["class", "taken for (or the reverse)", "rows"], rows,
                      caption="most confused pairs")]  # fmt: skip
    worst = costliest(diagnosis.losses, max(examples, 24))
    total = max(float(diagnosis.losses.sum()), 1e-12)
    listed = [
        [str(oof.ids[r]), names[oof.targets[r]], names[diagnosis.chosen[r]],
         float(diagnosis.confidence[r]), float(diagnosis.true_probs[r]),
         float(diagnosis.losses[r]), percent(float(diagnosis.losses[r] / total))]
        for r in worst
    ]  # fmt: skip
    heads = ["id", "label", "predicted", "its p", "p of label", "log loss", "of all loss"]
    costly = [table(heads, listed, caption="the costliest OOF rows")]
    if root is not None and examples:
        images = found.images
        confused.insert(0, _pairs(diagnosis, pairs, images, root))
        shown = [_photograph(diagnosis, row, images, root, heat) for row in worst[:examples]]
        costly.insert(0, gallery([part for parts in shown for part in parts]))
    return {"Confused pairs": confused, "Costliest mistakes": costly}


def _pairs(
    diagnosis: Diagnosis, pairs: Sequence[tuple[int, int, int]], images: Mapping[str, str],
    root: Path,
) -> Html:  # fmt: skip
    """Show for each pair a photograph that is mistaken beside one of the other class."""
    oof, blocks = diagnosis.oof, []
    for first, second, count in pairs:
        wrong = np.flatnonzero((oof.targets == first) & (diagnosis.chosen == second))
        other = np.flatnonzero((oof.targets == second) & diagnosis.right)
        if not len(other):
            other = np.flatnonzero(oof.targets == second)
        if not len(wrong) or not len(other):
            continue
        rows = (wrong[diagnosis.confidence[wrong].argmax()],
                other[diagnosis.confidence[other].argmax()])  # fmt: skip
        names = (f"{oof.classes[first]}, taken for {oof.classes[second]}", oof.classes[second])
        shown: list[Html] = []
        for row, name in zip(rows, names, strict=True):
            shown += show_photograph(root / images[str(oof.ids[row])], name)
        title = f"<h3>{escape(counted(count, 'row'))}</h3>"
        blocks.append(Html(f'<div class="pair">{title}{join(shown)}</div>'))
    return gallery(blocks, kind="pairs")


def _photograph(
    diagnosis: Diagnosis, row: int, images: Mapping[str, str], root: Path, heat: Heat | None
) -> list[Html]:
    oof = diagnosis.oof
    label, predicted = oof.classes[oof.targets[row]], oof.classes[diagnosis.chosen[row]]
    name = str(oof.ids[row])
    path = root / images[name]
    sure, loss = diagnosis.confidence[row], diagnosis.losses[row]
    shown = show_photograph(path, f"{label} → {predicted} {sure:.1%}, loss {loss:.2f}")
    if not shown:
        return []
    warm = heat(name, str(path), int(diagnosis.chosen[row])) if heat else None
    if warm is not None:
        shown = [join([*shown, picture(warm, f"what {predicted} was seen in")])]
    return shown


def find_photographs(data_dir: str) -> tuple[Path | None, str]:
    """Return the data folder and nothing, or None and why there are no photographs."""
    try:
        return find_root(data_dir), ""
    except UserError as error:
        return None, f"no photographs: {error}"


def labels(found: Study) -> list[Html]:
    """Show every label: images that have it, loss, area under the curve, average precision."""
    names = found.diagnosis.oof.labels
    targets, losses, right = (
        values.reshape(-1, len(names))
        for values in (found.diagnosis.oof.targets, found.diagnosis.losses, found.diagnosis.right)
    )
    probs = present(found).reshape(targets.shape)
    total = max(float(losses.sum()), 1e-12)
    rows = []
    for k in np.argsort(-losses.sum(axis=0), kind="stable").tolist():
        one = probs[:, [k]], targets[:, [k]]
        share = percent(float(losses[:, k].sum()) / total)
        rows.append(
            [names[k], int(targets[:, k].sum()), float(probs[:, k].mean()),
             float(losses[:, k].mean()), float(right[:, k].mean()), mean_label_auc(*one),
             mean_label_precision(*one), share]
        )  # fmt: skip
    heads = ["label", "images", "mean p", "log loss", "right at .5", "AUC", "average precision",
             "of all loss"]  # fmt: skip
    caption = f"{len(names)} labels on {len(targets):,} images, the costliest first"
    said = "of the blend, before each label's own calibration"
    return [table(heads, rows, caption=caption), note(said)]


def present(found: Study) -> Array:
    """Return the blend's probability of the label of each pair, (N · L,)."""
    probs, has = found.diagnosis.true_probs, found.diagnosis.oof.targets > 0
    return np.where(has, probs, 1.0 - probs)


def label_mistakes(found: Study, root: Path | None, examples: int) -> dict[str, list[Html]]:
    """Show the costliest pairs of image and label, with photographs where data are there.

    ``root`` is None where the data are not there.
    """
    oof, losses = found.diagnosis.oof, found.diagnosis.losses
    probs, names, images = present(found), oof.labels, found.images
    worst = costliest(losses, max(examples, 24))
    listed: list[list[object]] = []
    shown: list[Html] = []
    for row in worst:
        name, label = str(oof.ids[row]).partition("\0")[0], names[row % len(names)]
        said = "has it" if oof.targets[row] else "has it not"
        listed.append([name, label, said, float(probs[row]), float(losses[row])])
        if root is not None and len(shown) < examples:
            caption = f"{label}: {said}, p {probs[row]:.1%}, loss {losses[row]:.2f}"
            shown += show_photograph(root / images[name], caption)
    caption = "the costliest OOF pairs of image and label"
    listing = table(["id", "label", "", "p of label", "log loss"], listed, caption=caption)
    return {"Costliest mistakes": [*([gallery(shown)] if shown else []), listing]}
