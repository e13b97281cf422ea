"""Two processes on one run: the second names the holder; the dead hold nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.files import check_held, hold
from src.runs import Output
from src.script import UserError
from tests.scripts.conftest import Place

pytest.importorskip("fcntl")
ROOT = Path(__file__).resolve().parents[2]

# holds a run, starts a child as a loader would, and says so
HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from src.files import hold
path = Path(sys.argv[1])
path.parent.mkdir(parents=True, exist_ok=True)
with hold(path, "it"):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Return ``holder(lock)``: a process that holds ``lock``, with a child."""
    started, children = [], []

    def start(path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        started.append(process)
        assert process.stdout
        children.append(int(process.stdout.readline()))
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    for child in children:
        os.kill(child, 9)


def test_the_second_names_the_holder_and_other_folds_run(place: Place, holder: Callable) -> None:
    run = Output(place.output).run("other", 0)
    process = holder(run.folder / ".lock")
    prediction = place.train("--name", "other", "--epochs", "1")
    assert prediction.status == 2
    assert prediction.is_one_line(str(run.folder), f"process {process.pid} on", "wait for it")
    prediction = place.train("--name", "other", "--epochs", "1", "--fold", "1")
    assert prediction.status == 0, prediction.err
    process.kill()
    process.wait()  # its child lives on, and holds nothing
    assert place.train("--name", "other", "--epochs", "1").status == 0


@pytest.mark.parametrize("script", ["optimize", "infer"])
def test_blend_and_answer_are_made_by_one(place: Place, holder: Callable, script: str) -> None:
    lock = {"optimize": ".blend.lock", "infer": ".infer.lock"}[script]
    process = holder(place.output / lock)
    prediction = getattr(place, script)()
    assert prediction.status == 2 and prediction.is_one_line(f"process {process.pid}")
    process.kill()
    process.wait()
    assert getattr(place, script)().status == 0


def test_folds_are_waited_for(tmp_path: Path, holder: Callable) -> None:
    lock = tmp_path / ".folds.lock"
    process = holder(lock)
    waiter = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path; from src.runs import hold\n"
            "with hold(Path(sys.argv[1]), 'folds', wait=True): print('mine')",
            str(lock),
        ],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    time.sleep(0.5)
    assert waiter.poll() is None
    process.kill()
    assert waiter.communicate(timeout=120)[0] == "mine\n"


def test_a_deleted_lock_is_taken_again_or_given_up(tmp_path: Path, holder: Callable) -> None:
    lock = tmp_path / ".lock"
    with hold(lock, "it"):
        lock.unlink()
        check_held(lock)
        assert f"process {os.getpid()}" in lock.read_text()
        lock.unlink()
        process = holder(lock)
        with pytest.raises(UserError, match=f"deleted.*in use by process {process.pid}"):
            check_held(lock)
    check_held(lock)  # not this process's business


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_regular_file_is_not_written_to(tmp_path: Path, kind: str) -> None:
    lock, precious = tmp_path / ".lock", tmp_path / "precious"
    precious.write_text("mine")
    {
        "link": lambda: lock.symlink_to(precious),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[kind]()
    with pytest.raises(UserError, match="no regular file"), hold(lock, "it"):
        pass
    assert precious.read_text() == "mine"


def test_a_lock_file_left_behind_stops_nobody(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("process 1 on another machine")
    with hold(lock, "it"):
        assert f"process {os.getpid()}" in lock.read_text()
    with pytest.raises(ZeroDivisionError), hold(lock, "it"):
        raise ZeroDivisionError
    with hold(lock, "it"):
        pass


def test_what_a_killed_process_left_is_deleted_by_the_next_holder(tmp_path: Path) -> None:
    run = Output(tmp_path).run("m", 0)
    run.folder.mkdir(parents=True)
    left = [run.folder / name for name in (".last.pt.77.tmp", ".last.previous.pt.link.tmp")]
    kept = run.folder / "last.pt"
    for path in (*left, kept):
        path.write_bytes(b"x")
    with run.hold():
        assert not any(path.exists() for path in left) and kept.exists()


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch, capsys) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with hold(tmp_path / ".lock", "it"):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().out


def test_refusal_is_a_user_error(tmp_path: Path, holder: Callable) -> None:
    holder(tmp_path / ".lock")
    with pytest.raises(UserError, match="it is in use by process"), hold(tmp_path / ".lock", "it"):
        pass


def test_test_images_wait_for_a_run_that_another_process_has(
    place: Place, holder: Callable
) -> None:
    """As a card of a plan that predicts them right after its fold."""
    run = next(place.output.glob("*/fold1"))
    (run / "test.json").unlink()
    process = holder(run / ".lock")
    ends = threading.Timer(1.5, process.kill)
    ends.start()
    begun = time.monotonic()
    predicted = place.infer()
    ends.join()
    assert predicted.status == 0 and (run / "test.json").exists(), predicted.err
    assert time.monotonic() - begun > 1.4
