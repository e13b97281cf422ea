"""Runs of an earlier, perhaps read-only output folder, copied on first use (``--resume_from``).

A notebook finds what the one before it wrote mounted read-only. What is copied is checked by its
checksums; a run that does not pass is left behind and trained anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from src.files import atomic_write, hold, write_json
from src.pipelines.run_folder import lost_files
from src.runs import Output, Run, read_done
from src.script import UserError, process_rank


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


def bring_folds(resume_from: str, output: Output) -> None:
    """Take over who is in which fold, unless that is settled here already."""
    earlier = open_earlier(resume_from, output)
    output.root.mkdir(parents=True, exist_ok=True)
    with hold(output.folds_lock, str(output.folds), wait=True):
        if not output.folds.exists():
            names = (output.quarantine, output.duplicates, output.folds)
            _copy(earlier.root, output.root, [path.name for path in names])


def bring_run(resume_from: str, output: Output, run: Run) -> None:
    """Copy a run that is not begun here: its results, or the state to go on from.

    Files arrive whole or not at all, ``finished.json`` last.
    """
    source = Run(open_earlier(resume_from, output).root / run.folder.relative_to(output.root))
    if not source.folder.is_dir() or process_rank():
        return
    with run.hold():
        if not run.has_state and not run.finished.exists():  # which are copied last
            _bring(source, run)


def _bring(source: Run, run: Run) -> None:
    done = None
    if source.finished.exists():
        try:
            done = read_done(source)
        except UserError as error:
            _leave(source, run, str(error))
            return
    names = [*(done or {}).get("files", {}), run.config.name, run.metrics.name, run.tuned.name]
    names += [run.nonfinite.name]
    if done is None:
        names += [path.name for path in (run.start, run.best, run.previous, run.last)]
    else:
        names += [run.test_logits.name, run.test_info.name]
    _copy(source.folder, run.folder, dict.fromkeys(names))
    lost = lost_files(run, done) if done else _damaged_states(run)
    if lost or not (done or run.has_state):
        why = f"{', '.join(lost)} lost or damaged" if lost else "nothing to go on from"
        _leave(source, run, why)
        return
    if done:
        _copy(source.folder, run.folder, [run.finished.name])
    print(
        f"{run.folder}: {'finished' if done else 'begun'}, copied from {source.folder}", flush=True
    )


def _damaged_states(run: Run) -> list[str]:
    """Delete states that are not whole; return them where no other is left."""
    from src.engine.checkpoint import damage

    broken = [path for path in (run.last, run.previous) if path.exists() and damage(path)]
    for path in broken:
        path.unlink()
    return [] if run.has_state else [path.name for path in broken]


def _leave(source: Run, run: Run, reason: str) -> None:
    """Take away what was copied of a run that is not whole, and say so."""
    for path in run.folder.iterdir():
        if path.is_file() and path != run.lock:
            path.unlink()
    print(f"note: {source.folder}: not taken over ({reason}); trained from the start", flush=True)


def bring_plan(resume_from: str, output: Output) -> None:
    """Copy a plan with all its runs, unless one is begun here; its hours count anew."""
    earlier = open_earlier(resume_from, output)
    if output.plan_state.exists():
        return
    bring_folds(resume_from, output)
    for folder in sorted(earlier.root.glob("*/fold*")):
        bring_run(resume_from, output, Run(output.root / folder.relative_to(earlier.root)))
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
