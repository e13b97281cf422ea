"""Several labels an image, as train.csv says them: in columns, and in one cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.data.index import Index, read_train
from src.script import UserError
from tests.data.layout import refused


def read(root: Path, rows: list[str], header: str, sample: str = "", **options: object) -> Index:
    """Index images whose lines of train.csv end in ``rows``, and a sample submission."""
    (root / "train").mkdir()
    for row in range(len(rows)):
        (root / f"train/{row}.jpg").write_bytes(b"x")
    lines = [header, *(f"{row}.jpg,{cells}" for row, cells in enumerate(rows))]
    (root / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if sample:
        (root / "sample_submission.csv").write_text(sample, encoding="utf-8")
    return read_train(root, **options)  # type: ignore[arg-type]


HOT = "image_id,healthy,rust,scab"


def test_columns_of_which_a_line_has_several_or_none_are_labels(tmp_path):
    index = read(tmp_path, ["1,0,0", "0,1,1", "0,0,0"], HOT)
    assert index.several and index.classes == ("healthy", "rust", "scab")
    assert index.table["target"].tolist() == ["healthy", "rust|scab", ""]
    assert "label = those of healthy, rust, scab that are 1" in index.notes[0]
    said = "several labels an image: 3 labels, 1.00 an image on average, 1 image without any"
    assert any(note == said for note in index.notes)


def test_columns_that_hold_once_in_every_line_are_classes_unless_the_metric_says_labels(tmp_path):
    rows = ["1,0,0", "0,1,0", "0,0,1"]
    assert not read(tmp_path, rows, HOT).several
    assert read_train(tmp_path, several=True).several


def test_a_few_odd_lines_are_pointed_at(tmp_path):
    index = read(tmp_path, ["1,0,0", "0,1,0", "0,0,1"] * 20 + ["1,1,0"], HOT)
    assert index.several
    assert any("only 1 line does not say 1 exactly once, first line 62" in n for n in index.notes)


def test_of_many_columns_those_are_labels_that_the_sample_asks_for(tmp_path):
    rows = ["1,1,3,0", "0,1,4,1", "0,0,3,0"]
    sample = "image_id,rust,scab\n9,0.5,0.5\n"
    index = read(tmp_path, rows, "image_id,scab,rust,camera,wet", sample)
    assert index.several and index.classes == ("rust", "scab")
    assert index.table["target"].tolist() == ["rust|scab", "rust", ""]


def test_a_label_that_no_image_has_is_said(tmp_path):
    index = read(tmp_path, ["1,0,1", "0,0,0"], HOT)
    assert index.classes == ("healthy", "scab")
    assert "no image has label rust: it is not trained" in index.notes


@pytest.mark.parametrize(
    ("cells", "sample"),
    [
        (["rust scab", "rust", "", "scab mold"], "id,mold,rust,scab\n9,0,0,0\n"),
        (["rust|scab", "rust", "", "scab|mold"], "id,mold,rust,scab\n9,0,0,0\n"),
        (['"rust, scab"', "rust", "nan", '"scab, mold"'], "id,mold,rust,scab\n9,0,0,0\n"),
        (['"[rust, scab]"', "[rust]", "[]", '"[scab, mold]"'], ""),
        ([""""['rust', 'scab']\"""", "['rust']", "[]", """"['scab', 'mold']\""""], ""),
    ],
)
def test_cells_of_several_labels(tmp_path, cells, sample):
    index = read(tmp_path, cells, "image,label", sample)
    assert index.several and index.classes == ("mold", "rust", "scab")
    assert index.table["target"].tolist() == ["rust|scab", "rust", "", "mold|scab"]
    assert "label = label, several labels a cell" in index.notes[0]


def test_cells_of_the_sample_that_hold_several(tmp_path):
    cells = ["rust scab", "rust", "scab"]
    assert read(tmp_path, cells, "image,labels", "image,labels\n9,scab rust\n").several
    (tmp_path / "sample_submission.csv").write_text("image,labels\n9,rust\n", encoding="utf-8")
    single = read_train(tmp_path)
    assert not single.several and len(single.classes) == 3
    assert any("--metric f1_samples" in note for note in single.notes)
    several = read_train(tmp_path, several=True)  # the remedy
    assert several.several and several.classes == ("rust", "scab")


def test_a_second_column_of_the_same_classes_is_said(tmp_path):
    sample = "image,mold,rust,scab\n9,0,0,0\n"
    cells = ["rust,scab", "scab,", "mold,rust"]
    index = read(tmp_path, cells, "image,label1,label2", sample)
    said = "label2 has the same words and is not used: where an image has several labels, write all"
    assert not index.several and any(said in note for note in index.notes)
    (tmp_path / "train.csv").write_text("image,label1\n0.jpg,rust|scab\n1.jpg,mold\n2.jpg,rust\n")
    several = read_train(tmp_path)
    assert several.several and several.classes == ("mold", "rust", "scab")  # the remedy


def test_names_of_two_words_stay_one_class(tmp_path):
    cells = ["New York", "New Delhi", "Old York"]
    sample = "image,label\n9,New York\n"
    assert not read(tmp_path, cells, "image,label", sample).several
    (tmp_path / "sample_submission.csv").write_text(
        "image,New Delhi,New York,Old York\n9,0,0,0\n", encoding="utf-8"
    )
    assert not read_train(tmp_path).several


def test_what_is_refused(tmp_path):
    refused(
        r"column label has one class in each cell, and --metric",
        read,
        tmp_path,
        ["a", "b", "a"],
        "image,label",
        several=True,
    )
    with pytest.raises(UserError, match=r"label 'a\|b' holds"):
        (tmp_path / "train.csv").write_text("image,a|b,c\n0.jpg,1,1\n1.jpg,0,1\n")
        read_train(tmp_path)
    (tmp_path / "train.csv").unlink()
    refused(r"no train\.csv that says them", read_train, tmp_path, several=True)


def test_lists_of_one_class_are_that_class(tmp_path):
    cells = ['"[""polar bear""]"', "['cat']", '"[ ""cat"" ]"']  # doccano's and Prodigy's lines
    index = read(tmp_path, cells, "image,label", "image,label\n9.jpg,cat\n")
    assert not index.several and index.table["target"].tolist() == ["polar bear", "cat", "cat"]
    (tmp_path / "sample_submission.csv").write_text("image,label\n9.jpg,['cat']\n")
    assert read_train(tmp_path).classes[-1] == "['cat']"  # so it is handed in
