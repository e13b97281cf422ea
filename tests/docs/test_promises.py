"""docs/promises.md: every promise names a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").split("\n## ")[1:]


def test_every_promise_names_a_test_that_is_there() -> None:
    assert len(PARTS) >= 12
    for part in PARTS:
        tests = part.partition("\n- Test: ")[2]
        named = re.findall(r"`(?:([\w/]+(?:\.py|/))|(?=::))(?:::(\w+))?", tests)
        assert named, part
        file = ROOT
        for path, function in named:
            folder = file.parent if "/" not in path else ROOT
            file = folder / path if path else file
            assert file.exists(), (part[:60], path)
            if function:
                assert f"def {function}(" in file.read_text(encoding="utf-8"), (path, function)
