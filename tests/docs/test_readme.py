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
