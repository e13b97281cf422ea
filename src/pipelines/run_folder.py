"""Run folder of a config: its path, config.yaml, and whether the run is finished.

Nothing heavy is imported here: a finished run is recognised in milliseconds.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import EngineConfig, config_hash, learned_options
from src.files import (
    SEAL,
    FileMark,
    Json,
    atomic_write,
    check_held,
    describe_file,
    patiently,
    regular,
    seal,
    write_json,
)
from src.option import Options
from src.runs import REPAIR, Done, Output, Run, read_done
from src.script import UserError

if TYPE_CHECKING:
    from src.engine.runtime import Runtime
    from src.mask_config import SegmentationConfig


SCENES = "road_scenes"
SIDE = 384


def fold_of(text: str) -> int | None:
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
    return (Path(data_dir).resolve().name or "data") if data_dir else SCENES


def find_images(
    config: SegmentationConfig, *, num_scenes: int = 30, num_frames: int = 8
) -> tuple[str, Path]:
    """Return (layout, folder) of the data; road scenes are generated where none are named.

    Args:
        config: ``data_dir``, ``source`` and ``resolution``.
        num_scenes: scenes to generate.
        num_frames: frames of each.

    Raises:
        UserError: no such folder.
    """
    root = Path(config.data_dir)
    if not config.data_dir:
        size = parse_size("resolution", config.resolution) or (SIDE, SIDE)
        # every set has a folder of its own: a test scene of one is a training scene of another
        name = f"{SCENES}_{num_scenes}x{num_frames}_{size[1]}x{size[0]}_seed{config.fold_seed}"
        root = Output(Path(config.output_dir)).scenes(name)
        from src.data.road_scenes import write_scenes

        print(f"no --data_dir: {num_scenes} road scenes in {root}", flush=True)
        write_scenes(
            root, num_scenes=num_scenes, num_frames=num_frames, size=size, seed=config.fold_seed
        )
        return "lanes", root
    if not root.is_dir():
        raise UserError(f"--data_dir {root}: no such folder")
    from src.data.sources.lanes import TWO_CLASSES
    from src.data.sources.registry import detect_source
    from src.mask_config import LaneConfig

    if config.source != "auto":
        return config.source, root
    source = detect_source(root)
    if isinstance(config, LaneConfig) and source in TWO_CLASSES:
        return "lanes", root  # one class against the background, neighbouring frames in one group
    return source, root


def finished(run: Run, config: EngineConfig, split_hash: str = "") -> Done | None:
    """Return what a complete run left, and say so; None while there is something to do.

    Raises:
        UserError: complete, but with other options, or on other data than ``split_hash`` names.
    """
    try:
        done = read_done(run)
    except FileNotFoundError:
        return None
    if done.get("config_hash") != config_hash(config):
        now = learned_options(config)
        then = done.get("config", {})
        names = [name for name in {**then, **now} if now.get(name) != then.get(name)]
        changed = [f"{name} was {then.get(name, 'not there')!r}" for name in names]
        raise UserError(
            f"{run.folder} is finished, with other options ({', '.join(changed)}): pass another "
            "--name, or delete the folder"
        )
    if split_hash and done.get("split_hash", split_hash) != split_hash:
        raise UserError(
            f"{run.folder} was trained on other images, labels or folds than there are now: "
            "restore them (folds.csv is made again if you delete it), pass another --name, or "
            "delete the folder"
        )
    lost = lost_files(run, done)
    if lost:
        print(f"note: {run.folder}: finished, but {', '.join(lost)} lost or damaged; made again")
        return None
    print(f"{run.folder}: finished, {done.get('monitor')} {done.get('score')}; skipped")
    return done


def lost_files(run: Run, done: Done) -> list[str]:
    """Return the names of a finished run's files that are not there, or not what was written.

    Args:
        run: the run.
        done: content of ``finished.json``.
    """
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


def take_up(run: Run) -> Done | None:
    """Return what a finished run left whose weights are whole though other files are lost.

    Where the weights themselves are lost, all that stands is taken away: the run starts afresh.
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
    """Write ``config.yaml``: the options, what they came to, versions, commit and device."""
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
    }
    content["versions"] = versions()
    plain = yaml.safe_dump(_plain(content), allow_unicode=True, sort_keys=False)
    if runtime.is_main:
        with atomic_write(run.config) as file:
            file.write(seal(f"# {SEAL}\n{plain}".encode()))


def finish_run(run: Run, done: Done, *, keep_last: bool) -> None:
    """Declare a run complete, and drop the states that only an interrupted one needs."""
    check_held(run.lock)
    run.previous.unlink(missing_ok=True)
    results = (run.best, run.oof, run.oof_counts, run.oof_sweep, run.config, run.metrics)
    files = {path.name: describe_file(path) for path in results if path.exists()}
    write_json(run.finished, done | {"files": files})
    run.start.unlink(missing_ok=True)
    if not keep_last:
        run.last.unlink(missing_ok=True)


def _plain(value: object) -> object:
    """Turn tuples into lists, all the way down: YAML's safe dialect has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
