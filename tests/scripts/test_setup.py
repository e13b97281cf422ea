"""The environments: which versions a requirements file, a lock or the oldest set asks for."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from scripts import setup

ROOT = Path(__file__).resolve().parents[2]
FLOORS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
FAKE_UV = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = venv ]; then mkdir -p "$5/bin" && touch "$5/bin/python"; fi
exit {code}
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return ``call(*words, code=0)``: run setup.py with a uv that only notes what it is asked."""

    def run(*words: str, code: int = 0) -> tuple[int, list[str]]:
        log = tmp_path / "log"
        (tmp_path / "uv").write_text(FAKE_UV.format(log=log, code=code), encoding="utf-8")
        (tmp_path / "uv").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        command = [sys.executable, "scripts/setup.py", "--venv", str(tmp_path / "env"), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, log.read_text(encoding="utf-8").splitlines()

    return run


def test_each_requirement_states_one_floor_that_the_oldest_set_pins() -> None:
    assert all(re.fullmatch(r">=[\d.]+", str(entry.specifier)) for entry in FLOORS)
    assert setup.pin_floors("# a\nb>=1.26.4\nc>=2,<3\n") == "# a\nb==1.26.4\nc==2\n"


def test_the_lock_holds_one_version_of_each_requirement_above_its_floor() -> None:
    lock = setup.LOCK.read_text(encoding="utf-8")
    locked = dict(line.split("==") for line in lock.splitlines() if not line.startswith("#"))
    locked = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    for entry in FLOORS:
        assert entry.specifier.contains(locked[entry.name.lower()]), entry.name


@pytest.mark.skipif(os.name == "nt", reason="the uv of this test is a shell script")
def test_what_is_installed(call: Any, tmp_path: Path) -> None:
    code, asked = call("requirements.txt")
    assert code == 0 and asked[0].startswith("venv ") and asked[1].endswith("-r requirements.txt")
    assert call("requirements.txt", "--locked")[1][-1].endswith(f"-c {setup.LOCK}")
    oldest = tmp_path / "env" / "oldest.txt"
    code, asked = call("requirements-test.txt", "--oldest")
    assert asked[-1].endswith(f"-r requirements-test.txt -c {oldest}") and len(asked) == 4
    assert "torch==2.6.0\n" in oldest.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="the uv of this test is a shell script")
def test_a_failed_installation_fails(call: Any) -> None:
    assert call("requirements.txt", code=3)[0] == 1


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_missing_interpreter_is_said_aloud() -> None:
    command = ["make", "test-oldest", "OLDEST=3.99", "PYENV_ROOT=nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "NOT TESTED: no Python 3.99" in done.stderr


def older_pythons() -> list[str]:
    """Return interpreters of this machine that are too old: on the PATH, or pyenv's."""
    folder = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which(f"python3.{minor}") for minor in range(6, 10)]
    found += [str(path) for path in folder.glob("3.[6-9].*/bin/python")]
    return sorted(filter(None, found))


@pytest.mark.parametrize("python", older_pythons())
def test_a_python_that_is_too_old_is_told_so(python: str) -> None:
    done = subprocess.run(
        [python, "scripts/setup.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if not done.returncode or "not found" in done.stderr:  # pyenv's name for one not installed
        pytest.skip("no interpreter")
    assert done.returncode == 2 and "Python 3.10 or newer is needed" in done.stdout, done.stderr


def test_scripts_that_an_older_python_starts_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or newer is needed"):
        runpy.run_path(str(ROOT / "src" / "__init__.py"))
