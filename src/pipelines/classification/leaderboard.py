"""Scores that the leaderboard gave, beside the forecasts of those submissions: ``submissions.csv``.

One row a submission and kind of score (public, private). A submission is known by a hash of its
file; its forecast is that of ``prediction.json``, or of an earlier row of the same submission.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from src.data.csv_io import read_csv, write_csv
from src.ensemble.weights import FORECAST_AGAIN, read_forecast
from src.pipelines.run_folder import as_number
from src.runs import Output
from src.script import UserError, quote

PLAIN = ("oof_log_loss", "test_log_loss")
FORM = '"private 0.128"'


@dataclass(frozen=True)
class Entry:
    """One score of one submission."""

    time: str  # when it was recorded, UTC
    submission: str  # the first 12 hex digits of the file's SHA-256
    models: str  # of its blend, separated by spaces
    metric: str  # what is scored
    nested_oof: float
    forecast: float  # score that was expected
    low: float  # lower end of the forecast's interval
    high: float  # upper end
    kind: str  # ``public``, ``private`` or whatever the user calls it
    score: float  # that the leaderboard gave

    @property
    def inside(self) -> bool:
        """Whether the score lies in the forecast's interval."""
        return self.low <= self.score <= self.high


COLUMNS = tuple(field.name for field in fields(Entry))


def record(output: Output, said: str) -> Entry:
    """Add what the leaderboard said of a submission to ``submissions.csv`` and return the row.

    ``said`` is kind and score, then for an earlier submission the start of its hash; the same kind
    of the same submission is replaced.

    Raises:
        UserError: not of that form, no forecast of the submission, or a damaged file.
    """
    words = said.split()
    score = as_number(words[1].replace(",", ".")) if 2 <= len(words) <= 3 else math.nan
    if not math.isfinite(score) or not re.fullmatch(r"[^\W\d]\w*", words[0]):
        raise UserError(f"--submit_log {quote(said)}: say kind and score, as in {FORM}")
    earlier = read_entries(output.submissions)
    entry = _named(earlier, words[2]) if len(words) == 3 else _latest(output)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = replace(entry, time=now, kind=words[0].lower(), score=score)
    kept = [e for e in earlier if (e.submission, e.kind) != (entry.submission, entry.kind)]
    write_csv(output.submissions, COLUMNS, [tuple(asdict(e).values()) for e in (*kept, entry)])
    return entry


def read_entries(path: Path) -> list[Entry]:
    """Return the rows of ``submissions.csv`` in their order, none where there is no such file.

    Raises:
        UserError: damaged.
    """
    if not path.exists():
        return []
    numbers = {"nested_oof", "forecast", "low", "high", "score"}
    try:
        table = read_csv(path, unescape=True)
        if tuple(table.columns) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        rows = [
            {name: float(cell) if name in numbers else cell for name, cell in row.items()}
            for row in table.to_dict("records")
        ]
        if not all(math.isfinite(row["score"]) for row in rows):
            raise ValueError("a score is not finite")
    except ValueError as error:
        reason = str(error).removeprefix(f"{path} ")[:120]
        raise UserError(f"{path}: damaged ({reason}); restore or delete it") from None
    return [Entry(**row) for row in rows]  # type: ignore[arg-type]


def _latest(output: Output) -> Entry:
    """Return the submission that ``prediction.json`` speaks of, without a score."""
    try:
        said = read_forecast(output.prediction)
    except FileNotFoundError:
        raise UserError(
            f"{output.prediction}: there is no forecast yet; run infer_ensemble.py first"
        ) from None
    try:
        counted = "metric" in said
        metric = str(said["metric"]) if counted else "log_loss"
        nested, test = (said[key] for key in (("oof", "test") if counted else PLAIN))
        oof, mean, low, high = map(float, (nested, test["value"], test["low"], test["high"]))
        models = " ".join(said["models"])
        return Entry(
            "", str(said["submission"]), models, metric, oof, mean, low, high, "", math.nan
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{output.prediction}: names no submission; {FORECAST_AGAIN}") from None


def _named(earlier: list[Entry], start: str) -> Entry:
    """Return an entry of the one submission whose hash begins with ``start``."""
    found = {e.submission: e for e in earlier if e.submission.startswith(start.lower())}
    if len(found) != 1:
        known = ", ".join(dict.fromkeys(e.submission for e in earlier)) or "none yet"
        raise UserError(
            f"--submit_log: {len(found)} submissions begin with {start!r}; choose one of: {known}"
        )
    return next(iter(found.values()))


def summary(entry: Entry) -> str:
    """Return one line on a row."""
    where = "inside" if entry.inside else "outside"
    return (
        f"submission {entry.submission}: {entry.kind} {entry.metric} {entry.score:g}, forecast "
        f"{entry.forecast:.5f} ({entry.low:.5f} to {entry.high:.5f}): {where}"
    )


def cells(entry: Entry) -> list[Any]:
    """Return the cells of the report's table of submissions."""
    inside = "yes" if entry.inside else "no"
    numbers = [entry.nested_oof, entry.forecast, entry.low, entry.high, entry.score]
    return [entry.submission, entry.models, entry.metric, entry.kind, *numbers, inside, entry.time]
