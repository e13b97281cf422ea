"""Files of a plan, read with checks: state, survey, history, and the rows of ``plan.yaml``.

What can be made again is made again, with a note; what a user writes is refused by name where it
makes no sense; and a member that has begun keeps the options it began with, whatever its row says.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from src.config import FoldConfig, config_hash, learned_options
from src.files import Json, patiently, read_json, read_small, write_text
from src.models.pretrained import check_timm_id
from src.pipelines.classification.plan import RECIPES, Candidate
from src.reader import fill, read_rows
from src.runs import Output, Run, read_config, safe_name
from src.script import UserError

HISTORY = ("minutes", "models", "nested_oof_log_loss", "forecast_test_log_loss")
MAX_HISTORY_BYTES = 1 << 24
_ROW = re.compile(r"\d{1,7}\.\d\d,[^,]+,\d{1,9}\.\d{6},\d{1,9}\.\d{6}")
MAX_SECONDS = 1e9
OF_THE_PLAN = {  # what no row says
    "model": "the name of a row; its backbone is timm_id",
    "name": "the name of a row stands before it",
    "fold": "every row is trained on all folds",
    "config": "rows are read from this file alone",
    "dry_run": "pass --dry_run",
}
PLAN_AGAIN = "correct it, or delete it to plan again (what has begun goes on)"
_OF_A_PLAN = re.compile(rf"_(probe|{'|'.join(RECIPES)})(_\d+)?")


def is_number(value: object, least: float = 0.0, most: float = math.inf) -> bool:
    """Tell whether ``value`` is a finite number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and least <= value <= most


def _is_pair(value: object, least: float, most: float) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(is_number(part, least, most) for part in value)


SOUND: dict[str, Callable[[object], bool]] = {
    "spent_s": lambda value: is_number(value, 0.0, MAX_SECONDS),
    "dropped": lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    "under_way": lambda value: (
        isinstance(value, list)
        and all(isinstance(v, list) and [type(part) for part in v] == [str, int] for v in value)
    ),
    "seconds": lambda value: (
        isinstance(value, dict) and all(_is_pair(pair, 1e-6, 1e7) for pair in value.values())
    ),
    "paces": lambda value: _is_pair(value, 1e-4, 1e4),
    "judged": lambda value: isinstance(value, bool),
    "submission": lambda value: isinstance(value, dict),
}


LIMITS = {  # of what a survey says of a candidate
    "image_size": (16, 8192),
    "log_loss": (0,),
    "accuracy": (0, 1),
    "train_rate": (1e-6, 1e9),
    "infer_rate": (1e-6, 1e9),
    "useful_size": (0,),
    "gain": (0, 1),
}


def read_state(path: Path, earlier: float = 0.0) -> tuple[float, Json]:
    """Return the seconds spent, and what else ``plan_state.json`` remembers.

    So many seconds as ``earlier`` are known to be spent, should the file not say.
    """
    try:
        content = read_json(path)
        found = {"spent_s": None, **content}
        wrong = [key for key, sound in SOUND.items() if key in found and not sound(found[key])]
    except FileNotFoundError:
        content, wrong = {}, ["spent_s"] if earlier else []
    except UserError:
        content, wrong = {}, ["its content"]
    if wrong:
        print(
            f"note: {path}: {' and '.join(wrong)} lost or damaged; at least {earlier / 60:.1f} "
            "minutes are spent, the rest is found out again",
            flush=True,
        )
    kept = {key: content[key] for key in SOUND if key in content and key not in wrong}
    return float(kept.pop("spent_s", earlier)), kept


def read_history(path: Path, *, say: bool = False) -> list[list[str]]:
    """Return the rows of ``history.csv``, without those that are damaged or there twice."""
    try:
        data = patiently(lambda: read_small(path, MAX_HISTORY_BYTES))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: {error}; move it away and run this again") from None
    text = data.decode("utf-8", errors="replace").replace("\0", "\ufffd")
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    rows: list[list[str]] = []
    for row in lines:
        if _ROW.fullmatch(",".join(row)) and row not in rows:
            rows.append(row)
    damaged = len([line for line in lines if line != list(HISTORY)]) - len(rows)
    if damaged and say:
        print(f"note: {path}: {damaged} of {len(lines)} lines are no submissions; left out")
    return rows


def add_history(
    path: Path, seconds: float, models: Sequence[str], loss: float, forecast: float
) -> None:
    """Add a row to ``history.csv``; it is whole at any moment."""
    row = [f"{seconds / 60:.2f}", " ".join(models), f"{loss:.6f}", f"{forecast:.6f}"]
    rows = [list(HISTORY), *read_history(path), row]
    write_text(path, "".join(",".join(cells) + "\n" for cells in rows))


def last_seconds(path: Path) -> float:
    """Return when the last submission in ``history.csv`` was made, in seconds of the plan."""
    rows = read_history(path, say=True)
    return 60 * float(rows[-1][0]) if rows else 0.0


def read_survey(path: Path, asked: Json, hours: float) -> tuple[str, bool, list[Candidate]] | None:
    """Return precision, layout (channels last?) and candidates; None = to be measured.

    ``asked`` has ``models`` and ``sizes`` to choose from; empty ones are any. One that ended early
    is made again where the plan has twice as many ``hours``.
    """
    try:
        kept = read_json(path)
        then = kept.get("asked", asked)
        other = [f"--{key}" for key, value in asked.items() if value and value != then[key]]
        if kept.get("ended_early") and hours >= 2 * kept["hours"]:
            other.append("--hours")
        if other:
            print(
                f"note: {path}: made for other {' and '.join(other)}; measured again. Rows of "
                f"{path.with_name('plan.yaml')} stay: delete those that are not wanted",
                flush=True,
            )
            return None
        found = [Candidate(**row) for row in kept["candidates"]]
        sound = kept["precision"] in ("fp32", "bf16", "fp16") and found
        if sound and type(kept["channels_last"]) is bool and all(map(_is_measured, found)):
            return kept["precision"], kept["channels_last"], found
    except FileNotFoundError:
        return None
    except (UserError, KeyError, TypeError):
        pass
    print(f"note: {path}: damaged; measured again", flush=True)
    return None


def _is_measured(candidate: Candidate) -> bool:
    flags = (candidate.fixed_size, candidate.stages, candidate.whole_id)
    try:
        check_timm_id(candidate.timm_id)
    except (UserError, TypeError, AttributeError):
        return False
    if type(candidate.image_size) is not int or not all(type(flag) is bool for flag in flags):
        return False
    return all(is_number(getattr(candidate, name), *most) for name, most in LIMITS.items())


def read_plan(
    path: Path, output: Output, flags: Mapping[str, object]
) -> tuple[Json, dict[str, Json]] | None:
    """Return the ``train:`` block and the rows of ``plan.yaml``; None = to be planned.

    ``flags`` go before the rows.

    Raises:
        UserError: what a user wrote there makes no sense.
    """
    if not path.exists():
        return None
    try:
        common, rows = read_rows(path, FoldConfig)
    except UserError as error:
        raise UserError(f"{error}; {PLAN_AGAIN}") from None
    rows = keep_begun(output, common, rows, flags)
    if not rows:
        raise UserError(f"{path}: has no rows; {PLAN_AGAIN}")
    for name, row in {"train": common, **rows}.items():
        try:
            _refuse_keys(row, flags)
            if row is common:
                continue
            config = fill(FoldConfig, {**common, **row, **flags, "model": name})
            check_timm_id(config.timm_id or config.model)
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}; {PLAN_AGAIN}") from None
    return common, rows


def _refuse_keys(row: Json, flags: Mapping[str, object]) -> None:
    """Raise a UserError for a key that a row does not decide."""
    for key in row:
        if key in OF_THE_PLAN:
            raise UserError(f"{key}: {OF_THE_PLAN[key]}")
        if key in flags and row[key] != flags[key]:
            raise UserError(f"{key} is an option of all rows: pass --{key}")


def keep_begun(
    output: Output,
    common: Mapping[str, object],
    rows: Mapping[str, Json],
    flags: Mapping[str, object],
) -> dict[str, Json]:
    """Return rows in which every member that has begun has the options it began with.

    ``rows`` are as they are read, or newly planned; ``flags`` go before them.
    """
    begun = {
        path.parent.parent.name: Run(path.parent)
        for path in sorted(output.root.glob("*/fold*/config.yaml"), reverse=True)
    }
    own = {safe_name(name): name for name in rows}
    own |= {name: name for name in begun if _OF_A_PLAN.search(name) and name not in own}
    kept = dict(rows)
    for folder, name in own.items():
        then = _options_of(begun[folder], flags, name) if folder in begun else None
        if then is None:
            continue
        try:
            now = config_hash(
                fill(FoldConfig, {**common, **rows.get(name, {}), **flags, "model": name})
            )
        except UserError:
            now = ""
        if name not in rows or now != config_hash(then):
            print(f"note: plan.yaml: {name} has begun, so its row stays as it was", flush=True)
            usual = learned_options(FoldConfig())
            kept[name] = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in learned_options(then).items()
                if key not in flags and (value != usual.get(key) or key in common)
            }
    return kept


def _options_of(run: Run, flags: Mapping[str, object], name: str) -> FoldConfig | None:
    """Return the options a run was started with, under the same flags; None = unknown."""
    try:
        saved = read_config(run)["options"]
        fields = learned_options(FoldConfig())
        known = {key: value for key, value in saved.items() if key in fields}
        return fill(FoldConfig, {**known, **flags, "model": name})
    except UserError:
        return None
