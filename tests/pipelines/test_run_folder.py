"""A run's folder: its config.yaml."""

from __future__ import annotations

from pathlib import Path

from src.config import FoldConfig
from src.engine.runtime import start_runtime
from src.pipelines.run_folder import write_config
from src.runs import Output, read_config


def test_a_config_of_another_run_is_written_anew(tmp_path: Path) -> None:
    """What the run was started on stands in its state, which is asked when it goes on."""
    runtime = start_runtime("cpu", "fp32")
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    run.last.touch()  # it has begun
    for data in ("another", "own"):
        write_config(run, FoldConfig(), {"split_hash": data}, runtime, data)
    assert read_config(run)["resolved"]["split_hash"] == "own"
