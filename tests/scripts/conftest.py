"""A tiny competition that went the whole way once, and a way to call scripts as a shell would."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.kill_resume import LEARNED, MODEL, make_competition, make_weights
from src.script import run_script

RUNNING = ["--device", "cpu", "--num_workers", "0", "--cache", "none"]


@dataclass(frozen=True)
class Answer:
    """What a script left: exit status and what it printed."""

    status: int
    out: str
    err: str

    def is_one_line(self, *words: str) -> bool:
        """Tell whether stderr is one clear line with these words, and not a traceback."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err or self.out
        assert all(word in lines[0] for word in words), lines[0]
        return True


@dataclass(frozen=True)
class Place:
    """A competition and its output folder."""

    data: Path
    output: Path
    call: Callable[..., Answer]

    @property
    def run(self) -> Path:
        """The folder of fold 0."""
        return self.output / MODEL / "fold0"

    def train(self, *flags: str) -> Answer:
        """Run train_fold.py; later flags win."""
        fold = [] if "--fold" in flags else ["--fold", "0"]
        return self.start("train_fold", *LEARNED.split(), *RUNNING, "--config", "", *fold, *flags)

    def optimize(self, *flags: str) -> Answer:
        """Run optimize_weights.py without a search."""
        return self.start("optimize_weights", "--trials", "0", "--presets", "", *flags)

    def infer(self, *flags: str) -> Answer:
        """Run infer_ensemble.py with two views."""
        return self.start(
            "infer_ensemble", "--device", "cpu", "--num_workers", "0", "--tta_steps", "2", *flags
        )

    def start(self, script: str, *flags: str) -> Answer:
        """Run a script on this competition."""
        place = ["--data_dir", str(self.data), "--output_dir", str(self.output)]
        return self.call(script, *place, *flags)

    def whole_results(self) -> dict[str, bytes]:
        """Return path → content of everything under output/ that somebody relies on."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and path.name[0] != "." and path.parent.name != "tensorboard"
        }


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of weights of the tiny model."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    make_weights(path)
    return path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return ``call(script, *flags)``, which runs a script's main as its last line does."""

    def call_script(script: str, *flags: str) -> Answer:
        main = importlib.import_module(script).main
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_script(main)
        out, err = capfd.readouterr()
        return Answer(int(stop.value.code or 0), out, err)

    return call_script


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and, after the first use of ``place``, ``output``."""
    folder = tmp_path_factory.mktemp("competition")
    make_competition(folder / "data")
    return folder


@pytest.fixture
def fresh(template: Path, tmp_path: Path, call: Callable) -> Place:
    """The competition before anything was done."""
    shutil.copytree(template / "data", tmp_path / "data")
    return Place(tmp_path / "data", tmp_path / "output", call)


@pytest.fixture
def bare(fresh: Place) -> Place:
    """Its folders without images, classes and sample submission."""
    for folder in ("train", "test"):
        for path in sorted((fresh.data / folder).rglob("*.png")):
            path.unlink()
    for folder in ("evening", "noon"):
        (fresh.data / "train" / folder).rmdir()
    for table in ("sample_submission.csv", "test.csv"):
        (fresh.data / table).unlink(missing_ok=True)
    return fresh


@pytest.fixture
def plan_of_a_probe(weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a plan without time for more than a probe."""
    from src.pipelines.classification import follow, plan

    monkeypatch.setattr(plan, "first_members", lambda *_: [])
    monkeypatch.setattr(follow, "next_member", lambda *_, **__: None)
    short = ["--sizes", "32", "--folds", "2", "--device", "cpu"]
    return ["--models", MODEL, "--pretrained", str(weights), *short]


@pytest.fixture
def place(template: Path, fresh: Place) -> Iterator[Place]:
    """The competition, trained on two folds, blended and answered; a copy for each test."""
    if not (template / "output" / "submission.csv").exists():
        whole = Place(template / "data", template / "output", fresh.call)
        for prediction in (whole.train("--fold", "all"), whole.optimize(), whole.infer()):
            assert prediction.status == 0, prediction.err
    shutil.copytree(template / "output", fresh.output)
    yield fresh
