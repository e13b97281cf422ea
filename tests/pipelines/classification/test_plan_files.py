"""Files of a plan: damage is found out again, nonsense refused, and what has begun kept."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from src.config import FoldConfig
from src.pipelines.classification import plan_files
from src.pipelines.classification.follow import Clock
from src.runs import Output
from src.script import UserError
from src.tool_config import PlanConfig

ANY: dict[str, Any] = {"models": [], "sizes": []}


@pytest.mark.parametrize(
    "content",
    ['{"spent_s": ', "", "[]", '{"spent_s": -5, "dropped": 7}', '{"spent_s": NaN}', "\0" * 40],
)
def test_a_damaged_clock_knows_what_the_history_says(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_files.add_history(tmp_path / "history.csv", 120.0, ["a"], 0.5, 0.5)
    earlier = plan_files.last_seconds(tmp_path / "history.csv")
    (tmp_path / "state.json").write_text(content)
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: 0.0, earlier=earlier)
    assert clock.spent() == 120 and clock.state == {}
    assert "at least 2.0 minutes are spent" in capsys.readouterr().out


def test_a_whole_clock_goes_before_the_history(tmp_path: Path) -> None:
    """As after --resume_from: rows of the earlier job, hours that count anew."""
    (tmp_path / "state.json").write_text('{"spent_s": 0.0, "paces": [2.0, 1.0]}')
    clock = Clock(tmp_path / "state.json", 1.0, now=lambda: 0.0, earlier=120.0)
    assert clock.spent() == 0 and clock.state == {"paces": [2.0, 1.0]}


@pytest.mark.parametrize("harm", ["noise", "twice", "nonsense", "half"])
def test_a_damaged_history_keeps_its_whole_rows(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.csv"
    for place in range(3):
        plan_files.add_history(path, 60.0 * place, ["a"], 0.5, 0.25)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes({
        "noise": whole + b"\xff\0\x80,,\n", "twice": whole + lines[2],
        "nonsense": whole + b"-1,a,nan,0.5\n", "half": whole[:-8],
    }[harm])  # fmt: skip
    kept = 2 if harm == "half" else 3
    assert plan_files.last_seconds(path) == 60.0 * (kept - 1)
    plan_files.add_history(path, 600.0, ["b"], 0.5, 0.25)
    assert len(path.read_text().splitlines()) == kept + 2
    assert capsys.readouterr().out.count("no submissions") == 1


SURVEY: dict[str, Any] = {
    "precision": "fp32", "channels_last": False,
    "candidates": [{"timm_id": "test_resnet", "image_size": 32, "log_loss": 0.5, "accuracy": 0.8,
                    "train_rate": 9.0, "infer_rate": 30.0, "fixed_size": False}],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"precision": "fp2"}, {"candidates": []}, {"candidates": [{"timm_id": "a"}]},
     {"candidates": [SURVEY["candidates"][0] | {"train_rate": -1.0}]},
     {"candidates": [SURVEY["candidates"][0] | {"timm_id": "no such net"}]}, {"channels_last": 1}],
)  # fmt: skip
def test_a_senseless_survey_is_measured_again(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(SURVEY))
    found = plan_files.read_survey(path, ANY, 1.0)
    assert found is not None and found[2][0].image_size == 32
    path.write_text(json.dumps(SURVEY | change))
    assert plan_files.read_survey(path, ANY, 1.0) is None


@pytest.mark.parametrize(
    ("then", "now", "kept"),
    [(ANY, ANY, True), (ANY, ANY | {"sizes": [64]}, False), (ANY | {"sizes": [64]}, ANY, True),
     (ANY | {"models": ["test_vit"]}, ANY | {"models": ["test_resnet"]}, False),
     (ANY | {"models": ["test_vit"]}, ANY | {"models": ["test_vit"]}, True), (None, ANY, True),
     ({"models": []}, ANY | {"sizes": [64]}, False)],
)  # fmt: skip
def test_a_survey_of_other_models_or_sizes_is_made_again(
    tmp_path: Path, then: Any, now: Any, kept: bool
) -> None:
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(SURVEY | ({"asked": then} if then else {})))
    assert (plan_files.read_survey(path, now, 1.0) is not None) == kept


@pytest.mark.parametrize(("early", "then", "kept"), [(True, 0.5, False), (True, 0.6, True),
                                                    (False, 0.1, True)])  # fmt: skip
def test_a_survey_that_ended_early_is_made_again_with_twice_the_hours(
    tmp_path: Path, early: bool, then: float, kept: bool
) -> None:
    path = tmp_path / "survey.json"
    path.write_text(json.dumps(SURVEY | {"ended_early": early, "hours": then}))
    assert (plan_files.read_survey(path, ANY, 1.0) is not None) == kept


def write_rows(path: Path, **rows: Any) -> None:
    path.write_text(json.dumps({"train": {"batch_size": 8}, "models": rows}))


def begin(output: Output, config: FoldConfig, fold: int = 0) -> None:
    """Leave the options of a run as its training does."""
    run = output.run(config.model, fold)
    run.folder.mkdir(parents=True)
    content = {"options": dataclasses.asdict(config), "resolved": {}, "runtime": {}}
    run.config.write_text(json.dumps(content))


def test_what_has_begun_keeps_its_row(tmp_path: Path) -> None:
    path, output = tmp_path / "plan.yaml", Output(tmp_path)
    row = {"timm_id": "test_resnet", "epochs": 4}
    begin(output, FoldConfig(model="a_near", batch_size=8, **row))
    begin(output, FoldConfig(model="a_near", batch_size=8, **row | {"epochs": 5}), fold=1)
    begin(output, FoldConfig(model="by_hand", timm_id="test_resnet", epochs=3))  # train_fold.py's
    begin(output, FoldConfig(model="d_moving", batch_size=FoldConfig.batch_size, **row))
    begin(output, FoldConfig(model="b_probe", batch_size=8, epochs=0, head_start="probe",
                             timm_id="test_resnet"))  # fmt: skip
    write_rows(path, a_near=row | {"epochs": -7}, c={"timm_id": "test_resnet", "epochs": 9})
    found = plan_files.read_plan(path, output, {"config": "", "model": "plan"})
    assert found is not None and set(found[1]) == {"a_near", "b_probe", "c", "d_moving"}
    assert found[1]["d_moving"]["batch_size"] == FoldConfig.batch_size != found[0]["batch_size"]
    assert found[1]["a_near"]["epochs"] == 4 and found[1]["c"]["epochs"] == 9
    assert found[1]["b_probe"]["epochs"] == 0
    path.unlink()
    assert plan_files.read_plan(path, output, {"config": "", "model": "plan"}) is None


def test_a_row_of_common_options_alone_comes_back(tmp_path: Path) -> None:
    path, output = tmp_path / "plan.yaml", Output(tmp_path)
    begin(output, FoldConfig(model="a_near", timm_id="test_resnet", epochs=4))
    common = {"timm_id": "test_resnet", "epochs": 4}
    path.write_text(json.dumps({"train": common, "models": {"mine": {}}}))
    found = plan_files.read_plan(path, output, {"config": "", "model": "plan"})
    assert found is not None and found[1] == {"mine": {}, "a_near": common}


@pytest.mark.parametrize(
    "text",
    ["", "\0\0\0", "models: {a: {epochs: 0, timm_id: test_resnet}}",
     "models: {a: {epochs: -3, timm_id: test_resnet}}", "models: {a: {epoks: 3}}",
     "models: {a: {epochs: 3}}", "models: [1]", "models: {a: {image_size: x}}", "a: [",
     "models:\n  a: {timm_id: test_resnet}\n  a: {timm_id: test_vit}"],
)  # fmt: skip
def test_rows_that_make_no_sense_are_one_line_with_a_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.yaml.*delete it to plan again") as error:
        plan_files.read_plan(path, Output(tmp_path), {"config": "", "model": "plan"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["model", "name", "fold", "config", "dry_run", "metric"])
def test_what_is_said_for_all_rows_is_no_option_of_one(tmp_path: Path, key: str) -> None:
    path, row = tmp_path / "plan.yaml", {"timm_id": "test_resnet", key: "macro_f1"}
    flags = {"config": "", "model": "plan", "metric": "log_loss"}
    options = {f"--{entry.name}" for entry in dataclasses.fields(PlanConfig)}
    for where in ("mine", "train"):
        write_rows(path, mine=row)
        if where == "train":
            path.write_text(json.dumps({"train": row, "models": {"a": {}}}))
        with pytest.raises(UserError, match=rf"plan\.yaml: {where}: {key}.*correct it") as error:
            plan_files.read_plan(path, Output(tmp_path), flags)
        assert set(re.findall(r"--\w+", str(error.value))) <= options


def test_history_has_a_row_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    plan_files.add_history(path, 90.0, ["a", "b"], 0.25, 0.26)
    plan_files.add_history(path, 180.0, ["a"], 0.125, 0.25)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["minutes"]) for row in rows] == [1.5, 3.0]
    assert rows[0]["models"] == "a b" and float(rows[1]["nested_oof_log_loss"]) == 0.125
