"""scripts/pack.py and notebooks/kaggle.ipynb: without internet, run after run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from benchmarks.kill_resume import MODEL
from scripts import demo, pack
from src.config import FoldConfig
from src.reader import field_types
from src.script import UserError
from src.tool_config import PlanConfig

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "kaggle.ipynb"
CONFIGS = {"train_fold.py": FoldConfig, "scripts/plan.py": PlanConfig}
OF_PIP = {"--quiet", "--no-index", "--no-deps", "--find-links"}


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def flags_in(node: ast.AST) -> set[str]:
    found = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return {value for value in found if isinstance(value, str) and value.startswith("--")}


def test_its_cells_name_scripts_and_options_that_exist() -> None:
    called, options = [], set()
    for cell in code_cells():
        tree = ast.parse(cell)
        if "places" not in cell:  # whose flags stand outside the call
            options |= flags_in(tree) if "wheels" in cell else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run":
                script = ast.literal_eval(node.args[0])
                if script in CONFIGS:
                    called.append(script)
                    known = field_types(CONFIGS[script])
                    flags = flags_in(tree if "places" in cell else node)
                    assert flags and {flag[2:] for flag in flags} <= set(known)
    assert called == list(CONFIGS) and options == OF_PIP


def test_it_holds_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    tag = timm.get_pretrained_cfg(MODEL).tag
    save_file(timm.create_model(MODEL).state_dict(), folder / f"{MODEL}.{tag}.safetensors")
    return folder


def test_what_is_packed_runs_elsewhere(tmp_path: Path, weights: Path) -> None:
    dest = tmp_path / "packed"
    for _ in range(2):  # the second time it replaces the first
        assert pack.main(["--dest", str(dest), "--weights", str(weights)]) == 0
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        names = archive.namelist()
    assert {"code/train_fold.py", "code/configs/classify.yaml", "wheels.txt"} <= set(names)
    assert any(name.startswith(f"weights/{MODEL}") for name in names)
    assert not any("tests" in n or "__pycache__" in n or n.startswith("code/input") for n in names)
    answer = subprocess.run(
        [sys.executable, str(dest / "code/scripts/plan.py"), "--hours", "0"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == 2 and "--hours" in answer.stderr
    assert "torch>=" in (dest / "wheels.txt").read_text()


def test_wheels_without_pip_are_refused_before_anything_is_written(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.metadata, "distributions", list)  # as in an environment made by uv
    flags = ["--dest", str(tmp_path / "packed"), "--weights", str(weights), "--wheels", "timm"]
    with pytest.raises(UserError, match="no pip: run `uv pip install pip`"):
        pack.main(flags)
    assert not list(tmp_path.glob("packed*"))


def test_wheels_are_sought_for_newer_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases since 2024 are often of manylinux_2_28 alone: pip took an old one, or none."""
    seen: list[list[str]] = []

    def play(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pack.subprocess, "run", play)
    assert pack.download(["onnxruntime"], tmp_path, "3.12")
    platforms = [word for flag, word in pairwise(seen[0]) if flag == "--platform"]
    assert platforms == ["manylinux_2_28_x86_64", "manylinux2014_x86_64", "any"]
    assert seen[0][-1] == "onnxruntime"


@pytest.mark.parametrize("name", ["copy", "zipfile.ZipFile.write"])
def test_killed_at_any_moment_it_packs_again(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flags = ["--dest", str(tmp_path / "packed"), "--weights", str(weights)]
    pack.main(flags)
    whole = (tmp_path / "packed.zip").read_bytes()
    room, name = (pack, name) if name == "copy" else (zipfile.ZipFile, "write")
    real = getattr(room, name)
    for calls in range(2):
        left = [calls]

        def die(*values: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(*values)

        with monkeypatch.context() as patch:
            patch.setattr(room, name, die)
            with pytest.raises(KeyboardInterrupt):
                pack.main(flags)
        assert (tmp_path / "packed.zip").read_bytes() == whole  # never half of a new one
    (tmp_path / "packed" / "old").mkdir()
    assert pack.main(flags) == 0 and not (tmp_path / "packed" / "old").exists()
    assert not [*tmp_path.glob("*.tmp")]


def test_a_folder_that_is_something_else_is_not_replaced(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "new.zip").write_text("mine")
    for name in ("mine", "link", "new"):
        with pytest.raises(UserError, match=name):
            pack.main(["--dest", str(tmp_path / name), "--weights", str(weights)])
    assert (tmp_path / "mine" / "precious").exists() and not (tmp_path / "new").exists()
    assert (tmp_path / "new.zip").read_text() == "mine"


@pytest.mark.slow
def test_it_runs_on_digits_and_goes_on_from_its_own_output(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [n for n in ("nbclient", "ipykernel") if importlib.util.find_spec(n) is None]
    if missing:
        reason = f"notebooks/kaggle.ipynb is NOT RUN: pip install {' '.join(missing)}"
        warnings.warn(reason, pytest.PytestWarning, stacklevel=1)
        pytest.skip(reason)
    mounted = tmp_path / "mounted"
    monkeypatch.chdir(tmp_path)
    demo.write_digits()
    shutil.copytree(demo.DATA, mounted / "competition")
    pack.main(["--dest", str(mounted / "toolkit"), "--weights", str(weights)])
    words = "--sizes 32 --device cpu --folds 2 --num_workers 0"
    monkeypatch.setenv("NOTEBOOK_INPUT", str(mounted))
    monkeypatch.setenv("NOTEBOOK_WORDS", words)
    monkeypatch.setenv("NOTEBOOK_HOURS", "0.025")
    first = execute(tmp_path / "first", monkeypatch)
    assert "earlier None" in first and "copied from" not in first
    submission = (tmp_path / "first" / "submission.csv").read_text()
    assert len(submission.splitlines()) == demo.NUM_TEST + 1
    shutil.copytree(tmp_path / "first", mounted / "earlier-run")
    second = execute(tmp_path / "second", monkeypatch)
    assert f"finished, copied from {mounted / 'earlier-run' / 'output'}" in second
    assert (tmp_path / "second" / "submission.csv").exists()


def execute(working: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the notebook; return what its cells print."""
    import nbclient
    import nbformat

    working.mkdir()
    monkeypatch.setenv("NOTEBOOK_WORKING", str(working))
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)
