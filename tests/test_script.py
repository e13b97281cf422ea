"""Streams that cannot stop the work, and what a script says when it ends."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src.script import (
    MachineError,
    is_launched,
    nearest,
    one_line,
    process_rank,
    quote,
    run_script,
)

ROOT = Path(__file__).resolve().parents[1]
# Work goes on after the report; the file tells that it came to its end.
WORK = """
import sys
from pathlib import Path
from src.script import run_script

def main(argv):
    for number in range(int(argv[1])):
        print(f"{number} 0.03 – 0.05 · 아반떼 \\udcff", flush=True)
        print(f"{number} – 아반떼", file=sys.stderr, flush=True)
    Path(argv[0]).write_text("done")

run_script(main)
"""


def work(tmp_path: Path, shell: str, lines: int = 1, **environment: str) -> tuple[int, bytes]:
    """Run WORK in ``shell``, where ``$WORK`` stands for it; return status and all that was said."""
    script, done = tmp_path / "work.py", tmp_path / "done"
    script.write_text(WORK, encoding="utf-8")
    words = f"'{sys.executable}' '{script}' '{done}' {lines}"
    answer = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell.replace("$WORK", words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.read_text() == "done", answer.stderr.decode()
    return answer.returncode, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PYTHONIOENCODING": "cp949"}, "0 0.03 ? 0.05 · 아반떼 ?".encode("cp949")),
        ({"PYTHONIOENCODING": "euc_kr"}, "아반떼".encode("euc_kr")),
        ({"PYTHONIOENCODING": "ascii"}, b"0 0.03 ? 0.05 ? ??? ?"),
        ({"LC_ALL": "C"}, b"0.05"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"0.03 ? 0.05"),
        ({"PYTHONIOENCODING": "utf-8"}, "0.03 – 0.05 · 아반떼 ?".encode()),
    ],
)  # fmt: skip
def test_an_encoding_cannot_stop_the_work(
    tmp_path: Path, environment: dict[str, str], words: bytes
) -> None:
    status, said = work(tmp_path, "$WORK", **environment)
    assert status == 0 and words in said and b"Traceback" not in said


@pytest.mark.parametrize(
    "shell",
    [
        "$WORK >&-",
        "$WORK 2>&-",
        "$WORK >&- 2>&- <&-",
        "$WORK 2>/dev/null | head -1",
        "$WORK 2>&1 >/dev/null | head -1",
        *(["$WORK >/dev/full 2>&1"] if Path("/dev/full").exists() else []),
    ],
)
def test_a_lost_stream_cannot_stop_the_work(tmp_path: Path, shell: str) -> None:
    status, said = work(tmp_path, shell, lines=3000)
    assert status == 0 and b"Error" not in said


@pytest.mark.parametrize(
    ("script", "shell"),
    [
        ("train_fold", "PYTHONIOENCODING=cp949 $RUN"),
        ("train_fold", "$RUN | head -1"),
        ("optimize_weights", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $RUN"),
        ("infer_ensemble", "$RUN >&-"),
    ],
)
def test_scripts_speak_anywhere(script: str, shell: str) -> None:
    """Help ends well and a mistake is one line, whatever reads them."""
    for flags, status in (("--help", 0), ("--seeed 1 --model 가", 2)):
        words = f"'{sys.executable}' {script}.py {flags}"
        answer = subprocess.run(
            ["bash", "-o", "pipefail", "-c", shell.replace("$RUN", words)],
            cwd=ROOT, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert answer.returncode == status, answer.stderr.decode("cp949", "replace")
        assert len(answer.stderr.splitlines()) == (0 if status == 0 else 1)


def test_words_of_messages() -> None:
    assert nearest("labl", ["id", "label"]) == " (did you mean label?)"
    assert nearest("x", []) == nearest("zzz", ["label"]) == ""
    assert quote("a") == "'a'" and quote(1.5) == "1.5"
    assert len(quote("a" * 1000)) < 70 and "too long" in quote(16**9999)
    assert one_line(ValueError("a\nb\x1b[31m")) == "a b [31m"


def status(main: Callable[[list[str]], int | None], launched: bool = False) -> int:
    """Return the exit status; standard output is put back."""
    out = sys.stdout
    try:
        with pytest.raises(SystemExit) as stop:
            run_script(main, launched=launched)
    finally:
        sys.stdout = out
    return int(stop.value.code or 0)


def launch(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Look like one of two processes of a launcher."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_what_the_machine_did_is_one_line_and_status_1(capsys: pytest.CaptureFixture) -> None:
    def main(argv: list[str]) -> int:
        raise MachineError("a loader process died")

    assert status(main) == 1
    assert capsys.readouterr().err == "error: a loader process died\n"


def test_a_python_without_the_packages_is_one_line(capsys: pytest.CaptureFixture) -> None:
    def main(argv: list[str]) -> int:
        importlib.import_module("no_such_package.part")
        return 0

    assert status(main) == 2
    said = capsys.readouterr().err
    assert "has no package no_such_package: start this with the Python of .venv" in said
    assert said.startswith("error: ") and said.count("\n") == 1


SCRIPTS = [
    p.relative_to(ROOT).as_posix() for f in (".", "scripts") for p in (ROOT / f).glob("*.py")
]


@pytest.mark.parametrize("script", [*SCRIPTS, ""])
def test_no_script_ends_in_a_traceback_without_the_packages(script: str, tmp_path: Path) -> None:
    command = [script, "--help"] if script else ["scripts/demo.py"]
    command[0] = str(ROOT / command[0])
    without = [sys.executable, "-S", *command]  # -S: no site-packages
    done = subprocess.run(without, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert done.returncode == 2 and "has no package" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_stale_rank_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")
    assert process_rank() == 0 and not is_launched()


def test_the_first_of_several_processes_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for rank in (0, 1):
        launch(monkeypatch, rank)
        assert status(lambda _: print(f"rank {os.environ['RANK']}"), launched=True) == 0
    assert capsys.readouterr().out == "rank 0\n"


def test_several_processes_are_refused_where_one_does_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    launch(monkeypatch, 0)
    assert status(lambda _: 1 // 0) == 2
    assert "leave torchrun out" in capsys.readouterr().err


def test_every_script_sets_mps_fallback_before_it_imports_torch() -> None:
    """torch reads the variable once, at its import."""
    program = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        early = name == "torch" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1"
        assert not early, f"{script} imports torch first"

sys.meta_path.insert(0, Watch())
for script in sys.argv[1:]:
    os.environ.pop("PYTORCH_ENABLE_MPS_FALLBACK", None)
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]
    importlib.import_module(script)
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1", script
"""
    root = Path(__file__).resolve().parents[1]
    scripts = [path.stem for pattern in ("train_*.py", "infer_*.py", "optimize_*.py")
               for path in sorted(root.glob(pattern))]  # fmt: skip
    assert len(scripts) == 7
    done = subprocess.run(
        [sys.executable, "-c", program, *scripts], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("harm", ["folder", "loop", "parent"])
def test_another_thing_under_a_files_name_is_one_line_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, harm: str
) -> None:
    """The name has a line end: it may not forge a second line."""
    place = tmp_path / "a\nerror: b" / "weights.json"
    place.parent.mkdir()
    if harm == "folder":
        place.mkdir()
    elif harm == "loop":
        place.symlink_to(place)
    else:
        place.parent.rmdir()
        place.parent.touch()

    def main(argv: list[str]) -> None:
        place.open("r+b")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    said = capsys.readouterr().err
    wanted = {"folder": "move that folder away", "loop": "leads to itself", "parent": "move away"}
    assert stop.value.code == 1 and said.count("\n") == 1 and wanted[harm] in said
    assert "weights.json" in said and said.endswith("and run this again\n")
