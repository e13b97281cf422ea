import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.classes import merge_classes
from src.data.sample import load_aliases, read_aliases
from src.script import UserError
from tests.data.layout import refused

CLASSES = ("K5_2020", "K5_하이브리드", "디_올뉴니로", "디_올_뉴_니로", "모닝")


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_no_file_means_every_class_is_trained():
    aliases = read_aliases(None, CLASSES)
    assert aliases.trained == CLASSES and aliases.trained_of == (0, 1, 2, 3, 4)
    assert aliases.members() == tuple((name,) for name in CLASSES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
@pytest.mark.parametrize("header", ["", "class,alias\r\n"])
def test_pairs_join_under_the_first_name(tmp_path, encoding, header):
    text = header + "K5_하이브리드, K5_2020\r\n\r\n디_올뉴니로,디_올_뉴_니로\r\n"
    aliases = read_aliases(write(tmp_path / "aliases.csv", text, encoding), CLASSES)
    assert aliases.trained == ("K5_하이브리드", "디_올뉴니로", "모닝")
    assert aliases.trained_of == (0, 0, 1, 1, 2)
    assert aliases.members()[0] == ("K5_하이브리드", "K5_2020")
    targets = aliases.targets(["모닝", "K5_2020", "K5_하이브리드"])
    assert targets.tolist() == [2, 0, 0] and targets.dtype == np.int64


def test_names_are_compared_in_nfc(tmp_path):
    text = unicodedata.normalize("NFD", "디_올뉴니로,디_올_뉴_니로\n")
    assert len(read_aliases(write(tmp_path / "a.csv", text), CLASSES).trained) == 4


def test_a_header_allows_columns_of_evidence(tmp_path):
    path = write(tmp_path / "a.csv", "class,alias,evidence\nK5_2020,모닝,0.5\n")
    assert len(read_aliases(path, CLASSES).trained) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("K5_2020,모낭\n", r"line 1: no class '모낭' \(did you mean 모닝\?\)"),
        ("\nK5_2020\n", "line 2: expected two class names"),
        ("K5_2020,\n", "line 1: expected two"),
        ("K5_2020,모닝,디_올뉴니로\n", "line 1: expected two"),
        ("class,alias\nclass,alias\n", "line 2: no class 'class'"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_aliases(write(tmp_path / "aliases.csv", text), CLASSES)
    assert "aliases.csv" in str(caught.value)


def test_missing_file_and_everything_joined(tmp_path):
    refused(r"gone\.csv cannot be read", read_aliases, tmp_path / "gone.csv", CLASSES)
    refused("join all classes into 'a'", read_aliases, write(tmp_path / "all.csv", "a,b\n"), "ab")


@given(st.text(st.sampled_from('ab,"\n\r =ㄱ가'), max_size=30))
def test_any_file_is_read_or_refused_by_name(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("aliases") / "fuzz.csv"
    path.write_bytes(text.encode())
    try:
        assert set(read_aliases(path, ("a", "b", "c", "가")).trained) <= {"a", "b", "c", "가"}
    except UserError as error:
        assert "fuzz.csv" in str(error) and "\n" not in str(error)


def test_names_of_the_sample_alone_stand_for_a_class(tmp_path):
    (tmp_path / "sample_submission.csv").write_text("id,a,hound\n1,.5,.5\n")
    (tmp_path / "aliases.csv").write_text("b,hound\n")
    aliases = load_aliases(tmp_path, "", ("a", "b"))
    assert aliases.trained == ("a", "b") and aliases.members() == (("a",), ("b", "hound"))
    again = merge_classes(("a", "b"), aliases.members())
    assert again.members() == aliases.members()
    (tmp_path / "aliases.csv").write_text("b,hund\n")
    refused(r"no class 'hund' \(did you mean hound\?\)", load_aliases, tmp_path, "", ("a", "b"))


def test_aliases_need_no_sample_and_no_folder(tmp_path):
    (tmp_path / "mine.csv").write_text("a,b\n")
    aliases = load_aliases(None, str(tmp_path / "mine.csv"), ("a", "b", "c"))
    assert aliases.trained == ("a", "c")
    assert load_aliases(tmp_path, "", ("a", "b")).trained == ("a", "b")
