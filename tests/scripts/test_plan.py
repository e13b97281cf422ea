"""scripts/plan.py and what it adds to the others: the probe alone, views at a larger size."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.kill_resume import MODEL
from src.config import FoldConfig, config_hash
from src.engine.checkpoint import restore
from src.ensemble.predictions import open_oof
from src.pipelines.classification import plan, plan_runs
from src.pipelines.classification.follow import Clock
from src.pipelines.classification.plan_files import PLAN_AGAIN
from src.reader import read_rows
from src.runs import Output, Run
from src.script import UserError
from src.tool_config import PlanConfig
from tests.scripts.conftest import Answer, Place

ROOT = Path(__file__).resolve().parents[2]


# holds the lock of a blend until a moment after the plan's probes are fitted
BLEND_BY_HAND = """
import sys, time
from pathlib import Path
from src.files import hold
root = Path(sys.argv[1])
with hold(root / ".blend.lock", "the blend"):
    print(flush=True)
    while not list(root.glob("*/fold1/finished.json")):
        time.sleep(0.05)
    time.sleep(1.5)
"""


@dataclass
class Rows:
    """An index of so many images of two classes."""

    count: int
    classes: tuple[str, ...] = ("a", "b")

    def __len__(self) -> int:
        return self.count


def test_views_at_a_larger_size_go_the_whole_way(fresh: Place) -> None:
    assert fresh.train("--fold", "all", "--tta_scale", "1.5").status == 0
    oof = open_oof(fresh.run / "oof.npz")
    assert oof.views == ("identity", "hflip", "identity@1.5", "hflip@1.5")
    assert not np.allclose(oof.logits[0], oof.logits[2], atol=1e-3)
    assert fresh.optimize().status == 0
    path = fresh.output / "weights.json"
    content = json.loads(path.read_text())
    for member in content["members"]:  # whatever was fitted: the larger view alone
        member["weight"] = float(member["view"] == "hflip@1.5")
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert fresh.infer().status == 0
    info = json.loads((fresh.run / "test.json").read_text())
    assert info["views"] == ["hflip@1.5"]


def test_probe_alone_is_a_run_like_any_other(fresh: Place, weights: Path) -> None:
    flags = ["--epochs", "0", "--pretrained", str(weights)]
    answer = fresh.train("--fold", "all", "--head_start", "probe", *flags)
    assert answer.status == 0, answer.err
    assert not (fresh.run / "last.pt").exists() and not (fresh.run / "start.safetensors").exists()
    assert json.loads((fresh.run / "finished.json").read_text())["epochs"] == 0
    assert fresh.optimize().status == 0 and fresh.infer().status == 0
    assert fresh.train("--name", "b", *flags).is_one_line("--epochs 0", "--head_start probe")


def test_probes_of_all_folds_are_those_of_single_runs(fresh: Place, weights: Path) -> None:
    from src.data.index import read_test
    from src.engine.runtime import start_runtime
    from src.pipelines.classification.prepare import prepare_data
    from src.pipelines.classification.probe import train_probes

    place = {"data_dir": str(fresh.data), "output_dir": str(fresh.output)}
    config = FoldConfig(
        **place, model=MODEL, pretrained=str(weights), epochs=0, head_start="probe", folds=2,
        image_size=32, tta_steps=2, name="b", config="", device="cpu",
    )  # fmt: skip
    output = Output(fresh.output)
    index, folds = prepare_data(config, output)
    test = read_test(index.root)
    train_probes(config, output, index, folds, test, start_runtime("cpu"))
    flags = ["--fold", "all", "--epochs", "0", "--head_start", "probe"]
    assert fresh.train(*flags, "--pretrained", str(weights)).status == 0
    for fold in range(2):
        mine, single = (output.run(name, fold) for name in ("b", MODEL))
        logits = [open_oof(run.oof).logits for run in (mine, single)]
        np.testing.assert_allclose(*logits, atol=0.02)
    assert fresh.optimize().status == 0 and fresh.infer().status == 0
    both = [np.load(output.run(name, 0).test_logits) for name in ("b", MODEL)]
    np.testing.assert_allclose(both[0][: len(both[1])], both[1], atol=0.02)


@pytest.mark.slow
def test_plan_keeps_its_deadline_though_it_is_killed(fresh: Place, weights: Path) -> None:
    command = [
        sys.executable, "scripts/plan.py", "--data_dir", str(fresh.data), "--output_dir",
        str(fresh.output / "plan"), "--models", MODEL, "--pretrained", str(weights),
        "--sizes", "32", "--hours", "0.02", "--device", "cpu", "--folds", "2",
    ]  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):  # which kills it
        subprocess.run(command, cwd=ROOT, timeout=35, check=False)
    out = fresh.output / "plan"
    spent = json.loads((out / "plan_state.json").read_text())["spent_s"]
    assert 10 < spent < 36
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    spent = json.loads((out / "plan_state.json").read_text())["spent_s"]
    assert spent < 72 + 12
    with (out / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2 and (out / "submission.csv").exists()
    answer = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert answer.returncode == 0 and "spent" in answer.stdout


def test_hours_that_end_before_a_submission_are_said_to(
    fresh: Place, plan_of_a_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module("scripts.plan")
    nothing: Any = None
    over = Clock(fresh.output / "state.json", 1e-3, now=lambda: 9.0, began=1.0)
    with pytest.raises(UserError, match="pass more"):
        config, output = PlanConfig(hours=1e-3), Output(fresh.output)
        script.survey_data(config, output, nothing, nothing, nothing, over, nothing)
    fresh.output.mkdir()
    (fresh.output / "submission.csv").touch()  # of before
    with pytest.raises(UserError, match=r"submission.csv stays as it is; pass more"):
        script.survey_data(config, output, nothing, nothing, nothing, over, nothing)
    (fresh.output / "submission.csv").unlink()
    measure = script.survey_data

    def take_long(*args: Any) -> Any:
        found = measure(*args)
        args[5].before = 1e6  # the clock's
        return found

    monkeypatch.setattr(script, "survey_data", take_long)
    said = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.1")
    assert said.is_one_line("--hours 0.1", "pass more") and "stands" not in said.out


def test_hours_that_end_while_data_are_read_leave_the_submission(
    fresh: Place, plan_of_a_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.1").status == 0
    before = (fresh.output / "history.csv").read_bytes()
    script = importlib.import_module("scripts.plan")
    measure = script.survey_data

    def take_long(*args: Any) -> Any:
        args[5].before = 1e6  # the clock's
        return measure(*args)

    monkeypatch.setattr(script, "survey_data", take_long)
    said = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.2")
    assert said.status == 0 and "0.2 hours are spent" in said.out, said.out + said.err
    assert (fresh.output / "history.csv").read_bytes() == before


def test_what_a_finished_probe_has_lost_is_noted_once(
    fresh: Place, plan_of_a_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blending, trials = importlib.import_module("optimize_weights"), []
    of_the_clock = fresh.output / ".plan_state.json.1.tmp"

    def optimize(config: Any, *rest: Any, optimize: Any = blending.optimize) -> None:
        assert of_the_clock.exists() == bool(trials), "a blend leaves it alone"
        of_the_clock.touch()
        trials.append(config.trials)
        optimize(config, *rest)

    fresh.output.mkdir()
    left = [fresh.output / f".{name}.1.tmp" for name in ("weights.json", "survey.json")]
    for path in (*left, of_the_clock):
        path.touch()
    args = [sys.executable, "-c", BLEND_BY_HAND, str(fresh.output)]
    with (
        monkeypatch.context() as patch,
        subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE) as other,
    ):
        patch.setattr(blending, "optimize", optimize)
        assert other.stdout and other.stdout.readline()
        said = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.1")
        assert said.status == 0, said.err  # it waits for a blend that somebody runs beside it
    assert trials == [4, 60], "a search at the end"
    assert not any(path.exists() for path in left)
    assert len((fresh.output / "history.csv").read_text().splitlines()) == 1 + 2
    oof = next(iter(fresh.output.glob("*_probe/fold1/oof.npz")))
    whole = oof.read_bytes()
    oof.write_bytes(whole[:99])
    said = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.2")
    assert said.status == 0 and said.out.count("made again") == 1, said.out + said.err
    assert said.out.count("; skipped") == 1 and len(oof.read_bytes()) == len(whole)
    begun = fresh.output / "a_near" / "fold0" / "last.pt"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"half of it")
    with (fresh.output / "plan.yaml").open("a") as file:
        file.write(f"  a_near: {{timm_id: {MODEL}, image_size: 32, epochs: 9999}}\n")  # no time
    spent, submission = ("--hours", "1e-5"), fresh.output / "submission.csv"
    submission.unlink()  # made again though the hours are spent
    said = fresh.start("scripts.plan", *plan_of_a_probe, *spent)
    assert said.status == 0 and "last.pt damaged; begun anew" in said.out, said.out + said.err
    assert not begun.exists()
    whole = submission.read_bytes()
    assert "hours are spent" in fresh.start("scripts.plan", *plan_of_a_probe, *spent).out
    submission.write_bytes(whole[:-9])
    said = fresh.start("scripts.plan", *plan_of_a_probe, *spent)
    assert "hours are spent" not in said.out and submission.read_bytes() == whole
    images = sorted((fresh.data / "test").iterdir())
    shutil.copy(images[0], images[1])  # a contest's second stage has other images
    said = fresh.start("scripts.plan", *plan_of_a_probe, *spent)
    assert said.status == 0 and "hours are spent" not in said.out, said.out + said.err
    assert submission.read_bytes() != whole
    (fresh.output / "prediction.json").unlink()
    said = fresh.start("scripts.plan", *plan_of_a_probe, *spent)
    assert "hours are spent" not in said.out and (fresh.output / "prediction.json").exists()
    assert "hours are spent" in fresh.start("scripts.plan", *plan_of_a_probe, *spent).out
    refused = fresh.start("scripts.plan", *plan_of_a_probe, "--metric", "macro_f1", "--hours", "1")
    assert refused.is_one_line("metric was 'log_loss'", "pass what it began with")
    (fresh.output / "submission.csv").unlink()
    (fresh.output / "submission.csv").mkdir()
    refused = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.3")
    assert refused.is_one_line("submission.csv: a folder stands", "move it away")


def test_hours_that_ended_without_a_submission_are_an_error_again(
    fresh: Place, plan_of_a_probe: list[str]
) -> None:
    planned = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.1", "--dry_run")
    assert planned.status == 0, planned.err  # killed here, and its hours went by
    again = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "1e-5")
    assert again.status == 2 and again.is_one_line("over before a first submission", "pass more")


def test_rows_that_cannot_be_trained_are_refused_at_the_start(
    fresh: Place, plan_of_a_probe: list[str]
) -> None:
    flags = [*plan_of_a_probe, "--hours", "0.1"]
    assert fresh.start("scripts.plan", *flags, "--dry_run").status == 0
    path = fresh.output / "plan.yaml"
    text = path.read_text()
    for change, said in (
        (f"timm_id: {MODEL}, metric: macro_f1", "pass --metric"),
        ("timm_id: test_vit, tta_scale: 1.25", "takes one size"),
    ):
        path.write_text(f"{text}  mine: {{{change}, epochs: 3}}\n")
        refused = fresh.start("scripts.plan", *flags)
        assert refused.is_one_line("plan.yaml: mine", said, "delete it to plan again")
    assert not list(fresh.output.glob("*/fold0")), "nothing is trained before"


def test_what_no_submission_can_be_made_of_is_refused_at_the_start(
    fresh: Place, plan_of_a_probe: list[str]
) -> None:
    flags = [*plan_of_a_probe, "--hours", "0.1"]
    sample = fresh.data / "sample_submission.csv"
    whole = sample.read_text()
    for text, words in (
        ("id,label\nnobody,noon\n", "sample submission"),
        (whole.replace("evening", "dawn"), "sample_submission.csv: column 'dawn'"),
    ):
        sample.write_text(text)
        said = fresh.start("scripts.plan", *flags)
        assert said.is_one_line(words) and "autotune" not in said.out, said.out
        assert "warning" not in said.out, "it is said once"
    sample.unlink()
    for path in (fresh.data / "test").rglob("*.png"):
        path.unlink()
    said = fresh.start("scripts.plan", *flags)
    assert said.is_one_line("test") and "warning" not in said.out, said.out


def refuse(message: str) -> None:
    raise UserError(message)


def test_messages_of_a_run_name_what_a_plan_takes(tmp_path: Path) -> None:
    script, nothing = importlib.import_module("scripts.plan"), cast(Any, None)
    of_old, run = cast(Any, {"config_hash": "", "config": {}, "state": {}}), Run(tmp_path / "a")
    plain, lost = FoldConfig(), tmp_path / "no.yaml"
    of_rows, begun = script.OF_ROWS, "with other options"
    for call, words in (
        (lambda: FoldConfig(lr=0.1, lr_min=0.5), f"lr_min 0.5: above lr 0.1; {of_rows}"),
        (lambda: FoldConfig(epochs=0), f"set head_start probe, or epochs; {of_rows}"),
        (
            lambda: restore(nothing, of_old, run, plain, ""),
            "use them, pass what it began with, or",
        ),
        (lambda: read_rows(lost, FoldConfig), f"{lost}: no such file"),
        (lambda: refuse(f"{begun}: pass another --name, or"), f"{begun}: pass what it began with"),
        (lambda: refuse("lower --lr (with --accept_changes), or"), "lower lr, or"),
        (lambda: refuse(f"a: --tta_scale 2; {PLAN_AGAIN}"), f"a: tta_scale 2; {PLAN_AGAIN}"),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error, script.own_remedy():
            call()
        assert "--" not in str(error.value)
    with pytest.raises(UserError, match=r"^pass smaller --sizes or --models$"), script.own_remedy():
        refuse("pass smaller --sizes or --models")


def test_short_plans_have_three_folds_and_long_ones_five(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, found = importlib.import_module("scripts.plan"), []

    def stop(config: Any, output: Any, index: Any, folds: Any, *_: Any) -> None:
        found.append(folds.num_folds)
        raise UserError("no survey")

    monkeypatch.setattr(script, "survey_data", stop)
    for hours in ("1.9", "2"):
        assert fresh.start("scripts.plan", "--hours", hours).is_one_line("no survey")
        (fresh.output / "folds.csv").unlink()
    assert found == [3, 5]


def test_a_plan_begins_when_it_is_started_with_what_it_resumes(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, hours: float, began: float = 0.0, earlier: float = 0.0) -> None:
        raise UserError(f"imports count: {0 < began <= time.monotonic()}")

    monkeypatch.setattr(importlib.import_module("scripts.plan"), "Clock", stop)
    assert fresh.start("scripts.plan").is_one_line("imports count: True")
    said = fresh.start("scripts.plan", "--resume_from", "nowhere")
    assert said.is_one_line("--resume_from nowhere: no such folder")


def test_probes_and_a_short_survey_leave_their_mark_on_the_plan(
    fresh: Place, plan_of_a_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, pick, seconds = importlib.import_module("scripts.plan"), plan.pick_probes, []

    def pick_slow(*given: Any) -> list[plan.Member]:
        return [replace(probe, tail_s=100.0) for probe in pick(*given)]

    monkeypatch.setattr(script, "SURVEY_SHARE", 0.0)
    monkeypatch.setattr(plan, "pick_probes", pick_slow)
    monkeypatch.setattr(plan, "first_members", lambda *given: seconds.append(given[2]) or [])
    flags = [*plan_of_a_probe, "--sizes", "32", "64", "--hours", "0.1", "--dry_run"]
    assert fresh.start("scripts.plan", *flags).status == 0
    assert seconds[-1] < 360 - 100 < seconds[0], "members have what the probes leave"
    survey = json.loads((fresh.output / "survey.json").read_text())
    assert survey["ended_early"] and len(survey["candidates"]) == 1


def test_test_images_are_predicted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, known = [], []
    infer = "src.pipelines.classification.infer"
    monkeypatch.setattr(plan_runs, "finished", lambda *_: True)
    monkeypatch.setattr(f"{infer}.hash_images", lambda *_: "")
    monkeypatch.setattr(f"{infer}.has_logits", lambda *_: bool(known))
    monkeypatch.setattr(f"{infer}.infer_fold", lambda *_: predicted.append(1))
    place, member = place_of_one_row(tmp_path)
    for count in (1, 1):
        place.train(member, 0, lambda done, epochs: epochs)
        known.append(1)
        assert len(predicted) == count


def test_tables_have_the_time_that_short_plans_can_spare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, trained = importlib.import_module("scripts.plan"), []
    monkeypatch.setattr("src.data.metadata.read_metadata", lambda *_: SimpleNamespace(columns="x"))
    monkeypatch.setattr(
        "src.pipelines.classification.tabular.train_tabular", lambda *given: trained.append(given)
    )

    def asks(rows: int, seconds: float) -> bool:
        place = SimpleNamespace(index=Rows(rows), test=None, folds=None, config=PlanConfig())
        before = len(trained)
        script.train_tables(place, seconds)
        return len(trained) > before

    assert asks(250_000, 900) and not asks(250_001, 9000), "half a million rows × classes"
    assert asks(125_000, 450) and not asks(125_001, 450), "half the time, half of them"
    assert capsys.readouterr().out.count("columns x: scripts/train_tabular.py") == 2


def place_of_one_row(tmp_path: Path) -> tuple[Any, plan.Member]:
    """A plan of one member and one fold, without data."""
    output, member = Output(tmp_path), plan.Member("a", {"timm_id": MODEL, "epochs": 3}, 1.0, 1.0)
    plan.write_plan(output.plan, [member], {}, "")
    folds, nothing = cast("Any", SimpleNamespace(num_folds=1, folds_hash="")), cast("Any", None)
    return plan_runs.Place(PlanConfig(), output, {}, nothing, folds, nothing, nothing), member


def test_folds_that_are_made_again_meet_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    place, _ = place_of_one_row(tmp_path)
    run = Output(tmp_path).run("a", 0)
    run.folder.mkdir(parents=True)
    monkeypatch.setattr(
        "src.pipelines.classification.train.train_fold",
        lambda *_: trained.append(sorted(p.name for p in run.folder.iterdir())),
    )
    run.oof.touch()
    for done in ("half of it", json.dumps(
        {"config_hash": config_hash(place.row("a", 0)), "files": {"oof.npz": {}}}
    )):  # fmt: skip
        run.finished.write_text(done)
        run.tuned.write_text("half of it")
        run.last.write_bytes(b"half of it")
        place.mend("a")
        assert not run.tuned.exists() and not run.last.exists() and not run.oof.exists()
    assert trained == [[".lock", "finished.json"]], "weights and scores stand, the OOF is made"


def test_plan_refuses_mistakes_in_one_line(
    fresh: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "scripts/plan.py"), "--hour", "1"],
        cwd=tmp_path, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 2 and Answer(2, "", answer.stderr).is_one_line("--hours")
    monkeypatch.chdir(tmp_path)  # without weights
    for flags, word in (
        (("--models", MODEL, "--pretrained", "none"), "train_fold.py"),
        (("--data_dir", "nowhere"), "--data_dir"),
        ((), "fetch_weights"),
    ):
        refused = fresh.start("scripts.plan", *flags)
        assert refused.status == 2 and refused.is_one_line(word)
