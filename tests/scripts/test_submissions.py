"""What the leaderboard said: --submit_log of scripts/report.py, and its panel."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from src.files import write_json
from src.pipelines.classification import leaderboard
from src.runs import Output
from src.script import UserError
from tests.scripts.conftest import Place

FORECAST = {"value": 0.13, "low": 0.1, "high": 0.16}
SAID = {
    "oof_log_loss": 0.14, "test_log_loss": FORECAST, "weights": "0", "average_temperature": 1.0
}  # fmt: skip


def forecast_of(output: Output, submission: str, **more: object) -> None:
    said = SAID | {"models": ["a", "b"], "submission": submission}
    write_json(output.prediction, said | more)


def test_a_score_is_recorded_beside_its_forecast(place: Place) -> None:
    done = place.start("scripts.report", "--submit_log", "private 0.128")
    assert done.status == 0 and "private log_loss 0.128, forecast" in done.out, done.err
    with (place.output / "submissions.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    content = (place.output / "submission.csv").read_bytes()
    assert row["submission"] == hashlib.sha256(content).hexdigest()[:12]
    said = json.loads((place.output / "prediction.json").read_text())
    assert float(row["forecast"]) == said["test_log_loss"]["value"]
    assert (row["kind"], float(row["score"])) == ("private", 0.128) and row["time"].endswith("00")
    html = (place.output / "report" / "index.html").read_text(encoding="utf-8")
    assert "forecast and leaderboard" in html and "private: 1, 0.128" in html
    assert place.start("scripts.report", "--submit_log", "0.128").is_one_line('"private 0.128"')


def test_the_same_kind_is_replaced_and_an_earlier_submission_named(tmp_path: Path) -> None:
    output = Output(tmp_path)
    forecast_of(output, "aaaa00000000")
    leaderboard.record(output, "public 0.5")
    assert leaderboard.record(output, "Public 0,12").inside
    forecast_of(output, "bbbb00000000")
    assert not leaderboard.record(output, "public 0.17").inside
    leaderboard.record(output, "private 0.11 aaa")
    found = [
        (e.submission[0], e.kind, e.score) for e in leaderboard.read_entries(output.submissions)
    ]
    assert found == [("a", "public", 0.12), ("b", "public", 0.17), ("a", "private", 0.11)]


def test_another_metric_is_recorded_with_its_own_forecast(tmp_path: Path) -> None:
    output = Output(tmp_path)
    test = {"value": 0.9, "low": 0.85, "high": 0.95}
    forecast_of(output, "a" * 12, metric="accuracy", oof=0.89, test=test)
    entry = leaderboard.record(output, "public 0.91")
    assert (entry.metric, entry.nested_oof, entry.forecast) == ("accuracy", 0.89, 0.9)


@pytest.mark.parametrize(
    "said", ["private", "0.1 private", "private nan", "private 0.1 aa b", "p 0.1 zz"]
)
def test_what_cannot_be_recorded_is_one_line(said: str, tmp_path: Path) -> None:
    output = Output(tmp_path)
    with pytest.raises(UserError, match="submit_log"):
        leaderboard.record(output, said)
    assert not output.submissions.exists()


def test_without_a_forecast_or_with_damage_the_remedy_is_named(tmp_path: Path) -> None:
    output = Output(tmp_path)
    with pytest.raises(UserError, match=r"no forecast yet; run infer_ensemble\.py first"):
        leaderboard.record(output, "public 0.5")
    write_json(output.prediction, SAID)  # of a version that did not name it
    with pytest.raises(UserError, match="names no submission"):
        leaderboard.record(output, "public 0.5")
    forecast_of(output, "a" * 12)
    leaderboard.record(output, "public 0.5")
    whole = output.submissions.read_text()
    output.submissions.write_text(whole.replace("0.5", "half"))
    with pytest.raises(UserError, match=r"damaged .*half"):
        leaderboard.record(output, "public 0.5")
    output.submissions.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="its columns"):
        leaderboard.record(output, "public 0.5")


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"a,b\n1,2\n", None, b"\xff\xfe\xff"])
def test_damaged_scores_are_named_with_a_remedy(tmp_path: Path, content: bytes | None) -> None:
    output = Output(tmp_path)
    forecast_of(output, "aaaa00000000")
    leaderboard.record(output, "public 0.5")
    said = output.submissions.read_text().replace(",0.5", ",nan").encode()
    output.submissions.write_bytes(said if content is None else content)
    with pytest.raises(UserError, match=r"submissions\.csv: damaged .*; restore or delete it$"):
        leaderboard.record(output, "public 0.5")
