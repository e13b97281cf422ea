"""--resume_from: what an earlier output folder holds is copied, checked, and gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import src.engine.loop as loop
from benchmarks.kill_resume import MODEL
from src.engine.interrupt import Interrupted
from src.files import write_json
from src.pipelines.run_folder import copy_folds, copy_plan
from src.runs import Output
from tests.scripts.conftest import Answer, Place, call, fresh, place, template

__all__ = ["call", "fresh", "place", "template"]  # fixtures


def go_on(place: Place, name: str = "next", *flags: str) -> tuple[Answer, Path]:
    """Train fold 0 in another output folder from what ``place`` holds."""
    there = place.output.parent / name
    place = Place(place.data, there, place.call)
    source = str(place.output.parent / "output")
    return place.train("--resume_from", source, *flags), there / MODEL / "fold0"


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_finished_run_is_copied_and_skipped(place: Place) -> None:
    before = place.whole_results()
    answer, run = go_on(place)
    assert answer.status == 0, answer.err
    assert f"{run}: finished, copied from {place.run}" in answer.out and "skipped" in answer.out
    copied, source = content(run), content(place.run)
    assert {"finished.json", "best.safetensors", "oof.npz", "test_logits.npy"} <= set(copied)
    assert "last.pt" not in copied  # 16 bytes a parameter that a finished run needs no more
    assert all(data == source[name] for name, data in copied.items() if name != ".lock")
    assert not (run.parent / "fold1").exists()  # not used yet
    assert place.whole_results() == before
    again, _ = go_on(place)
    assert again.status == 0 and "copied from" not in again.out


def test_blend_and_submission_of_copied_runs_are_the_same(place: Place) -> None:
    answer, run = go_on(place, "next", "--fold", "all")
    there = Place(place.data, run.parents[1], place.call)
    assert answer.status == there.optimize().status == there.infer().status == 0
    mine, its = there.whole_results(), place.whole_results()
    assert mine["submission.csv"] == its["submission.csv"]


@pytest.mark.parametrize("damaged", ["", "last.pt", "both"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    whole = content(place.run)
    for path in place.run.iterdir():
        if path.is_file():
            path.unlink()
    close, closed = loop.close_epoch, []

    def stop(*arguments: Any) -> Any:
        outcome = close(*arguments)
        closed.append(1)
        if len(closed) == 3:
            raise Interrupted(15)
        return outcome

    monkeypatch.setattr(loop, "close_epoch", stop)
    assert place.train("--checkpoint_minutes", "0").status == 143
    monkeypatch.setattr(loop, "close_epoch", close)
    assert (place.run / "last.pt").exists() and (place.run / "last.previous.pt").exists()
    for name in {"": [], "last.pt": ["last.pt"], "both": ["last.pt", "last.previous.pt"]}[damaged]:
        flip(place.run / name)
    answer, run = go_on(place)
    assert answer.status == 0, answer.err
    assert ("resuming" in answer.out) == (damaged != "both")
    assert ("trained from the start" in answer.out) == (damaged == "both")
    for name in ("best.safetensors", "oof.npz", "metrics.csv"):
        assert (run / name).read_bytes() == whole[name], name


def test_a_finished_run_that_is_damaged_is_trained_again(place: Place) -> None:
    whole = content(place.run)
    flip(place.run / "best.safetensors")
    answer, run = go_on(place)
    assert answer.status == 0 and "best.safetensors lost or damaged" in answer.out
    assert "trained from the start" in answer.out
    assert (run / "oof.npz").read_bytes() == whole["oof.npz"]


def test_mistakes_are_one_line(place: Place, tmp_path: Path) -> None:
    def refuse(folder: Path, *words: str) -> bool:
        return place.train("--resume_from", str(folder)).is_one_line("--resume_from", *words)

    assert refuse(tmp_path / "nowhere", "no such folder")
    assert refuse(place.output, "leave the flag out")
    (tmp_path / "mounted").mkdir()
    place.output.rename(tmp_path / "mounted" / "output")
    assert refuse(tmp_path / "mounted", "folds.csv", f"did you mean {tmp_path / 'mounted/output'}?")


def test_a_plan_is_copied_once_and_its_hours_count_anew(
    place: Place, tmp_path: Path, call: Callable
) -> None:
    earlier = Output(place.output)
    write_json(earlier.plan_state, {"spent_s": 7000.0, "dropped": ["a"]})
    for path in (earlier.plan, earlier.survey, earlier.history):
        path.write_text("{}")
    output = Output(tmp_path / "next")
    copy_plan(str(place.output), output)
    state = json.loads(output.plan_state.read_text())
    assert (state["spent_s"], state["dropped"]) == (0.0, ["a"])
    for path in (output.plan, output.survey, output.history, output.folds, output.submission):
        assert path.exists(), path
    assert output.weights.read_bytes() == earlier.weights.read_bytes()
    assert len(output.finished_runs(MODEL)) == 2
    write_json(output.plan_state, {"spent_s": 60.0})
    output.folds.write_text("dealt by hand")
    copy_plan(str(place.output), output)  # the same command again: time goes on
    copy_folds(str(place.output), output)
    assert output.folds.read_text() == "dealt by hand", "settled here already"
    assert json.loads(output.plan_state.read_text())["spent_s"] == 60.0
