"""Who may import whom: rooms know the foundation and what lies below them, scripts join them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
FOUNDATION = {path.stem for path in (ROOT / "src").glob("*.py")}
# pipelines is what scripts share: it joins rooms as they do
ALLOWED = {
    **{name: set() for name in FOUNDATION},
    **{room: set() for room in ("data", "models", "losses", "metrics")},
    "__init__": {"pipelines"},  # the library's front door
    "tasks": {"losses", "metrics"},
    "engine": {"tasks", "losses", "metrics"},
    "ensemble": {"tasks", "losses", "metrics"},
    "pipelines": {"data", "models", "losses", "metrics", "tasks", "engine", "ensemble"},
}
STANDARD_ONLY = {
    "classes": {"numpy"},
    "config": set(),
    "files": {"numpy"},
    "option": set(),
    "page": set(),
    "reader": {"yaml"},
    "runs": {"yaml"},
    "script": set(),
    "tool_config": set(),
}


def name_of(path: Path) -> str:
    """Return the room a file of src/ lies in (or its own name)."""
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """Return every dotted module a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports from the root, `from src.…`"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def ids(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_every_room_is_known() -> None:
    assert {name_of(path) for path in SOURCES} - {"__init__"} <= ALLOWED.keys()


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_imports_go_downwards(path: Path) -> None:
    room = name_of(path)
    allowed = ALLOWED.get(room, set()) | FOUNDATION | {room}
    scripts = {script.stem for script in SCRIPTS}
    for module in imported(path):
        first, *rest = module.split(".")
        assert first not in scripts, f"{path} imports the script {first}"
        assert first != "src" or rest[0] in allowed, f"{path}: {room} must not import {module}"


@pytest.mark.parametrize("name", sorted(STANDARD_ONLY))
def test_the_foundation_is_light(name: str) -> None:
    import sys

    path = ROOT / "src" / f"{name}.py"
    others = {module.split(".")[0] for module in imported(path)} - {"src"}
    assert others <= set(sys.stdlib_module_names) | STANDARD_ONLY[name]


def test_no_script_imports_another() -> None:
    names = {script.stem for script in SCRIPTS}
    for script in SCRIPTS:
        assert not names & {module.split(".")[0] for module in imported(script)}, script


@pytest.mark.parametrize("path", SCRIPTS, ids=ids(SCRIPTS))
def test_scripts_import_nothing_heavy_before_they_know_what_to_do(path: Path) -> None:
    heavy = {"torch", "numpy", "pandas", "timm", "cv2", "accelerate", "optuna", "albumentations"}
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Import):
            assert not heavy & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in heavy


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=ids(SOURCES + SCRIPTS))
def test_files_say_what_they_are_and_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), f"{path} has no docstring"
    assert len(text.splitlines()) <= 450, f"{path}: split it by noun"


def test_there_is_no_utils() -> None:
    words = {"utils", "util", "helpers", "misc", "common"}
    assert not [
        path for path in SOURCES if words & set(path.relative_to(ROOT).with_suffix("").parts)
    ]
