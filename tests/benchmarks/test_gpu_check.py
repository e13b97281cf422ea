import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import SPEED, STEPS, Result, Step
from benchmarks.gpu_report import Report, read_report
from benchmarks.timing import markdown_table

ROOT = Path(__file__).resolve().parents[2]
SHORT = [s.name for s in STEPS if s.module != SPEED and s.name != "tests"]  # it tests itself
HANGING_S = 6.0  # time for its start on a busy machine

PROGRAMS = {
    "good": "report.fact('seen')",
    "missed": "report.expect(False, 'too slow'); report.fact('seen')",
    "broken": "report.row('Table', ('a', 'b'), (1, 2)); raise ValueError('no such thing')",
    "hanging": "c = subprocess.Popen(['sleep', '60']); report.fact(str(c.pid)); c.wait()",
}


def steps_of(folder: Path, limit_s: float = 30.0) -> tuple[list[Step], gpu_check.Command]:
    """Return steps of a line each, and how they are called."""

    def command(step: Step) -> list[str]:
        head = (
            "import subprocess\nfrom benchmarks.gpu_report import Report\nfrom pathlib import Path"
        )
        path = str(folder / f"{step.name}.json")
        return [
            sys.executable,
            "-c",
            f"{head}\nreport = Report(Path({path!r}))\n{PROGRAMS[step.name]}",
        ]

    return [Step(name, "", limit_s, alone=name == "good") for name in PROGRAMS], command


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Run the four programs once."""
    folder = tmp_path_factory.mktemp("steps")
    steps, command = steps_of(folder)
    steps[-1] = Step("hanging", "", HANGING_S, alone=False)
    found = gpu_check.run_steps(steps, command, folder, seconds=60, jobs=2)
    return {result.step.name: result for result in found}


def test_one_step_that_fails_or_hangs_does_not_end_the_others(results: dict[str, Result]) -> None:
    assert {name: result.status for name, result in results.items()} == {
        "good": "PASS", "missed": "FAIL", "broken": "FAIL", "hanging": "FAIL",
    }  # fmt: skip
    assert results["missed"].found == "too slow; seen"
    assert "ValueError: no such thing" in results["broken"].trouble
    assert results["broken"].report.tables == {"Table": [["a", "b"], ["1", "2"]]}
    assert "stopped after 6 s" in results["hanging"].trouble


def test_a_step_stopped_at_its_limit_leaves_no_process(results: dict[str, Result]) -> None:
    (child,) = results["hanging"].report.facts
    for _ in range(50):
        try:
            os.kill(int(child), 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{child}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return  # dead, and not yet collected by init
        time.sleep(0.1)
    pytest.fail("its child is alive")


def test_no_step_begins_after_the_last_minute(tmp_path: Path) -> None:
    steps, command = steps_of(tmp_path)
    found = gpu_check.run_steps(steps, command, tmp_path, seconds=0, jobs=1)
    assert [result.status for result in found] == ["SKIP"] * 4
    assert not list(tmp_path.iterdir())


def test_the_report_has_every_step_and_table(results: dict[str, Result], tmp_path: Path) -> None:
    gpu_check.write_markdown(tmp_path / "gpu.md", list(results.values()), " --tiny")
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| missed | FAIL |" in text and "| good | PASS |" in text
    assert "## Table\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |" in text
    assert "gpu_check.py --tiny`" in text


def test_a_report_survives_its_process(tmp_path: Path) -> None:
    report = Report(tmp_path / "step.json")
    report.expect(True, "fast")
    report.expect(False, "wrong")
    report.row("Numbers", ("net", "ms"), ("a", 3))
    read = read_report(tmp_path / "step.json")
    assert (read.facts, read.failures) == (["fast"], ["wrong"])
    assert markdown_table(read.tables["Numbers"]).splitlines()[-1] == "| a | 3 |"
    assert read_report(tmp_path / "other.json").facts == []


def test_generated_images_are_a_competition(tmp_path: Path) -> None:
    from src.data.index import find_root, read_test, read_train

    gpu_check.write_images(tmp_path, 100, (48, 64))
    index = read_train(find_root(str(tmp_path)))
    assert len(index.table) == 90 and len(index.classes) == 10
    assert len(read_test(tmp_path).table) == 10
    shown = cv2.imread(str(tmp_path / index.table["image"].iloc[0]))
    assert shown.shape == (48, 64, 3) and shown.std() > 5


def test_every_step_has_its_function_and_fits_into_the_time() -> None:
    for step in STEPS:
        assert callable(getattr(importlib.import_module(step.module), step.name)), step.name
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_without_a_card_the_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, "benchmarks/gpu_check.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "skipped: no CUDA card" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_it_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.md")]
    assert gpu_check.main(flags) == 0, capsys.readouterr().out
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert all(f"| {step.name} | PASS |" in text for step in STEPS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHORT)
def test_on_a_card(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cuda", "--only", name]) == 0, capsys.readouterr().out
