"""A run's folder: what is said of one that was started on other data."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.config import FoldConfig
from src.engine.runtime import start_runtime
from src.pipelines.run_folder import write_config
from src.runs import Output
from src.script import UserError


@pytest.mark.parametrize("has_table", [True, False])
def test_other_folds_are_refused_with_what_restores_them(tmp_path: Path, has_table: bool) -> None:
    output, runtime = Output(tmp_path), start_runtime("cpu", "fp32")
    run = output.run("a", 0)
    run.folder.mkdir(parents=True)
    write_config(run, FoldConfig(), {"split_hash": "one"}, runtime, "id")
    run.last.touch()  # it has begun
    write_config(run, FoldConfig(), {"split_hash": "one"}, runtime, "id")
    if has_table:
        output.folds.touch()
    with pytest.raises(UserError, match="was started on other images or folds") as error:
        write_config(run, FoldConfig(), {"split_hash": "two"}, runtime, "id")
    assert ("folds.csv is made again" in str(error.value)) == has_table  # masks have no such table
