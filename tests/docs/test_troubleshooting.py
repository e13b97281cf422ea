"""docs/troubleshooting.md has an entry for every kind of remedy that a refusal names."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FILES = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("src/**/*.py")]


def phrases() -> list[str]:
    """Return what the entries are known by: the quoted words of paragraphs that begin "Says"."""
    found = re.findall(r"^Says (.*?)\n\n", TEXT, re.M | re.S)
    return [phrase for said in found for phrase in re.findall("“(.*?)”", said)]


def messages() -> Iterator[tuple[str, str]]:
    """Yield (file:line, text) of every UserError, with … for what is filled in."""
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "UserError(" in source else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                yield f"{path.relative_to(ROOT)}:{node.lineno}", spell(node.args[0], path)


def spell(node: ast.AST, path: Path) -> str:
    """Return the text of an expression; constants of a module (``REPAIR``) are looked up."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spell(part, path) for part in node.values)
    if isinstance(node, ast.BinOp):
        return spell(node.left, path) + spell(node.right, path)
    if isinstance(node, ast.FormattedValue):
        return spell(node.value, path)
    if isinstance(node, ast.Name) and node.id.isupper():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        value = getattr(importlib.import_module(module), node.id)
        return value if isinstance(value, str) else "…"
    return "…"


def test_every_remedy_has_its_entry() -> None:
    known = phrases()
    lost = [
        f"{place} {text}"
        for place, text in messages()
        if re.search("[a-z]{3}", text.replace("…", "")) and not any(p in text for p in known)
    ]
    assert not lost, "say what to do about these in docs/troubleshooting.md:\n" + "\n".join(lost)


def test_every_entry_is_about_something_that_is_said() -> None:
    said = [text for _, text in messages()]
    idle = [phrase for phrase in phrases() if not any(phrase in text for text in said)]
    assert not idle, f"no message says {idle} any more: take them out of docs/troubleshooting.md"


def test_what_a_disk_or_memory_says_stands_there_too() -> None:
    source = (ROOT / "src" / "script.py").read_text(encoding="utf-8")
    for words in ("out of memory", "earlier results are whole", "interrupted", "has no package"):
        assert words in source and f"“{words}”" in TEXT
