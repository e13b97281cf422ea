from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.decode import write_picture
from src.engine.runtime import Runtime
from src.files import describe_file, write_json, write_text
from src.metrics.segmentation import SegmentationMeter
from src.metrics.thresholds import SweepCounts
from src.pipelines.library import load_run
from src.pipelines.segmentation import ensemble
from src.pipelines.segmentation.ensemble import (
    Member,
    by_data_set,
    check_alike,
    find_runs,
    load_member,
    settle_shares,
    settle_threshold,
)
from src.pipelines.segmentation.score import save_oof, save_sweeps
from src.runs import Run
from src.script import UserError


def member(root: Path, name: str, fold: int, probs: dict[str, float] | None) -> Member:
    """A run whose held-out probabilities of the true class are the same at every pixel."""
    run = Run(root / name / f"fold{fold}")
    run.folder.mkdir(parents=True)
    write_text(run.config, "x: 1")
    if probs is not None:
        values = np.array([[p] * 4 for p in probs.values()], np.float32)
        np.savez(run.oof, ids=np.array(list(probs)), true_probs=values)
    resolved = {"classes": ["background", "lane"], "data_dir": "data", "source": "folders"}
    return Member(run, {}, resolved, {}, run.best, 1, 0.5)


def test_weights_come_from_common_held_out_pixels(tmp_path: Path) -> None:
    members = [
        member(tmp_path, "good", 0, {"a": 0.9, "b": 0.8}),
        member(tmp_path, "good", 1, {"c": 0.9, "d": 0.7}),
        member(tmp_path, "bad", 0, {"a": 0.2, "b": 0.3, "c": 0.1}),
    ]
    shares, how = settle_shares(members, "oof")
    # better everywhere: all the weight, shared by its folds
    assert shares == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)
    assert "from 3 images" in how
    assert settle_shares(members, "uniform")[0] == pytest.approx([0.25, 0.25, 0.5])


def test_models_of_one_name_in_two_output_folders_are_two(tmp_path: Path) -> None:
    good = member(tmp_path / "first", "net", 0, {"a": 0.9, "b": 0.8})
    bad = replace(member(tmp_path / "second", "net", 0, {"a": 0.2, "b": 0.3}),
                  done={"config_hash": "other"})  # fmt: skip
    shares, how = settle_shares([good, bad], "oof")
    assert shares == pytest.approx([1.0, 0.0], abs=1e-3)
    assert f"{tmp_path / 'first' / 'net'} 1.000" in how
    # of the same options: another machine's fold of the same model
    fold = member(tmp_path / "second" / "more", "net", 1, {"c": 0.9})
    assert settle_shares([good, fold, bad], "uniform")[0] == pytest.approx([0.25, 0.25, 0.5])


def test_models_that_complement_each_other_share(tmp_path: Path) -> None:
    members = [
        member(tmp_path, "one", 0, {"a": 0.9, "b": 0.1}),
        member(tmp_path, "other", 0, {"a": 0.1, "b": 0.9}),
    ]
    assert settle_shares(members, "oof")[0] == pytest.approx([0.5, 0.5], abs=1e-4)


def test_without_common_images_weights_are_even_and_that_is_said(tmp_path: Path) -> None:
    members = [member(tmp_path, "one", 0, {"a": 0.9}), member(tmp_path, "other", 0, None)]
    shares, how = settle_shares(members, "oof")
    assert shares == [0.5, 0.5] and "no image was held out by all" in how


def test_images_of_several_data_sets_that_share_an_id_are_not_taken_for_one(tmp_path: Path) -> None:
    members = [member(tmp_path, name, 0, {"1": 0.9}) for name in ("one", "other")]
    for number, own in enumerate(members):
        meter = SegmentationMeter(2, 255, ("background", "lane"), 2)
        target = np.zeros((4, 5), np.uint8)
        target[: number + 1] = 1
        meter.add(0, target, target)
        meter.counts().save(own.run.oof_counts)
    assert "no image was held out by all" in settle_shares(members, "oof")[1]
    shutil.copy(members[0].run.oof_counts, members[1].run.oof_counts)
    assert "from 1 image " in settle_shares(members, "oof")[1]


def test_a_folder_is_one_data_set_however_it_was_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (member(tmp_path, name, 0, None) for name in ("one", "other"))
    other.resolved["data_dir"] = str(tmp_path / "data")
    check_alike([one, other], one_data_set=True)
    assert list(by_data_set([one, other])) == ["data"]


def test_foreign_runs_are_not_joined(tmp_path: Path) -> None:
    one, other = (member(tmp_path, name, 0, None) for name in ("one", "other"))
    check_alike([one, other], one_data_set=True)
    other.resolved["data_dir"] = "elsewhere"
    check_alike([one, other], one_data_set=False)
    with pytest.raises(UserError, match="different data"):
        check_alike([one, other], one_data_set=True)
    found = find_runs([str(tmp_path / "*" / "fold*"), str(one.run.folder)])
    assert [run.folder for run in found] == [one.run.folder, other.run.folder]


def swept(root: Path, name: str, lift: float, threshold: float, images: str) -> Member:
    """A run whose images have IoU 0.5 at thresholds 0.5 and 0.7, and ``lift`` more at 0.3."""
    run = Run(root / name / "fold0")
    run.folder.mkdir(parents=True)
    hits = np.full((len(images), 3, 1), 500)
    hits[:, 0] += round(1000 * lift)
    counts = SweepCounts(
        np.array([0.3, 0.5, 0.7]), hits, np.full_like(hits, 1000), np.full((len(images), 1), 600)
    )
    save_sweeps(run, [counts], "pooled_iou")
    values = [np.ones(4, np.float32)] * len(images)
    save_oof(run, np.array(list(images)), [""] * len(images), values, ("background", "lane"), {})
    files = {path.name: describe_file(path) for path in (run.oof, run.oof_sweep)}
    return Member(run, {}, {}, {"files": files}, run.best, 1, threshold)


def test_the_threshold_of_several_runs_is_chosen_on_all_their_held_out_images(
    tmp_path: Path,
) -> None:
    up, down = (
        swept(tmp_path, "up", 0.1, 0.3, "abcdef"),
        swept(tmp_path, "down", -0.2, 0.5, "abcdef"),
    )
    assert settle_threshold([up])[0] == 0.3
    assert settle_threshold([up, down])[0] == 0.5, "together they lose 0.1"
    third = swept(tmp_path, "third", 0.3, 0.3, "ghijkl")
    threshold, how = settle_threshold([up, down, third])
    assert threshold == 0.3 and "12 images or groups of 3 runs" in how
    one = swept(tmp_path, "one", 0.1, 0.5, "a")
    again = swept(tmp_path, "again", 0.1, 0.5, "a")
    assert settle_threshold([one, again])[0] == 0.5, "one image, however often"
    (down.run.oof_sweep).unlink()
    with pytest.raises(UserError, match=r"oof_sweep\.npz: missing"):
        settle_threshold([up, down])
    older = Member(down.run, {}, {}, {}, down.run.best, 1, 0.5)  # scored before sweeps were kept
    assert settle_threshold([up, older])[0] == pytest.approx(0.4)


def test_a_finished_run_without_its_config_is_refused_not_left_out(tmp_path: Path) -> None:
    for fold in (0, 1):
        run = member(tmp_path, "net", fold, None).run
        write_json(
            run.finished, {"config_hash": "c", "files": {"config.yaml": describe_file(run.config)}}
        )
    run.config.unlink()
    (tmp_path / "net" / "fold2").mkdir()  # nothing in it: no run
    runs = find_runs([str(tmp_path / "net" / "fold*")])
    assert [run.folder.name for run in runs] == ["fold0", "fold1"]
    with pytest.raises(UserError, match=r"config\.yaml: missing.*run its training command again"):
        load_member(runs[1])


def test_a_run_that_is_not_finished_is_told_how_to_be(tmp_path: Path) -> None:
    run = member(tmp_path, "net", 0, None).run
    for weights in (False, True):
        if weights:
            run.best.touch()
        with pytest.raises(UserError, match=r"not finished: run its training command again") as e:
            load_member(run)
        assert ("--checkpoint" in str(e.value)) == weights


def test_a_mask_run_is_predicted_where_the_caller_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library took a card, in its default precision, whatever was asked for."""
    asked: list[Runtime] = []
    one = member(tmp_path, "one", 0, None)
    one.resolved["void"] = 255
    write_text(one.run.config, "options: {}\nresolved: {}\nruntime: {}\n")
    write_text(one.run.finished, "{}")
    write_picture(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(ensemble, "load_member", lambda _: one)
    monkeypatch.setattr(
        ensemble,
        "blend_maps",
        lambda a, b, c, runtime: (asked.append(runtime), [(0, torch.ones(1, 4, 4))])[1],
    )
    load_run(one.run.folder, device="cpu", precision="bf16").predict(tmp_path / "a.png")
    assert [(runtime.device.type, runtime.precision) for runtime in asked] == [("cpu", "bf16")]
