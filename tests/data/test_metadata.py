"""Columns of tables as inputs: which are taken, and that each image gets its own row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from src.data.index import Index, make_columns
from src.data.metadata import read_metadata
from src.script import UserError
from tests.data.layout import refused

TRAIN = """id,image,target,patient_id,age,sex,site,fold,note,model,row,same,hospital
a1,a1.jpg,cat,7,31,m,arm,0,one word,1,0,x,9
a2,a2.jpg,dog,7,,f,leg,1,another,2.5,1,x,9
a3,a3.jpg,cat,8,n/a,,arm,2,a third,3,2,x,8
a4,a4.jpg,dog,9,50.5,f,leg,0,and more,4,3,x,8
"""
TEST = """id,age,sex,site,fold,note,model,row,same
b2,60,m,neck,0,new text,unknown,0,x
b1,,f,arm,0,other text,2,1,x
"""


@pytest.fixture
def indexes(tmp_path: Path) -> tuple[Index, Index]:
    """Four training images and three test images, one of which no table knows."""
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    ids = ["a1", "a2", "a3", "a4"]
    paths = [f"train/{name}.jpg" for name in ids]
    table = make_columns(ids, paths, ["cat", "dog"] * 2, list("7789"), split="train")
    taken = ("image", "id", "patient_id", "target")
    unseen = ["b1", "b2", "b3"]
    test = make_columns(unseen, [f"test/{name}.jpg" for name in unseen], split="test")
    return Index(tmp_path, table, ("cat", "dog"), taken=taken), Index(tmp_path, test)


def test_what_is_no_input_is_left_out_by_name(indexes: tuple[Index, Index]) -> None:
    found = read_metadata(*indexes)
    assert (found.numbers, found.words) == (("age", "model"), ("sex", "site"))
    assert found.left_out == {
        "fold": "a split",
        "note": "text that hardly repeats",
        "row": "an id or path",
        "same": "constant",
        "hospital": "not in the test table",
    }
    assert "columns used: age (number), model (number), sex (category)" in found.lines[0]


def test_the_tables_are_those_that_the_index_reads(indexes: tuple[Index, Index]) -> None:
    root = indexes[0].root
    (root / "train.csv").rename(root / "train_labels.csv")
    (root / "test.csv").rename(root / "test_v2.csv")
    assert read_metadata(*indexes).numbers == ("age", "model")


def test_the_mark_is_of_the_columns_and_not_of_the_machine(
    indexes: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_metadata(*indexes)
    before = found.mark
    monkeypatch.setattr(os, "linesep", "\r\n")
    assert found.mark == before


def test_every_image_has_its_own_row_and_what_is_missing_is_so(
    indexes: tuple[Index, Index],
) -> None:
    found = read_metadata(*indexes)
    np.testing.assert_array_equal(found.train["age"], [31, np.nan, np.nan, 50.5])
    assert found.train["sex"].tolist()[:2] == ["m", "f"] and found.train["sex"].isna()[2]
    np.testing.assert_array_equal(found.test["age"], [np.nan, 60, np.nan])  # b1, b2, b3
    assert found.test["site"].tolist()[:2] == ["arm", "neck"]
    np.testing.assert_array_equal(found.test["model"], [2, np.nan, np.nan])  # "unknown" is none
    assert found.notes == ("1 of 3 images are not in test.csv: their columns are missing values",)


def test_tables_of_other_names_are_joined_by_file_names(
    indexes: tuple[Index, Index], tmp_path: Path
) -> None:
    names = ["a3", "a1", "zz", "a2"]
    lines = [f"deep/{name}.PNG,{2 * k}\n" for k, name in enumerate(names)]
    (tmp_path / "more.csv").write_text("picture,x\n" + "".join(lines))
    (tmp_path / "new.csv").write_text("picture,x\nb3.jpg,9\nb1.jpg,8\n")
    found = read_metadata(*indexes, table="more.csv", test_table=str(tmp_path / "new.csv"))
    np.testing.assert_array_equal(found.train["x"], [2, 6, 0, np.nan])
    np.testing.assert_array_equal(found.test["x"], [8, np.nan, 9])


def test_the_mark_is_of_what_is_used(indexes: tuple[Index, Index], tmp_path: Path) -> None:
    before = read_metadata(*indexes).mark
    (tmp_path / "train.csv").write_text(TRAIN.replace("another", "changed"))
    assert read_metadata(*indexes).mark == before
    (tmp_path / "train.csv").write_text(TRAIN.replace("50.5", "50.6"))
    assert read_metadata(*indexes).mark != before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": ["target"]}, ("--columns target", "names images, labels or groups")),
        ({"columns": ["patient_id"]}, ("--columns patient_id", "labels or groups")),
        ({"columns": ["hospital"]}, ("--columns hospital", "not in the test table")),
        ({"columns": ["agee"]}, ("no such column", "age")),
        ({"table": "nowhere.csv"}, ("--table nowhere.csv", "no such file")),
        ({"test_table": "train.csv"}, ("train.csv: no column holds", "'b1'")),
    ],
)
def test_mistakes_are_refused(
    indexes: tuple[Index, Index], options: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        read_metadata(*indexes, **options)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words), error.value


def test_chosen_columns_may_be_any_input(indexes: tuple[Index, Index]) -> None:
    assert read_metadata(*indexes, columns=["row", "sex"]).columns == ("row", "sex")


def test_decimal_commas_are_numbers_and_days_of_the_training_alone_no_inputs(
    indexes: tuple[Index, Index], tmp_path: Path
) -> None:
    days = "".join(f"a{n};{n % 2},5;2021-01-0{n % 2}\n" for n in range(1, 5))
    (tmp_path / "train.csv").write_text(f"id;depth;day\n{days}")
    (tmp_path / "test.csv").write_text("id;depth;day\nb1;0,25;2021-02-01\nb2;;2021-02-02\n")
    found = read_metadata(*indexes)
    assert found.columns == ("depth",) and found.test["depth"].tolist()[:1] == [0.25]
    assert found.left_out["day"].startswith("most of its words in the test table are not")


def test_a_folder_without_tables_says_how_to_name_them(tmp_path: Path) -> None:
    index = Index(tmp_path, make_columns(["a"], ["train/x/a.jpg"], ["x"], split="train"))
    refused("--table", read_metadata, index, index)
