"""Counts of the code: lines that carry code, uses of Any, repeated blocks, files entered."""

from pathlib import Path

import pytest

from benchmarks import house

MODULE = '''"""Docstring
of two lines."""

from typing import Any

# a comment


def double(value: Any) -> Any:
    """Docstring."""
    text = """not a
    docstring"""
    return value, text
'''


def test_code_lines_leave_out_docstrings_comments_and_blanks() -> None:
    assert house.code_lines(MODULE) == [4, 9, 11, 12, 13]


def test_the_import_of_any_is_no_use_of_it() -> None:
    assert house.count_any(MODULE) == 2


def test_a_repeated_block_is_found_once_however_long_it_is_and_indented() -> None:
    lines = [f"value_{n} = {n}" for n in range(5)]
    one = "\n".join(["import os", *lines]) + "\n"
    other = "\n".join(["import os", "def f():", *(f"    {line}" for line in lines)]) + "\n"
    texts = {"one.py": one, "other.py": other}
    assert house.repeated_blocks(texts, length=3) == [("one.py:2", "other.py:3")]
    assert house.repeated_blocks(texts, length=6) == []


def test_a_command_enters_the_files_whose_functions_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "walked_main": "import walked_other, walked_idle\n\n"
        "def main(argv):\n    return walked_other.work()\n",
        "walked_other": "def work():\n    import walked_late\n    return walked_late.VALUE\n",
        "walked_late": "import walked_used\nVALUE = walked_used.make()\n",
        "walked_used": "def make():\n    return 1\n",  # called while a module is imported
        "walked_idle": "def never():\n    pass\n\nclass Body:\n    x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert house.entered_files("walked_main", []) == {"walked_main.py", "walked_other.py"}
