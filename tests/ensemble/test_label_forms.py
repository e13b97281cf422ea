"""Forms of a submission of several labels: recognised, written, read back, damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.ensemble import submission
from src.ensemble.forms import Sample, find_label_form
from src.ensemble.submission import write_labels
from src.metrics.decisions import Decision
from src.script import UserError
from tests.tables import read_rows

LABELS = ("mold", "rust", "scab")
PROBS = np.array([[0.9, 0.6, 0.2], [0.1, 0.2, 0.3]])
PAIRS = np.log(np.stack([1 - PROBS, PROBS], axis=-1).reshape(-1, 2))
RULE = Decision("labels", slopes=(1.0,) * 3, offsets=(0.0,) * 3)
CUT = Decision("labels", slopes=(1.0,) * 3, offsets=(0.0,) * 3, cuts=(0.5, 0.5, 0.5))
LEAST = Decision("labels", slopes=(1.0,) * 3, offsets=(0.0,) * 3, cuts=(0.5,) * 3, least=1)


def write(tmp_path: Path, sample: Sample | None, holds: str, rule: Decision) -> list[list[str]]:
    form = find_label_form(sample, LABELS, holds=holds, ids=("x", "y"))
    write_labels(tmp_path / "s.csv", form, ("x", "y"), PAIRS, rule)
    return read_rows(tmp_path / "s.csv")


def test_columns_of_probabilities_are_each_their_own(tmp_path) -> None:
    sample = Sample(("id", "scab", "mold", "rust"), ("0", "0"), ("x", "y"))
    assert write(tmp_path, sample, "probabilities", RULE) == [
        ["id", "scab", "mold", "rust"], ["x", "0.2", "0.9", "0.6"], ["y", "0.3", "0.1", "0.2"],
    ]  # fmt: skip
    # thresholds of another metric do not make them 0 and 1
    assert write(tmp_path, sample, "probabilities", CUT)[1] == ["x", "0.2", "0.9", "0.6"]
    assert write(tmp_path, None, "probabilities", RULE)[0] == ["ID", *LABELS]


def test_columns_of_zero_and_one(tmp_path) -> None:
    sample = Sample(("id", "scab", "mold", "rust"), ("0", "0"), ("x", "y"))
    assert write(tmp_path, sample, "labels", CUT)[1:] == [["x", "0", "1", "1"], ["y"] + ["0"] * 3]
    assert write(tmp_path, sample, "labels", LEAST)[2] == ["y", "1", "0", "0"]


def test_a_label_without_images_and_one_that_is_not_asked_for(tmp_path) -> None:
    sample = Sample(("id", "wilt", "mold", "rust", "scab"), ("0",), ("x",))
    form = find_label_form(sample, LABELS, holds="probabilities")
    assert "wilt: no image has this label" in form.notes[-1]
    assert write(tmp_path, sample, "probabilities", RULE)[1][1:] == ["0.0001", "0.9", "0.6", "0.2"]
    fewer = find_label_form(
        Sample(("id", "mold", "rust"), ("0",), ("x",)), LABELS, holds="probabilities"
    )
    assert fewer.notes == ("sample_submission.csv does not ask for scab",)


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (("mold scab", "rust"), ("mold rust", "")),
        (("mold|scab", "rust"), ("mold|rust", "")),
        (("mold,scab", "rust"), ("mold,rust", "")),
        (("[0, 2]", "[1]"), ("[0, 1]", "[]")),
        (("0 2", "1"), ("0 1", "")),
        (("1;3", "2"), ("1;2", "")),
    ],
)
def test_a_cell_of_labels_as_the_sample_writes_them(tmp_path, cells, wanted) -> None:
    sample = Sample(("id", "labels"), cells, ("x", "y"))
    rows = write(tmp_path, sample, "labels", CUT)
    assert rows == [["id", "labels"], ["x", wanted[0]], ["y", wanted[1]]]


def test_a_cell_under_a_metric_of_probabilities_says_what_to_pass(tmp_path) -> None:
    sample = Sample(("id", "labels"), ("mold scab",), ("x",))
    form = find_label_form(sample, LABELS, holds="probabilities")
    assert "--metric f1_samples" in form.notes[-1] and str(form) == "a cell of labels"
    assert write(tmp_path, sample, "probabilities", RULE)[1] == ["x", "mold rust"]


def test_one_line_for_each_image_and_label(tmp_path) -> None:
    keys = tuple(f"{id_}_{name}" for id_ in ("y", "x") for name in ("rust", "mold", "scab"))
    sample = Sample(("id_label", "p"), ("0",) * 6, keys)
    rows = write(tmp_path, sample, "probabilities", RULE)
    assert rows[1:4] == [["y_rust", "0.2"], ["y_mold", "0.1"], ["y_scab", "0.3"]]
    assert [row[1] for row in write(tmp_path, sample, "labels", CUT)[4:]] == ["1", "1", "0"]


def test_probabilities_are_never_0_or_1(tmp_path) -> None:
    form = find_label_form(None, LABELS, holds="probabilities")
    pairs = np.array([[0.0, -200.0], [-200.0, 0.0], [0.0, 0.0]])
    write_labels(tmp_path / "s.csv", form, ("x",), pairs, RULE)
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "x,1e-07,0.9999999,0.5"


def test_what_is_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="'Mold' in column 'labels' is no class"):
        find_label_form(
            Sample(("id", "labels"), ("mold Mold", "rust"), ("x",)), LABELS, holds="labels"
        )
    with pytest.raises(UserError, match="no column is a class"):
        find_label_form(Sample(("id", "p", "q"), ("0",), ("x",)), LABELS, holds="labels")
    with pytest.raises(UserError, match="no probabilities"):
        form = find_label_form(None, LABELS, holds="probabilities")
        write_labels(tmp_path / "s.csv", form, ("x", "y"), PAIRS * np.nan, RULE)
    line = submission.csv_row
    monkeypatch.setattr(submission, "csv_row", lambda *cells: line(*cells).replace("0.9", "0.8"))
    with pytest.raises(UserError, match="line 2 is not what was written"):
        write(tmp_path, None, "probabilities", RULE)
    assert not (tmp_path / "s.csv").exists()
