"""Finished micro runs in, the table of their scores out: mean ± std over seeds, mean over sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.runs import Run
from src.tracks.roles import gate
from src.tracks.standing import compare_roles

Finished = tuple[Run, Mapping[str, Any]]
PROTOCOL = (
    "score: I / (U + 1e-6) for each image and foreground class true in it, mean over a class's "
    "images, then over classes; held-out images, threshold chosen on the same images "
    "(plain: threshold 0.5); predicting background alone scores 0"
)


def chosen(done: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the row of the views that were kept; nan where none were held out."""
    nothing = dict.fromkeys(("score", "plain", "threshold"), float("nan"))
    return max(done.get("views", [nothing]), key=lambda row: row["score"])


def show(values: Sequence[float]) -> str:
    """Write the mean, and the standard deviation of several."""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def mean_over_sets(results: Mapping[str, Sequence[Finished]]) -> list[float]:
    """Return the mean over the sets, for each seed."""
    table = [[chosen(done)["score"] for _, done in runs] for runs in results.values()]
    return np.mean(table, axis=0).tolist()


def score_table(results: Mapping[str, Sequence[Finished]]) -> str:
    """Return the table.

    Args:
        results: set → its runs, one a seed, all sets with the same seeds.
    """
    head = ("set", "score", "plain", "threshold", "pooled fg IoU")
    rows = [head]
    for name, runs in results.items():
        kept = [chosen(done) for _, done in runs]
        scores = [done.get("scores", {}) for _, done in runs]
        pooled = [s.get("pooled_mean_iou_foreground", float("nan")) for s in scores]
        thresholds = " ".join(f"{row['threshold']:.3g}" for row in kept)
        plain = show([row["plain"] for row in kept])
        rows.append((name, show([row["score"] for row in kept]), plain, thresholds, show(pooled)))
    if len(results) > 1:
        rows.append((f"mean of {len(results)}", show(mean_over_sets(results)), "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    seeds = len(next(iter(results.values())))
    views = sorted({int(chosen(done).get("views", 1)) for r in results.values() for _, done in r})
    how = f"{seeds} seed{'s' * (seeds > 1)}; views {', '.join(map(str, views))}"
    return "\n".join([*lines, f"{how}; {PROTOCOL}"])


def difference(first: Sequence[Finished], second: Sequence[Finished]) -> str:
    """Return the gain of ``second`` over ``first`` with its interval over images."""
    runs = [[run for run, _ in side] for side in (first, second)]
    return str(compare_roles(runs[0], runs[1], "micro_protocol_iou"))


def gate_sets(
    students: Mapping[str, Sequence[Finished]],
    teachers: Mapping[str, Sequence[Finished]],
    name: str,
    *,
    force: bool,
) -> None:
    """Refuse a teacher that does not beat its student on every set, mean over seeds.

    Raises:
        UserError: it does not, and ``force`` is off.
    """
    for where, runs in students.items():
        low, high = (
            {"score": float(np.mean([chosen(done)["score"] for _, done in side])),
             "monitor": f"{where}, {name}"}
            for side in (runs, teachers[where])
        )  # fmt: skip
        gate(low, high, lower_is_better=False, force=force)
