"""A run's folder: its config.yaml, and which of its files a begun run can go on from."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
import torch

from src.config import FoldConfig, config_hash, learned_options
from src.engine.checkpoint import MAGIC
from src.engine.log import write_metrics
from src.engine.runtime import start_runtime
from src.engine.weights import save_weights
from src.files import describe_file, write_json
from src.mask_config import MicroConfig
from src.pipelines.run_folder import (
    describe_training,
    drop_damaged,
    finish_run,
    finished,
    recover_finished,
    write_config,
)
from src.runs import Output, read_config
from src.script import UserError


def test_a_config_of_another_run_is_written_anew(tmp_path: Path) -> None:
    """What the run was started on stands in its state, which is asked when it goes on."""
    runtime = start_runtime("cpu", "fp32")
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    run.last.touch()  # it has begun
    for data in ("another", "own"):
        write_config(run, FoldConfig(), {"split_hash": data}, runtime, data)
    assert read_config(run)["resolved"]["split_hash"] == "own"


def test_a_state_that_cannot_be_deleted_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    for path in (run.last, run.previous, run.start):
        path.touch()
    delete, refused = Path.unlink, set()

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path not in refused:
            refused.add(path)
            raise TimeoutError(errno.ETIMEDOUT, "in use", str(path))
        delete(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    finish_run(run, describe_training(FoldConfig(), "data", "score"), keep_last=False)
    assert [path.name for path in run.folder.iterdir()] == ["finished.json"]


@pytest.mark.parametrize(
    ("harmed", "lost", "left"),
    [
        ([], [], ["last.pt", "last.previous.pt", "runtime.json", "start.safetensors"]),
        (["last.pt"], [], ["last.previous.pt", "runtime.json", "start.safetensors"]),
        (["runtime.json"], ["runtime.json"], ["last.pt", "last.previous.pt", "start.safetensors"]),
        (["start.safetensors"], ["start.safetensors"], ["runtime.json"]),
        (["best.safetensors"], ["best.safetensors"], ["runtime.json"]),
        (["last.pt", "last.previous.pt"], ["last.pt", "last.previous.pt"],
         ["runtime.json", "start.safetensors"]),
    ],
)  # fmt: skip
def test_what_a_begun_run_would_stop_at_is_taken_away(
    tmp_path: Path, harmed: list[str], lost: list[str], left: list[str]
) -> None:
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    for path in (run.last, run.previous):
        path.write_bytes(b"state" * 9 + MAGIC + hashlib.sha256(b"state" * 9).digest())
    write_json(run.tuned, {"precision": "fp32"})
    save_weights(run.start, {"a": torch.ones(3)}, {"run": "a"})
    for name in harmed:
        path = run.folder / name
        if path == run.best:
            save_weights(path, {"a": torch.ones(3)}, {"run": "a"})
        path.write_bytes(path.read_bytes()[:-9])
    assert drop_damaged(run) == lost
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(left)


def test_scores_of_a_finished_run_that_lost_them_are_written_again(tmp_path: Path) -> None:
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    history = [{"epoch": 1.0, "log_loss": 0.5}]
    write_metrics(run, history)
    whole = run.metrics.read_bytes()
    files = {run.metrics.name: describe_file(run.metrics)}
    write_json(run.finished, {"config_hash": "", "history": history, "files": files})
    run.metrics.write_bytes(whole[:-1])
    done = recover_finished(run)
    assert done is not None and run.metrics.read_bytes() == whole


def test_a_finished_run_names_the_options_that_differ_and_no_others(tmp_path: Path) -> None:
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    then = MicroConfig(schedule="cosine")  # it has options of several words, too
    write_json(run.finished, {"config_hash": config_hash(then), "config": learned_options(then)})
    with pytest.raises(UserError, match=r"with other options \(schedule was 'cosine'\): pass"):
        finished(run, MicroConfig())
