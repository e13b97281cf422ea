"""The README stays short, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PATHS = sorted(
    set(re.findall(r"`((?:src|docs|configs|benchmarks|scripts|tests)/[\w./]*\w\.\w+)`", TEXT))
    | set(re.findall(r"(?:python |^)((?:scripts/)?\w+\.(?:py|sh))\b", TEXT, flags=re.M))
)


def test_it_is_read_in_one_go() -> None:
    assert len(TEXT.splitlines()) <= 180


@pytest.mark.parametrize("name", PATHS)
def test_what_it_names_is_there(name: str) -> None:
    assert (ROOT / name).is_file(), f"README names {name}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_commands_hold_no_quotation_mark_that_windows_leaves_in(path: Path) -> None:
    """Its cmd.exe hands 'a*' over with the quotation marks; "a*" is a* in every shell."""
    lines = path.read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if re.search(r"\bpython \S+\.py", line)]
    assert not [line for line in commands if re.search(r" '[^']+'", line)]
