"""Paths below ``output/``: every file of a run; nothing else builds such a path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.files import hold, read_json, refuse_shape, sweep
from src.script import process_rank

AFRESH = "delete its folder and train this fold again"
REMAKE = "delete it and run its training command again, which makes it again"
GO_ON = "run its training command again"
REPAIR = "run its training command again, which makes it again"


@dataclass(frozen=True)
class Run:
    """One training run's folder, ``output/<model>/fold<k>``, and the files in it."""

    folder: Path

    @property
    def config(self) -> Path:
        """The resolved config, versions and device; inference reads only this."""
        return self.folder / "config.yaml"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.folder / ".lock"

    @property
    def metrics(self) -> Path:
        """One row a validated epoch."""
        return self.folder / "metrics.csv"

    @property
    def last(self) -> Path:
        """The whole training state, to go on from."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The state before ``last``, kept until the next one is whole."""
        return self.folder / "last.previous.pt"

    @property
    def start(self) -> Path:
        """The weights that training starts from, until the run is finished."""
        return self.folder / "start.safetensors"

    @property
    def has_state(self) -> bool:
        """Whether there is anything to go on from."""
        return self.last.exists() or self.previous.exists()

    @property
    def best(self) -> Path:
        """Weights of the best validation."""
        return self.folder / "best.safetensors"

    @property
    def oof(self) -> Path:
        """Logits of the held-out rows, every view."""
        return self.folder / "oof.npz"

    @property
    def oof_counts(self) -> Path:
        """Pixel counts of every held-out image (masks only)."""
        return self.folder / "oof_counts.npz"

    @property
    def oof_sweep(self) -> Path:
        """Pixel counts of every held-out image at every threshold and number of views (masks)."""
        return self.folder / "oof_sweep.npz"

    @property
    def test_logits(self) -> Path:
        """Logits of the test rows, (V, N, K) float16."""
        return self.folder / "test_logits.npy"

    @property
    def test_info(self) -> Path:
        """What ``test_logits`` holds; it exists only when they are whole."""
        return self.folder / "test.json"

    @property
    def tuned(self) -> Path:
        """Layout and precision chosen by measurement."""
        return self.folder / "runtime.json"

    @property
    def finished(self) -> Path:
        """Exists when the run is complete; holds its scores."""
        return self.folder / "finished.json"

    @property
    def nonfinite(self) -> Path:
        """Steps whose loss was not finite, with the ids of their rows."""
        return self.folder / "nonfinite.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.folder / "tensorboard"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every other process off this run while the block lasts.

        What a killed process left half-written in the folder is deleted first.

        Raises:
            UserError: another process holds the run; the message says which.
        """
        if process_rank():  # the launcher's first process holds it for all
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.lock, f"{self.folder}"):
            sweep(self.folder)
            yield


@dataclass(frozen=True)
class Output:
    """The output folder of one data set."""

    root: Path

    @property
    def folds(self) -> Path:
        """Who is in which fold, with the hash of the data it was made for."""
        return self.root / "folds.csv"

    @property
    def folds_lock(self) -> Path:
        """Held while ``folds.csv`` is made, so that two runs started together make it once."""
        return self.root / ".folds.lock"

    @property
    def quarantine(self) -> Path:
        """Train images that cannot be read."""
        return self.root / "quarantine.csv"

    @property
    def duplicates(self) -> Path:
        """Exact and near duplicates found by the audit."""
        return self.root / "duplicates.csv"

    @property
    def weights(self) -> Path:
        """The blend."""
        return self.root / "weights.json"

    @property
    def study(self) -> Path:
        """Scores of the blend search, one a line."""
        return self.root / "blend_study.journal"

    @property
    def submission(self) -> Path:
        """The submission."""
        return self.root / "submission.csv"

    @property
    def plan(self) -> Path:
        """Members of a plan, as rows that train_fold.py takes."""
        return self.root / "plan.yaml"

    @property
    def plan_state(self) -> Path:
        """Seconds a plan has spent, and what it decided on the way."""
        return self.root / "plan_state.json"

    @property
    def survey(self) -> Path:
        """What scripts/plan.py measured of backbones and sizes."""
        return self.root / "survey.json"

    @property
    def history(self) -> Path:
        """One row a submission of a plan: time, members, nested OOF loss, forecast."""
        return self.root / "history.csv"

    @property
    def prediction(self) -> Path:
        """The score that the submission is expected to get."""
        return self.root / "prediction.json"

    @property
    def report(self) -> Path:
        """Pages for people: ``index.html``, ``data.html``."""
        return self.root / "report"

    @property
    def cache(self) -> Path:
        """Decoded pixels."""
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        """What scripts/overnight.sh printed."""
        return self.root / "logs"

    def scenes(self, name: str) -> Path:
        """Images that were generated, where no data were given."""
        return self.root / "data" / safe_name(name)

    def track(self, name: str) -> Output:
        """Return the folder of one of the mask tracks: ``lane``, ``distill``, ``micro``."""
        return Output(self.root / safe_name(name))

    def masks(self, name: str) -> Path:
        """Predicted masks."""
        return self.root / "masks" / safe_name(name)

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
        found = sorted((self.root / safe_name(model)).glob("fold*/finished.json"))
        return [Run(path.parent) for path in found]


DONE: dict[str, type | tuple[type, ...]] = {
    "config_hash": str,
    "config": dict,
    "split_hash": str,
    "monitor": str,
    "score": (float, int, type(None)),
    "files": dict,
    "history": list,
}


def read_done(run: Run) -> dict[str, Any]:
    """Read a run's ``finished.json``.

    Raises:
        FileNotFoundError: it is not finished.
        UserError: damaged, or not of this form.
    """
    done = read_json(run.finished, REMAKE)
    kinds = {key: kind for key, kind in DONE.items() if key in done or key == "config_hash"}
    refuse_shape(run.finished, done, kinds, REMAKE)
    return done


def training_mark(done: dict[str, Any]) -> str:
    """Return what names the options and weights of a finished run.

    Args:
        done: content of ``finished.json``.
    """
    weights = done.get("files", {}).get(Run(Path()).best.name, {})
    return f"{done['config_hash']} {weights.get('crc32', '')}".rstrip()


def safe_name(text: str) -> str:
    """Return ``text`` as a folder name that cannot leave its parent."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"
