"""Run folders: config.yaml, whether a run is finished, runs copied from an earlier output folder.

``--resume_from`` names that folder: a notebook finds what the one before it wrote mounted
read-only. What is copied is checked by its checksums; a run that does not pass is left behind and
trained anew. Nothing heavy is imported here: a finished run is recognised in milliseconds.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import EngineConfig, FoldConfig, config_hash, learned_options
from src.files import (
    SEAL,
    FileMark,
    Json,
    atomic_write,
    check_held,
    describe_file,
    hold,
    patiently,
    read_json,
    regular,
    seal,
    write_json,
)
from src.option import Options
from src.runs import (
    REPAIR,
    Done,
    Output,
    Run,
    is_same_data,
    pretrained_mark,
    read_config,
    read_done,
    refuse_other_weights,
)
from src.script import UserError, process_rank

if TYPE_CHECKING:
    from src.engine.runtime import Runtime


SCENES = "road_scenes"


def parse_fold(text: str) -> int | None:
    """Read ``--fold``: a number, or None for ``full``."""
    if text.isascii() and text.isdigit():
        return int(text)
    if text != "full":
        raise UserError(f"--fold {text}: a number from 0, or `full`")
    return None


def parse_size(flag: str, text: str) -> tuple[int, int] | None:
    """Read ``HxW``, one number for a square, or ``native`` (None)."""
    if text == "native":
        return None
    match = re.fullmatch(r"(\d+)(?:[xX×](\d+))?", text.strip())
    if not match or not 16 <= int(match[1]) <= 8192 or not 16 <= int(match[2] or match[1]) <= 8192:
        raise UserError(f"--{flag} {text}: expected HxW in pixels, as in 384x384, or native")
    return int(match[1]), int(match[2] or match[1])


def data_label(data_dir: str) -> str:
    """Return a short name of the data set for the names of runs."""
    place = os.path.realpath(data_dir)  # Path.resolve raises at a link that leads to itself
    return (Path(place).name or "data") if data_dir else SCENES


def finished(
    run: Run, config: EngineConfig, split_hash: str = "", *, held: bool = True
) -> Done | None:
    """Return what a complete run left, and say so; None while there is something to do.

    Where the run is not ``held`` yet, what it lost is left for the look under its lock to say.

    Raises:
        UserError: begun from other weights, or complete, but with other options, or on other data
            than ``split_hash`` names.
    """
    refuse_other_weights(run, getattr(config, "pretrained", ""))
    try:
        done = read_done(run)
    except FileNotFoundError:
        if not isinstance(config, FoldConfig) and run.last.exists():
            refuse_other_data(run, config)
        return None
    refuse_copy(run, done)
    if done.get("config_hash") != config_hash(config):
        now = json.loads(json.dumps(learned_options(config)))  # lists, as the file has them
        then = done.get("config", {})
        names = [name for name in {**then, **now} if now.get(name) != then.get(name)]
        usual = type(config)  # an option that was not there yet was as it is by default
        changed = [f"{n} was {then.get(n, getattr(usual, n, 'not there'))!r}" for n in names]
        raise UserError(
            f"{run.folder} is finished, with other options ({', '.join(changed)}): pass another "
            "--name, or delete the folder"
        )
    lost = lost_files(run, done)
    if not isinstance(config, FoldConfig) and run.config.name not in lost:
        refuse_other_data(run, config)
    if split_hash and not is_same_data(done.get("split_hash", ""), split_hash):
        raise UserError(
            f"{run.folder} was trained on other images, labels or folds than there are now: "
            f"restore them{run.folds_again}, pass another --name, or delete the folder"
        )
    if lost:
        if held:
            told = ", ".join(lost)
            print(f"note: {run.folder}: finished, but {told} lost or damaged; made again")
        return None
    print(f"{run.folder}: finished, {done.get('monitor')} {done.get('score')}; skipped")
    return done


def refuse_copy(run: Run, done: Done) -> None:
    """Refuse a finished folder of another fold under this fold's name.

    Raises:
        UserError: it is one.
    """
    if done.get("fold", run.folder.name) != run.folder.name:
        raise UserError(
            f"{run.folder} is a copy of {done['fold']}: restore what was there, or move it away "
            "and train this fold again"
        )


def refuse_other_data(run: Run, config: EngineConfig) -> None:
    """Refuse a run that has begun on another folder of data; one that is gone may have moved.

    Raises:
        UserError: naming both folders.
    """
    try:
        before, now = str(read_config(run)["options"].get("data_dir", "")), config.data_dir
    except UserError:  # damaged: it is made again
        return
    if before and now and not (Path(before).is_dir() and Path(now).is_dir()):
        return
    if bool(before) != bool(now) or (before and not Path(before).samefile(now)):
        places = (f"--data_dir {place}" if place else "generated scenes" for place in (before, now))
        raise UserError(
            f"{run.folder} was trained on {next(places)}, not on {next(places)}: pass another "
            f"--name; if both hold the same, --data_dir {before or now}"
        )


def lost_files(run: Run, done: Done) -> list[str]:
    """Return the names of a finished run's files that are not there, or not what was written."""
    files = done.get("files", {})
    return sorted(name for name in files if not _is_whole(run.folder / name, files[name]))


def _is_whole(path: Path, known: FileMark) -> bool:
    try:
        # a pipe or folder of that name is never read
        return path.is_file() and patiently(lambda: describe_file(path)) == known
    except FileNotFoundError:
        return False


def refuse_lost(run: Run, done: Done, *paths: Path) -> None:
    """Refuse to use files of a finished run that are not those its training wrote.

    Raises:
        UserError: one of ``paths`` is lost, damaged, or of another run.
    """
    files = done.get("files", {})
    known = {path.name: files[path.name] for path in paths if path.name in files}
    lost = lost_files(run, {"files": known})
    if lost:
        raise UserError(
            f"{run.folder / lost[0]}: missing, or not what its training wrote; {REPAIR}"
        )


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file that this program wrote; none where it cannot be read."""
    try:
        with regular(path).open(encoding="utf-8", errors="replace", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


def as_number(text: str | None) -> float:
    """Return the number that a cell of a CSV file holds, nan where it holds none."""
    try:
        return float(text or "")
    except (TypeError, ValueError):
        return float("nan")


def recover_finished(run: Run) -> Done | None:
    """Return what a finished run left, where its weights are whole though other files are lost.

    Where the weights themselves are lost, the other files are deleted: the run starts afresh.
    The run's lock must be held.
    """
    try:
        done = read_done(run)
    except FileNotFoundError:
        return None
    lost = lost_files(run, done)
    if run.best.name not in lost:
        if run.metrics.name in lost:
            from src.engine.log import write_metrics

            write_metrics(run, done.get("history", []))
        return done
    print(f"note: {run.best}: lost or damaged; trained again from the start", flush=True)
    states = (run.last, run.previous, run.start)
    for path in (run.finished, *states, run.best, run.oof, run.oof_counts, run.metrics):
        path.unlink(missing_ok=True)
    return None


def write_config(
    run: Run, config: Options, resolved: Json, runtime: Runtime, identity: str
) -> None:
    """Write ``config.yaml``: the options, what they came to, versions, commit and device.

    Raises:
        UserError: another process does not see it: it would miss the weights, after all epochs.
    """
    import yaml

    from src.engine.log import versions

    content = {"options": dataclasses.asdict(config), "resolved": resolved}
    content["runtime"] = {
        **runtime.describe_device(),
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "compiled": runtime.compiled,
        "run": identity,
        "processes": runtime.num_processes,
        "pretrained": pretrained_mark(getattr(config, "pretrained", "")),
    }
    content["versions"] = versions()
    plain = json.loads(json.dumps(content))  # YAML's safe dialect has no tuples
    text = yaml.safe_dump(plain, allow_unicode=True, sort_keys=False)
    if runtime.is_main:
        with atomic_write(run.config) as file:
            file.write(seal(f"# {SEAL}\n{text}".encode()))
    if runtime.num_processes > 1:
        seen = _shows(run.config, runtime.from_main(text).encode())
        if not all(runtime.gather(seen)):
            raise UserError(
                f"{run.folder}: not every process sees what the first one wrote there: give them "
                "one --output_dir that all machines share"
            )


LISTED_S = 90.0  # a network disk's client may know a folder as it was a minute ago


def _shows(path: Path, content: bytes) -> bool:
    """Tell whether a file holds ``content``, by now or a little later."""
    until = time.monotonic() + LISTED_S
    while not (path.is_file() and content in patiently(path.read_bytes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def describe_training(config: EngineConfig, split_hash: str, monitor: str) -> Done:
    """Return what ``finished.json`` says first: options, data, and what the score is."""
    done: Done = {"config_hash": config_hash(config), "config": learned_options(config)}
    return done | {"split_hash": split_hash, "monitor": monitor}


def finish_run(run: Run, done: Done, *, keep_last: bool) -> None:
    """Declare a run complete, and drop the states that only an interrupted one needs."""
    check_held(run.lock)
    _drop(run.previous)
    results = (run.best, run.oof, run.oof_counts, run.oof_sweep, run.config, run.metrics)
    files = {path.name: describe_file(path) for path in results if path.exists()}
    write_json(run.finished, done | {"fold": run.folder.name, "files": files})
    _drop(run.start)
    if not keep_last:
        _drop(run.last)


def _drop(path: Path) -> None:
    """Delete a state, which on Windows a virus scanner may have open for a moment."""
    patiently(partial(path.unlink, missing_ok=True))


def open_earlier(resume_from: str, output: Output) -> Output:
    """Return the earlier output folder.

    Raises:
        UserError: no such folder, none of this program's, or the same one.
    """
    root = Path(resume_from)
    if not root.is_dir():
        raise UserError(f"--resume_from {root}: no such folder")
    if output.root.exists() and root.samefile(output.root):
        raise UserError(f"--resume_from {root}: is --output_dir; leave the flag out")
    earlier = Output(root)
    if not earlier.folds.exists():
        inner = next(iter(sorted(root.glob("**/folds.csv"))), None)
        hint = f"; did you mean {inner.parent}?" if inner else ""
        raise UserError(f"--resume_from {root}: no output folder, it has no folds.csv{hint}")
    return earlier


def copy_folds(resume_from: str, output: Output) -> None:
    """Copy who is in which fold, unless that is settled here already."""
    earlier = open_earlier(resume_from, output)
    output.root.mkdir(parents=True, exist_ok=True)
    with hold(output.folds_lock, str(output.folds), wait=True):
        if not output.folds.exists():
            names = (output.quarantine, output.duplicates, output.folds)
            _copy(earlier.root, output.root, [path.name for path in names])


def copy_run(resume_from: str, output: Output, run: Run) -> None:
    """Copy a run that is not begun here: its results, or the state to go on from.

    Files arrive whole or not at all, ``finished.json`` last.
    """
    source = Run(open_earlier(resume_from, output).root / run.folder.relative_to(output.root))
    if not source.folder.is_dir() or process_rank():
        return
    with run.hold():
        if not run.has_state and not run.finished.exists():  # which are copied last
            _copy_run(source, run)


def _copy_run(source: Run, run: Run) -> None:
    done = None
    if source.finished.exists():
        try:
            done = read_done(source)
        except UserError as error:
            _discard_copy(source, run, str(error))
            return
    names = [*(done or {}).get("files", {}), run.config.name, run.metrics.name, run.tuned.name]
    names += [run.nonfinite.name]
    if done is None:
        names += [path.name for path in (run.start, run.best, run.previous, run.last)]
    else:
        names += [run.test_logits.name, run.test_info.name]
    _copy(source.folder, run.folder, dict.fromkeys(names))
    lost = lost_files(run, done) if done else drop_damaged_states(run)
    if lost or not (done or run.has_state):
        why = f"{', '.join(lost)} lost or damaged" if lost else "nothing to go on from"
        _discard_copy(source, run, why)
        return
    if done:
        _copy(source.folder, run.folder, [run.finished.name])
    print(
        f"{run.folder}: {'finished' if done else 'begun'}, copied from {source.folder}", flush=True
    )


def drop_damaged_states(run: Run) -> list[str]:
    """Delete states that are not whole; return them where no other is left."""
    from src.engine.checkpoint import damage

    broken = [path for path in (run.last, run.previous) if path.exists() and damage(path)]
    for path in broken:
        path.unlink()
    return [] if run.has_state else [path.name for path in broken]


def drop_damaged(run: Run) -> list[str]:
    """Delete what a begun run could not go on from or would stop at; return the names.

    Where its weights at the start or the best ones are damaged, its states go with them.
    """
    from src.engine.weights import load_weights

    lost = drop_damaged_states(run)
    if run.tuned.exists() and not _reads(read_json, run.tuned):
        lost.append(run.tuned.name)
        run.tuned.unlink()
    broken = [p for p in (run.start, run.best) if p.exists() and not _reads(load_weights, p)]
    for path in (run.start, run.best, run.last, run.previous) if broken else ():
        path.unlink(missing_ok=True)
    return lost + [path.name for path in broken]


def _reads(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except UserError:
        return False
    return True


def _discard_copy(source: Run, run: Run, reason: str) -> None:
    """Take away what was copied of a run that is not whole, and say so."""
    for path in run.folder.iterdir():
        if path.is_file() and path != run.lock:
            path.unlink()
    print(f"note: {source.folder}: not taken over ({reason}); trained from the start", flush=True)


def copy_plan(resume_from: str, output: Output) -> None:
    """Copy a plan with all its runs, unless one is begun here; its hours count anew."""
    earlier = open_earlier(resume_from, output)
    if output.plan_state.exists():
        return
    copy_folds(resume_from, output)
    for folder in sorted(earlier.root.glob("*/fold*")):
        copy_run(resume_from, output, Run(output.root / folder.relative_to(earlier.root)))
    names = (output.survey, output.plan, output.history, output.weights, output.submission)
    _copy(earlier.root, output.root, [path.name for path in names])
    from src.pipelines.classification.plan_files import read_state

    write_json(output.plan_state, read_state(earlier.plan_state)[1] | {"spent_s": 0.0})


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the files that are there, each whole or not at all."""
    for name in names:
        if (source / name).is_file():
            with (source / name).open("rb") as content, atomic_write(target / name) as file:
                shutil.copyfileobj(content, file, 1 << 22)
