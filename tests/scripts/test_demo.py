"""scripts/demo.py: when its data are made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from scripts import demo


def test_data_are_made_where_folder_or_labels_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: str) -> NoReturn:
        raise SystemExit  # as where a command fails

    def make() -> None:
        made.append(1)
        for name in ("train", "test"):
            (demo.DATA / name).mkdir(parents=True)
        demo.LABELS.touch()

    made: list[int] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", stop)
    monkeypatch.setattr(demo, "write_digits", make)

    def start() -> int:
        made.clear()
        with pytest.raises(SystemExit):
            demo.main()
        return len(made)

    assert start() == 1 and start() == 0
    shutil.rmtree(demo.DATA)
    assert start() == 1, "labels alone are no data"
    shutil.rmtree(demo.DATA)
    demo.LABELS.unlink()
    assert start() == 1
