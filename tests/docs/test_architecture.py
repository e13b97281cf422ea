"""docs/architecture.md shows the tree as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tree_is_that_of_the_files() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "scripts" / "tree.py")
    assert spec is not None and spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    shown = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tree.draw() in shown, "run python scripts/tree.py --write"
