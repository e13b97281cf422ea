"""scripts/cluster.py: a Ray worker is killed in mid-fold, and the grid ends as if it were not."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.kill_resume import LEARNED, MODEL
from scripts import cluster
from src.script import UserError
from tests.scripts.conftest import RUNNING, Place

ROOT = Path(__file__).resolve().parents[2]
LONGER = ["--epochs", "8", "--patience", "0", "--checkpoint_minutes", "0"]


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "ray\[default\]"'):
        cluster.main(["--models", "a", "--", "--epochs", "2"])
    with pytest.raises(UserError, match="--num_gpu"):
        cluster.main(["--num_gpu", "1"])


class PlayedRay:
    """A Ray of one machine whose tasks end well, and what they were called with."""

    def __init__(self, **resources: float) -> None:
        self.resources, self.called = resources, []

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def init(self, **options: object) -> None:
        """Connect."""

    def remote(self, **options: object) -> Callable[[object], SimpleNamespace]:
        return lambda _: SimpleNamespace(remote=self.call)

    def call(self, *words: Any) -> int:
        self.called.append(words[1:3])
        return len(self.called)

    def wait(self, references: list[int], **options: object) -> tuple[list[int], list[int]]:
        return references, []

    def get(self, reference: int) -> tuple[int, str]:
        return 0, ""


def test_no_card_is_the_cpu_though_ray_leaves_cards_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--models", "a", "--folds", "0", "--output_dir", str(tmp_path), "--address", "local"]
    for num_gpus, on_cpu in (("0", True), ("1", False)):
        ray = PlayedRay(CPU=4.0, GPU=2.0)
        monkeypatch.setitem(sys.modules, "ray", ray)
        assert cluster.main([*flags, "--num_gpus", num_gpus]) == 0
        given = {script: "--device cpu" in " ".join(words) for script, words in ray.called}
        assert given == {"train_fold": on_cpu, "optimize_weights": False, "infer_ensemble": on_cpu}


def test_what_the_machine_has_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for it for ever."""
    monkeypatch.setitem(sys.modules, "ray", PlayedRay(CPU=2.0))
    for name, said in (("num_gpus", "--num_gpus 1: Ray has 0"), ("num_cpus", "--num_cpus 4: Ray")):
        flags = {"num_gpus": "0", "num_cpus": "1"} | {name: said.split()[1][0]}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        with pytest.raises(UserError, match=said):
            cluster.main([*words, "--models", "a", "--address", "local"])


def test_a_worker_calls_a_script_and_keeps_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "played_script.py").write_text(
        "from src.script import MachineError, UserError\n"
        "def main(words):\n    print(words[0])\n"
        "    if words[0] == 'mistake': raise UserError('say it otherwise')\n"
        "    if words[0] == 'killed': raise MachineError('a loader process')\n"
        "    return 143 if words[0] == 'stop' else 0\n"
    )
    log = tmp_path / "log"

    def call(word: str) -> tuple[int, str]:
        return cluster.call(str(tmp_path), "played_script", [word], str(log))

    assert call("well") == (0, "")
    assert call("mistake") == (2, "say it otherwise")
    assert call("stop")[0] == 143
    with pytest.raises(OSError, match="a loader process"):  # which Ray tries again
        call("killed")
    assert re.search(
        rf"process {os.getpid()}: played_script\nwell\n.*\nmistake\nerror", log.read_text()
    )
    assert "a disk that all share" in cluster.call("/nowhere", "train_fold", [], str(log))[1]


@pytest.fixture
def ray_needed() -> None:
    if importlib.util.find_spec("ray") is None:
        reason = 'scripts/cluster.py is NOT TESTED: pip install "ray[default]"'
        warnings.warn(reason, pytest.PytestWarning, stacklevel=1)
        pytest.skip(reason)


@pytest.mark.slow
def test_a_killed_worker_changes_no_bit(ray_needed: None, fresh: Place, tmp_path: Path) -> None:
    assert fresh.train("--fold", "all", *LONGER).status == 0
    there = tmp_path / "there"
    flags = LEARNED.replace(f"--model {MODEL} ", "").split()
    command = [
        sys.executable, str(ROOT / "scripts/cluster.py"), "--address", "local", "--local_cpus", "2",
        "--num_gpus", "0", "--num_cpus", "1", "--table_seconds", "2", "--models", MODEL,
        "--folds", "0", "1", "--data_dir", str(fresh.data), "--output_dir", str(there), "--",
        *flags, *RUNNING, "--config", "", *LONGER,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment["RAY_worker_niceness"] = "0"  # the test's own processes are not niced either
    grid = subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    killed = kill_in_mid_fold(there / MODEL / "fold0", grid)
    printed, _ = grid.communicate(timeout=500)
    assert grid.returncode == 0, printed
    log = (there / "logs" / f"{MODEL}_fold0.log").read_text()
    workers = re.findall(r"process (\d+): train_fold", log)
    assert len(workers) == 2 and int(workers[0]) == killed != int(workers[1]) and "resuming" in log
    assert "2 running" in printed and "2 finished" in printed
    for fold in ("fold0", "fold1"):
        for name in ("best.safetensors", "oof.npz", "metrics.csv"):
            mine = (there / MODEL / fold / name).read_bytes()
            assert mine == (fresh.output / MODEL / fold / name).read_bytes(), f"{fold}/{name}"
    assert (there / "submission.csv").exists()


def kill_in_mid_fold(run: Path, grid: subprocess.Popen[str]) -> int:
    """Kill the process that trains ``run`` after its second validation; return its number."""
    for _ in range(30_000):
        assert grid.poll() is None, grid.communicate()[0]
        metrics = run / "metrics.csv"
        if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
            found = re.match(r"process (\d+) on", (run / ".lock").read_text())
            assert found and not (run / "finished.json").exists()
            os.kill(int(found[1]), signal.SIGKILL)
            return int(found[1])
        time.sleep(0.01)
    raise AssertionError("no validation in 300 s")
