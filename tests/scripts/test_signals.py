"""Signals to all processes of a training: the state is saved, no bit of the end is another."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.kill_resume import LEARNED, MODEL, PRELOADED, make_competition
from benchmarks.timing import ROOT
from benchmarks.tracks import draw_bars
from tests.mask_runs import TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="groups of processes, /dev/shm"),
]
PATIENCE_S = 300
FLAGS = [*LEARNED.split(), "--config", "", "--device", "cpu", "--cache", "none", "--fold", "0"]
FLAGS += ["--epochs", "40", "--patience", "0"]


def run_child(script: str, flags: list[str], log: Path, env: dict[str, str], prepare: Any) -> None:
    """Be a script in a session of one's own; called in a process forked from a clean one."""
    from src.script import run_script

    os.setsid()
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(env)
    os.chdir(ROOT)
    if prepare:
        prepare()
    sys.argv = [f"{script}.py", *flags]
    try:
        run_script(importlib.import_module(script).main, launched=True)
    finally:
        atexit._run_exitfuncs()  # as a script's end does; multiprocessing's passes them over


def launch(
    script: str, flags: list[str], log: Path, processes: int = 1, prepare: Any = None
) -> list[Any]:
    """Start a script in one process, or in several as torchrun would."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        own = env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        child = context.Process(target=run_child, args=(script, flags, log, own, prepare))
        child.start()
        started.append(child)
    return started


@dataclass
class Training:
    """A competition, and trainings on it of one or several processes."""

    folder: Path

    def start(
        self, name: str, workers: int = 0, processes: int = 1, prepare: Any = None
    ) -> list[Any]:
        """Start a training in the output folder ``name``."""
        return launch("train_fold", self.flags(name, workers), self.log(name), processes, prepare)

    def flags(self, name: str, workers: int) -> list[str]:
        """Return the command line."""
        place = ["--data_dir", str(self.folder / "data"), "--output_dir", str(self.folder / name)]
        return [*FLAGS, *place, "--num_workers", str(workers)]

    def log(self, name: str) -> Path:
        """Return the file of what a training printed."""
        return self.folder / f"{name}.log"

    def run(self, name: str) -> Path:
        """Return the folder of the fold."""
        return self.folder / name / MODEL / "fold0"

    def reach(self, name: str) -> None:
        """Wait until a training is in the midst of its epochs."""
        wait(lambda: (self.run(name) / "metrics.csv").exists(), self.log(name))

    def whole(self, processes: int) -> dict[str, bytes]:
        """Return the results of a training that nobody disturbed."""
        name = f"whole{processes}"
        if not self.run(name).exists():
            assert end(self.start(name, processes=processes)) == [0] * processes, self.said(name)
        return self.results(name)

    def results(self, name: str) -> dict[str, bytes]:
        """Return what has to be the same to the bit."""
        files = ("best.safetensors", "metrics.csv", "oof.npz")
        return {file: (self.run(name) / file).read_bytes() for file in files}

    def said(self, name: str) -> str:
        """Return what a training printed so far."""
        return self.log(name).read_text() if self.log(name).exists() else ""

    def resume(self, name: str, processes: int = 1) -> None:
        """Go on and compare with the training that nobody disturbed."""
        assert (self.run(name) / "last.pt").exists(), self.said(name)
        assert not (self.run(name) / "finished.json").exists(), "it was over before the signal"
        assert end(self.start(name, processes=processes)) == [0] * processes, self.said(name)
        assert "resuming" in self.said(name)
        assert self.results(name) == self.whole(processes)


def wait(condition: Callable[[], bool], log: Path) -> None:
    """Wait until ``condition`` holds."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()
        assert time.monotonic() < until, log.read_text() if log.exists() else "nothing printed"
        time.sleep(0.01)


def end(processes: list[Any]) -> list[int]:
    """Wait for processes and return their exit statuses by the shell's convention."""
    for process in processes:
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
    return [code if code >= 0 else 128 - code for code in (p.exitcode for p in processes)]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("signals")
    make_competition(folder / "data", num_images=76)
    return Training(folder)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_a_signal_to_the_group_with_workers(training: Training, signum: Any, delay: float) -> None:
    name = f"group{signum}-{delay}"
    started = training.start(name, workers=2)
    training.reach(name)
    time.sleep(delay)
    os.killpg(started[0].pid, signum)
    assert end(started) == [128 + signum], training.said(name)
    assert "the state is saved" in training.said(name) and "Traceback" not in training.said(name)
    training.resume(name)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("apart", [0.0, 0.05, 0.3])
def test_signals_to_two_ranks_at_different_times(
    training: Training, first: int, apart: float
) -> None:
    name = f"ranks{first}-{apart}"
    started = training.start(name, workers=1, processes=2)
    training.reach(name)
    for rank in (first, 1 - first):
        if started[rank].is_alive():
            os.killpg(started[rank].pid, signal.SIGTERM)
        time.sleep(apart)
    assert end(started) == [143, 143], training.said(name)
    said = training.said(name)
    assert said.count("the state is saved") == 1 and "Traceback" not in said
    training.resume(name, processes=2)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_a_killed_rank(training: Training, delay: float) -> None:
    name = f"rank-killed{delay}"
    started = training.start(name, processes=2)
    training.reach(name)
    time.sleep(delay)
    started[1].kill()
    assert end(started) == [1, 137], training.said(name)
    said = training.said(name)
    assert "error: another process of this run ended" in said and "Traceback" not in said
    training.resume(name, processes=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_to_torchrun(training: Training, workers: int) -> None:
    name = f"torchrun{workers}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with training.log(name).open("w") as log:
        launched = subprocess.Popen(
            [*launcher, str(ROOT / "train_fold.py"), *training.flags(name, workers)],
            stdout=log, stderr=log, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    training.reach(name)
    launched.terminate()
    launched.wait(PATIENCE_S)
    assert training.said(name).count("stopped by SIGTERM; the state is saved") == 1
    training.resume(name, processes=2)


def test_ctrl_c_with_spawned_workers(training: Training, tmp_path: Path) -> None:
    """As on macOS and Windows."""
    name = "spawned"
    script = tmp_path / "spawning.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from src.data import dataset\nfrom src.script import run_script\n"
        "from train_fold import main\ndataset.CONTEXT = 'spawn'\n"
        "if __name__ == '__main__':\n    run_script(main)\n"
    )
    with training.log(name).open("w") as log:
        started = subprocess.Popen(
            [sys.executable, str(script), *training.flags(name, 2)],
            stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    training.reach(name)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(PATIENCE_S) == 130, training.said(name)
    assert "the state is saved" in training.said(name) and "Traceback" not in training.said(name)
    training.resume(name)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_a_killed_loader_process_is_one_line_after_a_save(training: Training, delay: float) -> None:
    name = f"killed{delay}"
    started = training.start(name, workers=2)
    training.reach(name)
    time.sleep(delay)
    workers = [child for child in psutil.Process(started[0].pid).children() if child.is_running()]
    workers[int(delay * 20) % len(workers)].kill()
    assert end(started) == [1], training.said(name)
    last = training.said(name).strip().splitlines()[-1]
    assert last.startswith("error: a loader process died") and "memory" in last
    assert "Traceback" not in training.said(name)
    training.resume(name)


def shrink_shared_memory() -> None:
    """Give this process a /dev/shm of 64 KB; needs the right to mount."""
    assert ctypes.CDLL("libc.so.6").unshare(0x00020000) == 0  # CLONE_NEWNS
    subprocess.check_call(["mount", "--make-rprivate", "/"])
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs the right to mount")
def test_too_little_shared_memory_is_foreseen(training: Training) -> None:
    name = "small"
    try:
        status = end(training.start(name, workers=2, prepare=shrink_shared_memory))
    finally:
        said = training.said(name)
    if "Operation not permitted" in said or "AssertionError" in said:
        pytest.skip("no right to mount")
    assert status == [0], said
    assert "loader processes instead of 2: /dev/shm has room for" in said
    assert training.results(name) == training.whole(1)


def test_two_ranks_distil(tmp_path: Path) -> None:
    """Every rank reads what rank 0 wrote a moment ago; rank 0 alone prints."""
    for split, names in (("train", "abcdefgh"), ("val", "ijkl")):
        draw_bars(tmp_path / "shapes" / split, names, 3, seed=len(names))
    flags = [*TINY, "--config", "", "--data_dir", str(tmp_path / "shapes"), "--output_dir"]
    flags += [str(tmp_path / "out"), "--student", "tu-test_resnet", "--teacher", "tu-test_resnet"]
    flags += ["--student_pretrained", "none", "--teacher_pretrained", "none", "--arch", "unet"]
    flags += ["--batch_size", "4", "--epochs", "1", "--allow_weak_teacher", "--name", "duo"]
    for attempt in ("first", "again"):  # the second finds all of it finished
        log = tmp_path / f"{attempt}.log"
        assert end(launch("train_distill", flags, log, processes=2)) == [0, 0], log.read_text()
        assert log.read_text().count("\ndistilled ") == 1
    assert log.read_text().count("skipped") == 3
