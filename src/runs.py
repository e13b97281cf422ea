"""Paths that are written: below ``output/`` every file of a run, elsewhere what --output names.

Nothing else builds a path below ``output/``. An --output that would replace what this program did
not write there before is refused: beside a file of ours stands ``.NAME.written`` with its length
and CRC-32; a folder of ours holds ``.written``. Links, devices, pipes and anybody else's files are
never replaced, by root neither.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict, cast

from src.files import (
    HALF_WRITTEN,
    FileMark,
    Json,
    describe_file,
    hold,
    is_sound,
    patiently,
    read_json,
    read_small,
    refuse_shape,
    sweep,
    write_json,
)
from src.script import UserError, process_rank

AFRESH = "delete its folder and train this fold again"
REMAKE = "delete it and run its training command again, which makes it again"
GO_ON = "run its training command again"
MAX_CONFIG_BYTES = 1 << 24
CONFIG_PARTS = ("options", "resolved", "runtime")
REPAIR_CONFIG = "run its training command again, which writes it anew"
REPAIR = "run its training command again, which makes it again"


class _Below:
    """A path of a fixed name below a folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Run | Output, kind: type | None = None) -> Path:
        return (owner.folder if isinstance(owner, Run) else owner.root) / self.name


@dataclass(frozen=True)
class Run:
    """One training run's folder, ``output/<model>/fold<k>``, and the files in it."""

    folder: Path

    # the resolved config, versions and device; inference reads only this
    config = _Below("config.yaml")
    lock = _Below(".lock")  # held by the process that works on the run
    metrics = _Below("metrics.csv")  # one row a validated epoch
    last = _Below("last.pt")  # the whole training state, to go on from
    # the state before ``last``, kept until the next one is whole
    previous = _Below("last.previous.pt")
    # the weights that training starts from, until the run is finished
    start = _Below("start.safetensors")

    @property
    def has_state(self) -> bool:
        """Whether there is anything to go on from."""
        return self.last.exists() or self.previous.exists()

    best = _Below("best.safetensors")  # weights of the best validation
    oof = _Below("oof.npz")  # logits of the held-out rows, every view
    oof_counts = _Below("oof_counts.npz")  # pixel counts of every held-out image (masks only)
    # pixel counts of every held-out image at every threshold and number of views (masks)
    oof_sweep = _Below("oof_sweep.npz")
    test_logits = _Below("test_logits.npy")  # logits of the test rows, (V, N, K) float16
    # what ``test_logits`` holds; it exists only when they are whole
    test_info = _Below("test.json")
    tuned = _Below("runtime.json")  # layout and precision chosen by measurement
    finished = _Below("finished.json")  # exists when the run is complete; holds its scores
    # steps whose loss was not finite, with the ids of their rows
    nonfinite = _Below("nonfinite.json")
    tensorboard = _Below("tensorboard")  # TensorBoard's event files

    @property
    def folds_again(self) -> str:
        """What a refusal says of ``folds.csv``, which masks have none of."""
        has_table = Output(self.folder.parent.parent).folds.exists()
        return " (folds.csv is made again if you delete it)" if has_table else ""

    @contextmanager
    def hold(self, *, wait: bool = False) -> Iterator[None]:
        """Keep every other process off this run while the block lasts.

        What a killed process left half-written in the folder is deleted first. ``wait`` until
        another process is done with it.

        Raises:
            UserError: another process holds the run; the message says which.
        """
        if process_rank():  # the launcher's first process holds it for all
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.lock, f"{self.folder}", wait=wait):
            sweep(self.folder)
            yield


@dataclass(frozen=True)
class Output:
    """The output folder of one data set."""

    root: Path

    folds = _Below("folds.csv")  # who is in which fold, with the hash of the data it was made for
    # held while ``folds.csv`` is made, so that two runs started together make it once
    folds_lock = _Below(".folds.lock")
    quarantine = _Below("quarantine.csv")  # train images that cannot be read
    duplicates = _Below("duplicates.csv")  # exact and near duplicates found by the audit
    weights = _Below("weights.json")  # the blend
    blend_lock = _Below(".blend.lock")  # held while it is fitted
    suggested_aliases = _Below("suggested_aliases.csv")  # classes that nets cannot tell apart
    suspect_labels = _Below("suspect_labels.csv")  # images that may have a wrong label
    study = _Below("blend_study.journal")  # scores of the blend search, one a line
    submission = _Below("submission.csv")  # the submission
    infer_lock = _Below(".infer.lock")  # held while it is made
    test_log_probs = _Below("test_log_probs.npy")  # the blend's, (N, K) float32
    plan_lock = _Below(".plan.lock")  # held while a plan runs
    plan = _Below("plan.yaml")  # members of a plan, as rows that train_fold.py takes
    # seconds a plan has spent, and what it decided on the way
    plan_state = _Below("plan_state.json")
    survey = _Below("survey.json")  # what scripts/plan.py measured of backbones and sizes
    # one row a submission of a plan: time, members, nested OOF loss, forecast
    history = _Below("history.csv")
    prediction = _Below("prediction.json")  # the score that the submission is expected to get
    submissions = _Below("submissions.csv")  # the leaderboard's scores, beside the forecasts
    report = _Below("report")  # pages for people: ``index.html``, ``data.html``
    cache = _Below("cache")  # decoded pixels
    logs = _Below("logs")  # what runs of overnight.py and cluster.py printed, and blends of a plan

    def scenes(self, name: str) -> Path:
        """Images that were generated, where no data were given."""
        return self.root / "data" / safe_name(name)

    def track(self, name: str) -> Output:
        """Return the folder of one of the mask tracks: ``lane``, ``distill``, ``micro``."""
        return Output(self.root / safe_name(name))

    def masks(self, name: str) -> Path:
        """Predicted masks."""
        return self.root / "masks" / safe_name(name)

    def micro_report(self, name: str) -> Path:
        """Report of the micro runs ``name``."""
        return self.root / f"{safe_name(name)}-report.md"

    def trials(self, name: str) -> Path:
        """Journal of a search for options of the run ``name``."""
        return self.root / safe_name(name) / "trials.journal"

    def run(self, model: str, fold: int | None) -> Run:
        """Return the folder of ``model`` × ``fold``, where None is ``full``.

        A timm id's odd characters become ``_``.
        """
        return Run(self.root / safe_name(model) / f"fold{'full' if fold is None else fold}")

    def finished_runs(self, model: str) -> list[Run]:
        """Return the finished folds of ``model``."""
        found = files_of_folds(self.root / safe_name(model), "finished.json")
        return [Run(path.parent) for path in found]


def files_of_folds(folder: Path, name: str) -> list[Path]:
    """Return the files ``name`` of the folds in a model's folder, not of copies (``fold0_old``)."""
    found = sorted(folder.glob(f"fold*/{name}"))
    return [path for path in found if re.fullmatch(r"fold(0|[1-9]\d*|full)", path.parent.name)]


class Done(TypedDict, total=False):
    """Content of ``finished.json``; the last eight are of masks."""

    config_hash: str
    config: Json
    fold: str
    split_hash: str
    monitor: str
    score: float | None
    best_epoch: int
    epochs: int
    history: list[dict[str, float]]
    files: dict[str, FileMark]
    views: list[dict[str, float]]
    tta_steps: int
    threshold: float
    nested: float
    cleaning: Json | None
    counted: str
    scores: dict[str, float]


DONE: dict[str, type | tuple[type, ...]] = {
    "config_hash": str,
    "config": dict,
    "fold": str,
    "split_hash": str,
    "monitor": str,
    "score": (float, int, type(None)),
    "files": dict,
    "history": list,
}


def is_same_data(then: str, now: str) -> bool:
    """Tell whether hashes of a run's data agree; runs of before noted less, or nothing, of them."""
    return now.startswith(then)


def read_done(run: Run) -> Done:
    """Read a run's ``finished.json``.

    Raises:
        FileNotFoundError: it is not finished.
        UserError: damaged, or not of this form.
    """
    done = read_json(run.finished, REMAKE)
    kinds = {key: kind for key, kind in DONE.items() if key in done or key == "config_hash"}
    refuse_shape(run.finished, done, kinds, REMAKE)
    return cast(Done, done)


def read_config(run: Run) -> Json:
    """Read a run's ``config.yaml``.

    Raises:
        UserError: no run, or damaged.
    """
    import yaml

    try:
        data = patiently(lambda: read_small(run.config, MAX_CONFIG_BYTES))
        content = yaml.safe_load(data.decode("utf-8"))
        if not all(isinstance(content[part], dict) for part in CONFIG_PARTS):
            raise TypeError
        if not is_sound(data):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{run.folder} is no run: it has no {run.config.name}; restore it, or delete the folder"
        ) from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{run.config}: damaged; {REPAIR_CONFIG}") from None
    return content


def training_mark(done: Done) -> str:
    """Return what names the options and weights of a finished run."""
    weights = done.get("files", {}).get(Run(Path()).best.name)
    return f"{done['config_hash']} {weights['crc32'] if weights else ''}".rstrip()


def mark_teacher(run: Run, teacher: Run) -> Json:
    """Return what the ``config.yaml`` of a taught ``run`` says of its teacher.

    Raises:
        UserError: the run has begun with another teacher under that name.
    """
    if not teacher.finished.exists():  # whoever needs it says so
        return {}
    now = then = training_mark(read_done(teacher))
    if run.has_state or run.finished.exists():
        with suppress(UserError):  # damaged: it is written anew
            then = read_config(run)["resolved"].get("teacher", now)
    if then != now:
        raise UserError(
            f"{run.folder} was taught by another {teacher.folder} than there is now: delete the "
            "former folder to teach anew, restore the latter, or pass another --name"
        )
    return {"teacher": now}


def pretrained_mark(pretrained: str) -> str:
    """Return the CRC-32 of the file that ``--pretrained`` names, "" where it names none."""
    path = Path(pretrained)
    if pretrained in ("", "auto", "none") or not path.is_file():
        return ""
    return _crc32_of(path, path.stat().st_mtime_ns)


@cache
def _crc32_of(path: Path, stamp: int) -> str:
    return describe_file(path)["crc32"]


def refuse_other_weights(run: Run, pretrained: str) -> None:
    """Refuse a run that has begun from another file of weights under that name.

    Raises:
        UserError: it has.
    """
    now = pretrained_mark(pretrained)
    if not (now and (run.has_state or run.finished.exists())):
        return
    try:
        known = read_config(run)
    except UserError:  # damaged: it is written anew
        return
    then = known["runtime"].get("pretrained") or now  # runs of before noted none
    if then != now and known["options"].get("pretrained") == pretrained:
        raise UserError(
            f"{run.folder} began from other weights than {pretrained} holds now: restore them, "
            "pass another --name, or delete the folder"
        )


def safe_name(text: str) -> str:
    """Return ``text`` as a folder name that cannot leave its parent, and that Windows takes."""
    name = re.sub(r"[^\w.-]", "_", text).strip(".") or "_"
    is_device = re.fullmatch(r"(con|prn|aux|nul|(com|lpt)\d)(\..*)?", name, re.IGNORECASE)
    return f"_{name}" if is_device else name


MARK = ".written"
REMEDY = "move it away, or name another"


def refuse_file(path: Path, *, ours: bool = False) -> None:
    """Raise unless ``path`` is absent in a folder that exists, or is a file written before.

    With ``ours`` any regular file there is ours, since the place is.

    Raises:
        UserError: it is something else.
    """
    if ours and path.is_dir():
        raise UserError(f"{path}: a folder stands where this file belongs; move it away")
    if not path.name or path.is_dir():
        raise UserError(f"--output {path}: a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it")
    try:
        kind = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind.st_mode):
        raise UserError(f"--output {path}: no regular file, and so not replaced; {REMEDY}")
    if not ours and not _was_written(path):
        raise UserError(
            f"--output {path}: exists, and is not what was written there before; {REMEDY}"
        )


@contextmanager
def own_file(path: Path, *, ours: bool = False) -> Iterator[None]:
    """Refuse as :func:`refuse_file`, and note afterwards what the block has written there.

    Raises:
        UserError: refused, or another process writes there.
    """
    refuse_file(path, ours=ours)
    lock = _mark_of(path, ".lock")
    with hold(lock, str(path)):
        try:
            sweep(path.parent, path.name)
            with nullcontext() if ours else _marked(path):
                yield
        finally:
            with suppress(OSError):  # of Windows, for it is open
                lock.unlink()


@contextmanager
def _marked(path: Path) -> Iterator[None]:
    before = _look_at(path)
    sweep(path.parent, _mark_of(path).name)
    write_json(_mark_of(path), {"writing": True})  # killed in the block, it may still be replaced
    try:
        yield
    except BaseException:
        if _look_at(path) != before:
            raise
        if before is None:  # what somebody puts there later is not ours
            _mark_of(path).unlink(missing_ok=True)
        else:
            write_json(_mark_of(path), before)
        raise
    write_json(_mark_of(path), describe_file(path))


@contextmanager
def own_folder(
    path: Path, inner: tuple[str, ...], *, ours: bool = False, name: str = "--output"
) -> Iterator[None]:
    """Make a folder of results, or take over one that was made before, and hold it for the block.

    ``inner`` are folders in it that are written to; with ``ours`` the place is ours whatever it
    holds; ``name`` is how messages call it.

    Raises:
        UserError: it is a link or a file, or holds what was not written by this program, or
            another process holds it.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{name} {path}: a link or file, where a folder is to be; {REMEDY}")
    lock, begun = path / ".lock", rf"\.lock|\.{re.escape(MARK)}\.\d+{re.escape(HALF_WRITTEN)}"
    seen = r"\.DS_Store|desktop\.ini|Thumbs\.db"  # what a Mac or Windows puts where one looks
    entries = [] if ours or not path.is_dir() else path.iterdir()
    foreign = any(not re.fullmatch(f"{begun}|{seen}", entry.name) for entry in entries)
    if foreign and not (path / MARK).is_file():
        raise UserError(f"{name} {path}: holds files that are not of this program; {REMEDY}")
    for entry in inner:
        if (path / entry).is_symlink():
            raise UserError(f"{path / entry}: a link, and so not written to; {REMEDY}")
    path.mkdir(parents=True, exist_ok=True)
    with hold(lock, str(path)):
        sweep(path)
        for entry in inner:
            sweep(path / entry)
        write_json(path / MARK, {"by": "this program"})
        yield


def _mark_of(path: Path, ending: str = MARK) -> Path:
    return path.with_name(f".{path.name}{ending}")


def _look_at(path: Path) -> FileMark | None:
    return describe_file(path) if path.exists() else None


def _was_written(path: Path) -> bool:
    try:
        known = read_json(_mark_of(path))
    except (FileNotFoundError, UserError):
        return False
    return known == {"writing": True} or known == describe_file(path)
