"""scripts/overnight.sh: one run a card at a time, stops, failures, hours, and words for others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from benchmarks.kill_resume import LEARNED, MODEL
from scripts.overnight import ask_to_save
from src.pipelines.grid import GridConfig, find_cards, read_grid
from src.script import UserError
from tests.scripts.conftest import Place

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
ROOT = Path(__file__).resolve().parents[2]

# Stands for train_fold.py: ends well only where another run is under way at the same time.
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
here = Path(__file__).parent / "seen"
fold = sys.argv[sys.argv.index("--fold") + 1]
card = os.environ.get("CUDA_VISIBLE_DEVICES")
shared = os.environ.get("LOCAL_WORLD_SIZE")
(here / f"fold{fold}").write_text(json.dumps([card, shared, sys.argv[1:]]))
(here / f"order{fold}").write_text(os.environ.get("CUDA_DEVICE_ORDER", "own"))
print("training", fold)
how = os.environ.get("HOW", "")
if how == "fail" and fold == "0":
    sys.exit(2)
if how == "stop":
    signal.signal(signal.SIGTERM, lambda *_: ((here / f"saved{fold}").touch(), sys.exit(143)))
    time.sleep(60)
if how == "pair":
    for _ in range(int(os.environ.get("TRIES", "400"))):
        if len(list(here.glob("fold*"))) > 1:
            sys.exit(0)
        time.sleep(0.05)
    sys.exit(3)
"""
OTHERS = "import sys; open(__file__ + '.seen', 'w').write(' '.join(sys.argv[1:]))"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A project whose scripts are played, and a bin folder for programs."""
    for name in ("scripts", "seen", "bin"):
        (tmp_path / name).mkdir()
    for name in ("src", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("overnight.sh", "overnight.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "train_fold.py").write_text(TRAIN)
    for name in ("optimize_weights.py", "infer_ensemble.py", "scripts/plan.py"):
        (tmp_path / name).write_text(OTHERS)
    return tmp_path


def add_cards(folder: Path, count: int) -> None:
    """Put an nvidia-smi into ``folder`` that lists cards."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nprint(*range({count}), sep='\\n')\n")
    script.chmod(0o755)


def begin(house: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "HOURS")}
    kept |= {"PATH": f"{house / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    return subprocess.Popen(
        ["bash", str(house / "scripts" / "overnight.sh"), *words], env=kept | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def seen(house: Path, fold: int) -> list[Any]:
    return json.loads((house / "seen" / f"fold{fold}").read_text())


def test_two_cards_train_two_folds_at_once(house: Path) -> None:
    add_cards(house / "bin", 2)
    night = begin(house, "--epochs", "3", MODELS="a", FOLDS="0 1", HOW="pair", DATA="x")
    printed, _ = night.communicate(timeout=60)
    assert night.returncode == 0, printed
    (first, shared, words), (second, _, _) = seen(house, 0), seen(house, 1)
    assert {first, second} == {"0", "1"} and shared == "2"
    assert (house / "seen/order0").read_text() == "PCI_BUS_ID"  # in which nvidia-smi counts
    assert " ".join(words) == "--model a --fold 0 --data_dir x --output_dir output --epochs 3"
    assert "a fold 0 on card 0" in printed and "[a 1] training 1" in printed
    assert (house / "output/logs/a_fold1.log").read_text() == "training 1\n"
    assert "--tta_steps 5" in (house / "infer_ensemble.py.seen").read_text()


def test_one_card_trains_one_fold_at_a_time(house: Path) -> None:
    night = begin(house, MODELS="a", FOLDS="0 1", HOW="pair", TRIES="20", CUDA_VISIBLE_DEVICES="7")
    printed, _ = night.communicate(timeout=120)
    assert night.returncode == 1 and "failed: a/fold0;" in printed  # it waited for another in vain
    assert (house / "seen/order1").read_text() == "own"  # whoever names cards counts as CUDA does
    assert seen(house, 1)[0] == "7" and not (house / "optimize_weights.py.seen").exists()


def test_a_card_that_is_named_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second run would take the first one's place, and nobody wait for that."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1,0")
    assert find_cards() == ["0", "1"]


def test_a_failed_run_does_not_stop_the_others_and_is_named(house: Path) -> None:
    night = begin(house, MODELS="a b", FOLDS="0 1", HOW="fail")
    printed, _ = night.communicate(timeout=60)
    assert night.returncode == 1 and "failed: a/fold0 b/fold0; mend them" in printed
    assert seen(house, 1)[:2] == [None, None]  # no cards: nothing is said of them
    assert printed.count("failed") >= 3 and not (house / "optimize_weights.py.seen").exists()


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM that can be caught")
def test_a_signal_lets_both_runs_save(house: Path) -> None:
    add_cards(house / "bin", 2)
    night = begin(house, MODELS="a", FOLDS="0 1 2", HOW="stop")
    for _ in range(400):
        if (house / "output/logs/a_fold1.log").exists() and seen_both(house):
            break
        time.sleep(0.05)
    night.send_signal(signal.SIGTERM)
    printed, _ = night.communicate(timeout=60)
    assert night.returncode == 143 and "stopped by SIGTERM; the same command" in printed
    assert (house / "seen/saved0").exists() and (house / "seen/saved1").exists()
    assert not (house / "seen/fold2").exists()


def seen_both(house: Path) -> bool:
    logs = [house / f"output/logs/a_fold{fold}.log" for fold in (0, 1)]
    ready = all(log.exists() and "training" in log.read_text() for log in logs)
    time.sleep(0.3 * ready)  # the handler is set right after the line
    return ready


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no parent that has ended")
def test_a_run_ends_with_a_night_that_was_killed(house: Path) -> None:
    """Else it would train on unseen, and hold its folder against the next night's run."""
    watched = TRAIN.replace(
        "    time.sleep(60)",
        "    from src.script import run_script\n    run_script(lambda _: time.sleep(60))",
    )
    (house / "train_fold.py").write_text(watched)
    night = begin(house, MODELS="a", FOLDS="0", HOW="stop", PYTHONPATH=str(ROOT))
    for _ in range(400):
        if (house / "seen/fold0").exists():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    night.kill()
    night.communicate(timeout=60)
    for _ in range(200):
        if (house / "seen/saved0").exists():
            break
        time.sleep(0.05)
    assert (house / "seen/saved0").exists()


@pytest.mark.parametrize(("system", "asked"), [("posix", 1), ("nt", 0)])
def test_nothing_is_killed_that_ctrl_c_lets_save(
    system: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows sends Ctrl-C to the runs itself, and has no signal that terminate() could send."""
    process = MagicMock()
    with monkeypatch.context() as played:
        played.setattr(os, "name", system)
        ask_to_save(process)
    assert process.terminate.call_count == asked


def test_a_log_is_utf_8_whatever_the_machine_writes(house: Path) -> None:
    (house / "train_fold.py").write_text("print('학습')", encoding="utf-8")
    night = begin(house, MODELS="a", FOLDS="0", PYTHONIOENCODING="cp949")
    assert night.wait(timeout=60) == 0
    assert (house / "output/logs/a_fold0.log").read_text(encoding="utf-8") == "학습\n"


@pytest.mark.parametrize("log", ["full disk", "folder"])
def test_a_log_that_cannot_be_written_stops_no_run(house: Path, log: str) -> None:
    """A pipe that nobody empties any more holds 64 KB; behind them a run would wait for ever."""
    path = house / "output" / "logs" / "a_fold0.log"
    path.parent.mkdir(parents=True)
    if log == "folder":
        path.mkdir()
    elif not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    else:
        path.symlink_to("/dev/full")
    (house / "train_fold.py").write_text("print('x' * 200_000)\nprint('end')")
    night = begin(house, MODELS="a", FOLDS="0", OUTPUT=str(house / "output"))
    printed, _ = night.communicate(timeout=60)
    assert night.returncode == 0 and "\nend\n" in printed and "Traceback" not in printed
    assert f"note: {path}: " in printed and (house / "infer_ensemble.py.seen").exists()


def test_hours_are_handed_to_the_plan(house: Path) -> None:
    night = begin(house, HOURS="9", FOLDS="0 1")  # which the plan does not take
    printed, _ = night.communicate(timeout=60)
    assert night.returncode == 2 and "FOLDS: the plan of HOURS chooses them" in printed
    night = begin(house, "--sizes", "96", MODELS="resnet18 vit_tiny", HOURS="9", OUTPUT="there")
    printed, _ = night.communicate(timeout=60)
    assert night.returncode == 0, printed
    said = (house / "scripts/plan.py.seen").read_text()
    models = "--models resnet18 vit_tiny --data_dir input --output_dir there --sizes 96"
    assert said == f"--hours 9 {models}" and not (house / "output").exists()


def test_words_of_a_grid() -> None:
    def read(*words: str) -> Any:
        return read_grid(GridConfig, words, "scripts/overnight.py", "")[1]

    assert len(read().models) == 7 and read().folds == ("0", "1", "2", "3", "4")
    assert read("--", "--config", "configs/small.yaml").models[:2] == ("lite0", "lite1")
    grid = read("--models", "b", "a", "--folds", "1", "full", "--", "--epochs", "2")
    assert grid.cells == [("b", "1"), ("a", "1"), ("b", "full"), ("a", "full")]
    assert grid.run(("b", "full")).folder == Path("output/b/foldfull")
    for words in (
        ["--folds", "x"], ["--", "--epoch", "2"], ["--", "--fold", "2"], ["--", "--name", "n"],
        ["--models", "a", "--epochs", "2"],
    ):  # fmt: skip
        with pytest.raises(UserError, match="--"):
            read(*words)


@pytest.mark.slow
def test_a_night_with_two_cards_that_are_none(fresh: Place, tmp_path: Path) -> None:
    """The real scripts, two runs at once on the CPU."""
    (tmp_path / "bin").mkdir()
    add_cards(tmp_path / "bin", 2)
    flags = LEARNED.replace(f"--model {MODEL} ", "").split()
    environment = {**os.environ, "MODELS": MODEL, "FOLDS": "0 1", "PYTHON": sys.executable}
    environment |= {"DATA": str(fresh.data), "OUTPUT": str(fresh.output)}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(ROOT / "scripts/overnight.sh"), *flags]
    for _ in range(2):  # the second time everything is there
        night = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert night.returncode == 0, night.stdout + night.stderr
        assert (fresh.output / "submission.csv").exists()
    assert night.stdout.count("skipped") == 2


@pytest.mark.parametrize("words", [["--allow_outside"], ["--", "--allow_outside"]])
def test_paths_outside_are_let_in_up_to_the_submission(words: list[str]) -> None:
    """The blend's inference reads the test images, after all training."""
    _, grid = read_grid(GridConfig, ["--models", "a", *words], "x", "")
    blend, infer = grid.last_steps()
    assert "--allow_outside" in infer and "--allow_outside" in grid.arguments(("a", "0"))
    assert "--allow_outside" not in blend  # it reads OOF predictions, no paths of tables
