"""docs/architecture.md shows the tree as it is, and names files that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tree_is_that_of_the_files() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "scripts" / "tree.py")
    assert spec is not None and spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    shown = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tree.draw() in shown, "run python scripts/tree.py --write"


def test_every_file_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py)`", text)
    assert len(named) > 50
    lost = [
        name for name in named if not ((ROOT / name).exists() or (ROOT / "src" / name).exists())
    ]
    assert not lost


def test_every_function_stands_in_the_file_it_is_named_with() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", text)
    assert len(named) > 30
    for name, functions in named:
        path = ROOT / name if (ROOT / name).exists() else ROOT / "src" / name
        source = path.read_text(encoding="utf-8")
        for function in re.findall(r"\w+", functions):
            assert re.search(rf"^(def |class |){function}\b", source, re.M), (name, function)
