from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.files import write_text
from src.pipelines.segmentation.ensemble import Member, check_alike, find_runs, settle_shares
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
    resolved = {"classes": ["background", "lane"], "data_dir": "data"}
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


def test_foreign_runs_are_not_joined(tmp_path: Path) -> None:
    one, other = (member(tmp_path, name, 0, None) for name in ("one", "other"))
    check_alike([one, other], one_data_set=True)
    other.resolved["data_dir"] = "elsewhere"
    check_alike([one, other], one_data_set=False)
    with pytest.raises(UserError, match="different data"):
        check_alike([one, other], one_data_set=True)
    found = find_runs([str(tmp_path / "*" / "fold*"), str(one.run.folder)])
    assert [run.folder for run in found] == [one.run.folder, other.run.folder]
