"""Trackers: what TensorBoard, W&B and MLflow hold, read back by the packages themselves."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from src.engine import log
from src.engine.log import clean_name, open_trackers
from src.runs import Run

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ROWS = [({"train_loss": 1.5, "valid_map@3": 0.25, "epoch": 0}, 10),
        ({"train_loss": 1.0, "valid_map@3": 0.5, "epoch": 1}, 20)]  # fmt: skip
OPTIONS = {"lr": 0.001, "model": "net", "views": ("a", "b"), "ema": True}
NAMES = {"train_loss", "valid_map_3", "epoch"}


def write(folder: Path, *asked: str, main: bool = True) -> Run:
    """Log two epochs, one in each of two openings, as a run that was stopped does."""
    run = Run(folder / "net" / "fold0")
    run.folder.mkdir(parents=True)
    for row, step in ROWS:
        with open_trackers(run, SimpleNamespace(is_main=main), asked, OPTIONS) as logs:  # type: ignore[arg-type]
            for write_row in logs:
                write_row(row, step)
    return run


def test_names_that_every_tracker_accepts() -> None:
    assert clean_name("valid_map@3") == "valid_map_3" and clean_name("a/b-c.d e") == "a/b-c.d_e"


def test_no_process_but_the_first_logs(tmp_path: Path) -> None:
    run = write(tmp_path, main=False)
    assert not list(run.folder.iterdir())


def test_without_tensorboard_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert not list(write(tmp_path).folder.iterdir())


@pytest.mark.parametrize("where", ["opened", "logged", "closed"])
def test_a_tracker_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    seen: list[float] = []

    def fail(*_: object) -> None:
        raise ConnectionError("no server\nat all")

    def open_broken(run: Run, options: object, stack: ExitStack) -> Any:
        stack.callback(fail if where == "closed" else lambda: None)
        return fail() if where == "opened" else fail if where == "logged" else seen.append

    def open_sound(run: Run, options: object, stack: ExitStack) -> Any:
        return lambda row, step: seen.append(step)

    monkeypatch.setattr(log, "TRACKERS", {"broken": open_broken, "sound": open_sound})
    monkeypatch.setattr(log, "_open_board", lambda *_: None)
    with open_trackers(
        Run(tmp_path), SimpleNamespace(is_main=True), list(log.TRACKERS), {}
    ) as logs:  # type: ignore[arg-type]
        for row, step in ROWS if where != "closed" else ():
            for write_row in logs:
                write_row(row, step)
    assert seen == ([] if where == "closed" else [10, 20])
    name = "trackers" if where == "closed" else "broken"
    said = f"note: {name}: ConnectionError (no server at all); the run goes on without it"
    assert capsys.readouterr().out.splitlines() == [said]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_board_whose_folder_is_gone_is_told_in_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    run, before = Run(tmp_path / "net" / "fold0"), threading.excepthook
    with open_trackers(run, SimpleNamespace(is_main=True), [], OPTIONS) as logs:  # type: ignore[arg-type]
        (tmp_path / "net").rename(tmp_path / "gone")  # at once: its thread writes meanwhile
        for row, step in ROWS * 2:
            for write_row in logs:
                write_row(row, step)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and threading.excepthook is before
    assert out.count("note: TensorBoard: FileNotFoundError") == 1


def test_tensorboard_holds_scalars_and_options(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(write(tmp_path).tensorboard))
    events.Reload()
    assert set(events.Tags()["scalars"]) == NAMES
    points = [(point.step, point.value) for point in events.Scalars("valid_map_3")]
    assert points == [(10, 0.25), (20, 0.5)]
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0]
        .tensor_proto.string_val[0]
        .decode()
        for tag in events.Tags()["tensors"]
    }
    assert texts == {name: str(value) for name, value in OPTIONS.items()}


def log_picture(folder: Path, *asked: str) -> Run:
    run = Run(folder / "net" / "fold0")
    run.folder.mkdir(parents=True)
    with open_trackers(run, SimpleNamespace(is_main=True), asked, OPTIONS) as logs:  # type: ignore[arg-type]
        for write_row in logs:
            write_row({"train_loss": 1.5, "worst_mistakes": PICTURE}, 10)
    return run


def test_tensorboard_holds_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_picture(tmp_path).tensorboard))
    events.Reload()
    (found,) = events.Images("worst_mistakes")
    shown = cv2.imdecode(np.frombuffer(found.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert found.step == 10 and np.array_equal(shown[..., ::-1], PICTURE)
    assert [point.value for point in events.Scalars("train_loss")] == [1.5]


def test_wandb_offline_holds_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = log_picture(tmp_path, "wandb")
    (path,) = run.folder.rglob("media/images/worst_mistakes_*.png")
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], PICTURE)
    ((row,), _) = read_wandb(run.folder / "wandb")
    assert row["train_loss"] == 1.5 and row["_step"] == 10


def test_mlflow_holds_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it keeps artifacts
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = log_picture(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.parent.parent / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("net").experiment_id])
    images = [f.path for f in client.list_artifacts(found.info.run_id, "images")]
    path = next(p for p in images if "worst_mistakes" in p and p.endswith(".png"))
    local = client.download_artifacts(found.info.run_id, path, str(tmp_path))
    assert np.array_equal(cv2.imread(local)[..., ::-1], PICTURE)
    assert found.data.metrics == {"train_loss": 1.5}


def test_wandb_offline_holds_scalars_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = write(tmp_path, "wandb")
    rows, config = read_wandb(run.folder / "wandb")
    assert [{k: row[k] for k in (*NAMES, "_step")} for row in rows] == [
        {clean_name(k): v for k, v in row.items()} | {"_step": step} for row, step in ROWS
    ]
    assert {k: config[k] for k in OPTIONS} == json.loads(json.dumps(OPTIONS))


def read_wandb(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and options of all offline sessions of a run, in W&B's own messages."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for path in sorted(folder.glob("offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime):
        for data in read_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for change in (*record.run.config.update, *record.config.update):
                config[change.key] = json.loads(change.value_json)
            items = record.history.item
            if items:
                rows.append(
                    {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
                )
    return rows, config


def read_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file: seven bytes, then LevelDB's log in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no header fits: padding
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_mlflow_holds_scalars_and_options_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("net")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "fold0" and run.info.status == "FINISHED"
    assert set(run.data.metrics) == NAMES
    points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "valid_map_3")]
    assert points == [(10, 0.25), (20, 0.5)]
    assert run.data.params == {name: str(value) for name, value in OPTIONS.items()}


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls the scripts from a project of their own is in another repository."""
    own = log.versions().get("commit")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert log.versions().get("commit") == own


@pytest.mark.skipif(os.name == "nt", reason="the git of this test is a shell script")
def test_what_git_complains_of_in_another_encoding_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nprintf '\\300\\257: dubious' >&2; exit 128\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "commit" not in log.versions()
