from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from src.classes import split_lines
from src.ensemble import submission
from src.ensemble.forms import Sample, find_form
from src.ensemble.submission import write_form
from src.metrics.decisions import Decision
from src.script import UserError
from tests.tables import read_rows

CLASSES = ("bird", "cat", "dog")
IDS = ["a_1", "a_2", "a_10"]
PROBS = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
ARGMAX = Decision("argmax")


def sample(*cells: str, header=("id", "label"), keys=None) -> Sample:
    return Sample(header, cells, tuple(keys or IDS))


def write(tmp_path, form, decision=ARGMAX, probs=PROBS):
    path = tmp_path / "submission.csv"
    log_probs = np.log(probs).astype(np.float32)
    write_form(path, form, IDS, lambda rows: log_probs[rows], decision)
    return read_rows(path)


@pytest.mark.parametrize(
    ("cells", "classes", "written"),
    [
        (("cat", "cat", "dog"), CLASSES, ["cat", "bird", "dog"]),
        (("", "", ""), CLASSES, ["cat", "bird", "dog"]),
        (("?", "?", "?"), CLASSES, ["cat", "bird", "dog"]),  # a filler
        (("0", "0", "0"), CLASSES, ["1", "0", "2"]),
        (("1", "2", "3"), CLASSES, ["2", "1", "3"]),  # counted from 1
        (("0", "0", "0"), ("0", "1", "2"), ["1", "0", "2"]),
        (("3", "3", "3"), ("3", "5", "9"), ["5", "3", "9"]),  # names that are numbers stay names
        (("0", "0", "0"), ("0.0", "1.0", "2.0"), ["1", "0", "2"]),
        (("007", "007", "007"), ("007", "008", "009"), ["008", "007", "009"]),
        # numbers in names, not their order by name
        (("0", "0", "0"), ("class_0", "class_10", "class_2"), ["10", "0", "2"]),
        (("7", "7", "7"), ("007_owl", "008_wren", "009_tit"), ["8", "7", "9"]),
        (("007", "007", "007"), ("007_owl", "008_wren", "009_tit"), ["008", "007", "009"]),
        (("0", "0", "0"), ("at_20", "at_50", "at_80"), ["1", "0", "2"]),  # other numbers
        (("a\u0301",) * 3, ("\u00e1", "\u00e9", "o"), ["e\u0301", "a\u0301", "o"]),  # of a Mac
    ],
)
def test_labels_as_the_sample_writes_them(tmp_path, cells, classes, written) -> None:
    form = find_form(sample(*cells), classes, holds="labels")
    assert form.kind == "labels"
    header, *rows = write(tmp_path, form)
    assert header == ["id", "label"] and [row[0] for row in rows] == IDS
    assert [row[1] for row in rows] == written


@pytest.mark.parametrize("mark", [",", "\t", ";"])
@pytest.mark.parametrize(
    ("header", "cells", "holds", "line"),
    [(("id", "label"), "cat", "labels", "a_1{}cat\n"),
     (("id", "cat"), "0", "probabilities", "a_1{}0.7\n")],
)  # fmt: skip
def test_other_marks_and_no_names(tmp_path, mark, header, cells, holds, line) -> None:
    form = find_form(sample(*[cells] * 3, header=header), CLASSES, holds=holds)
    for named in (True, False):
        write(tmp_path, replace(form, mark=mark, named=named))
        text = (tmp_path / "submission.csv").read_text()
        assert text.startswith((mark.join(header) + "\n") * named + line.format(mark))


def test_decimal_commas(tmp_path) -> None:
    form = find_form(sample("0", "0", "0", header=("id", "cat")), CLASSES)
    write(tmp_path, replace(form, mark=";", comma=True))
    assert (tmp_path / "submission.csv").read_text().startswith("id;cat\na_1;0,7\n")


@pytest.mark.parametrize("place", [1, 2])
def test_ids_stand_where_the_sample_has_them(tmp_path, place) -> None:
    names = ("id", "cat", "dog")
    form = replace(find_form(sample("0", "0", "0", header=names), CLASSES), place=place)
    header, first, *_ = write(tmp_path, form)
    assert header == ["cat", *(("id", "dog") if place == 1 else ("dog", "id"))]
    assert first[place] == "a_1" and first[0] == "0.7"


def test_numbers_are_said_aloud() -> None:
    (note,) = find_form(sample("0", "0", "0"), CLASSES, holds="labels").notes
    assert "0 = bird, 1 = cat" in note
    assert find_form(sample("cat", "dog", "cat"), CLASSES, holds="labels").notes == ()


def test_log_loss_and_a_sample_of_labels(tmp_path) -> None:
    form = find_form(sample("cat", "cat", "cat"), CLASSES)
    assert form.kind == "labels" and "--metric accuracy" in form.notes[-1]
    assert [row[1] for row in write(tmp_path, form, Decision("none"))[1:]] == ["cat", "bird", "dog"]
    # three classes have no probability in one column of numbers
    assert find_form(sample("0", "0", "0"), CLASSES).kind == "labels"
    # two have: the named one's, as ever
    one = find_form(sample("0", "0", "0", header=("id", "dog")), ("cat", "dog"))
    assert one.kind == "columns" and one.columns is not None and one.columns.names == ("dog",)
    assert find_form(sample("0.5", "0.5", "0.5"), ("0", "1")).kind == "columns"
    with pytest.raises(UserError, match="no column is a class"):
        find_form(sample("0.3", "0.3", "0.3"), CLASSES)
    # a class's name that is no probability
    assert find_form(sample("1", "2", "1"), ("1", "2")).kind == "labels"
    with pytest.raises(UserError, match="if it is the label, pass --metric accuracy"):
        find_form(sample("0", "0", "0"), ("1", "2"))


def test_numbers_of_two_classes_and_of_numbers() -> None:
    """What is positive is 1, whatever comes first by name; a number without images is said."""
    form = find_form(sample("0", "0", "0"), ("Abnormal", "Normal"), holds="labels")
    assert form.names == ("1", "0") and "0 = Normal, 1 = Abnormal" in form.notes[0]
    assert find_form(sample("0", "1", "0"), ("cat", "dog"), holds="labels").names == ("0", "1")
    found = find_form(sample("1", "2", "3"), ("0", "1", "2"), holds="labels")
    assert found.names == ("0", "1", "2") and ": 3: no class with training" in found.notes[0]
    padded = find_form(sample("00", "01", "02"), ("0", "1", "2"), holds="labels")
    assert padded.names == ("00", "01", "02") and not padded.notes


@pytest.mark.parametrize(
    ("cells", "classes", "wanted"),
    [(("False", "False"), ("0", "1"), ("False", "True")),
     (("YES", "NO"), ("neg", "pos"), ("NO", "YES")),
     (("true", "false"), ("malignant", "benign"), ("true", "false"))],
)  # fmt: skip
def test_yes_and_no_are_written_as_the_sample_writes_them(cells, classes, wanted) -> None:
    form = find_form(sample(*cells), classes, holds="labels")
    assert form.names == wanted and len(form.notes) == 1


def test_the_remedy_for_numbers_that_were_a_filler() -> None:
    form = find_form(sample("0", "0"), ("cat", "dog"), holds="labels")
    assert form.names == ("0", "1") and "write cat for 0 there" in form.notes[0]
    assert find_form(sample("cat", "0"), ("cat", "dog"), holds="labels").names == ("cat", "dog")


def test_a_label_that_is_no_class() -> None:
    form = find_form(sample("cat", "wolf", "dog"), CLASSES, holds="labels")
    assert form.names == CLASSES and "wolf: no class with training images" in form.notes[0]
    with pytest.raises(UserError, match="'Bird' in column 'label' is no class"):
        find_form(sample("cat", "Bird", "dog"), CLASSES, holds="labels")
    with pytest.raises(UserError, match="'7'"):
        find_form(sample("0", "7", "1"), CLASSES, holds="labels")


def test_lists_of_the_likeliest(tmp_path) -> None:
    form = find_form(sample("cat dog", "cat dog", "cat dog"), CLASSES, holds="top")
    rows = write(tmp_path, form, Decision("none", top=2))
    assert [row[1] for row in rows[1:]] == ["cat dog", "bird dog", "dog cat"]
    form = find_form(sample("0 1", "0 1", "0 1"), CLASSES, holds="top")
    rows = write(tmp_path, form, Decision("none", top=3))
    assert rows[1] == ["a_1", "1 2 0"]
    with pytest.raises(UserError, match="'big cat'"):
        find_form(sample("", "", ""), ("big cat", "dog"), holds="top")
    # a word that no image has is never written; one cell that has a blank is one label
    form = find_form(sample("cat new", "cat new", "cat new"), CLASSES, holds="top")
    assert form.kind == "lists" and "new: no class with training images" in form.notes[0]
    form = find_form(sample("sea cow", "sea cow", "sea cow"), CLASSES, holds="labels")
    assert form.kind == "labels" and "the names are written" in form.notes[0]


def test_cells_that_are_no_probabilities_are_named() -> None:
    with pytest.raises(UserError, match=r"words that are no class, such as 'a b'.*--metric"):
        find_form(sample("a b", "c", "d"), CLASSES)
    numbers = sample("38.5", "2", "7", header=("id", "score"))
    with pytest.raises(UserError, match=r"asks for a number, 'score'.*--metric qwk"):
        find_form(numbers, ("1", "2", "3"))
    assert find_form(numbers, ("1", "2", "3"), holds="labels").kind == "labels"
    with pytest.raises(UserError, match=r"line for each into aliases.csv .* such as `0,ant`"):
        find_form(sample("0", "0", "0", header=("id", "ant", "bee")), ("0", "1"))


@pytest.mark.parametrize(
    ("cell", "written"),
    [("cat dog", "cat dog"), ("cat,dog", "cat,dog"), ("cat, dog", "cat, dog"), ("cat | dog",) * 2,
     ("['cat', 'dog']", "['cat', 'dog']"), ("[cat;dog]", "[cat;dog]"), ("cat+dog", "cat+dog"),
     ('["cat"]', '["cat", "dog"]'), ("1 2", "1 2"), ("[1, 2]", "[1, 2]")],
)  # fmt: skip
def test_lists_are_written_as_the_sample_writes_them(tmp_path, cell, written) -> None:
    form = find_form(sample(cell, cell, cell), CLASSES, holds="top")
    assert write(tmp_path, form, Decision("none", top=2))[1][1] == written


def test_numbers_in_a_list_are_classes() -> None:
    form = find_form(sample("7 9 5", "7 9 5", "7 9 5"), ("10", "20", "30"))
    assert form.kind == "lists" and "--metric map@5" in form.notes[-1]
    with pytest.raises(UserError, match="words that are no class"):
        find_form(sample("a b", "a b", "a b"), ("10", "20", "30"))


@pytest.mark.parametrize("cell", ["20 0.1", "cat 0.95", "20 10 0.5"])
def test_a_class_with_its_probability_is_not_written(cell) -> None:
    with pytest.raises(UserError, match="a class and its probability in one cell"):
        find_form(sample(cell, cell, cell), ("10", "20", "cat"), holds="top")


@pytest.mark.parametrize(
    ("cell", "classes", "written"),
    [("cat", ("Bird", "Cat"), "cat"), ("CAT", ("bird", "cat"), "CAT"),
     ("sea_cow", ("land cow", "sea cow"), "sea_cow"), ("Sea cow", ("land_cow", "sea_cow"), "?")],
)  # fmt: skip
def test_names_are_written_as_the_sample_writes_them(tmp_path, cell, classes, written) -> None:
    form = find_form(sample(cell, cell, cell), classes, holds="labels")
    probs = np.array([[0.1, 0.9]] * 3)
    expected = classes[1] if written == "?" else written
    assert write(tmp_path, form, probs=probs)[1][1] == expected


def test_the_positive_class_is_not_guessed_from_words() -> None:
    with pytest.raises(UserError, match=r"words that are no class, such as '0\.5 0 0 100 100'"):
        find_form(sample(*["0.5 0 0 100 100"] * 3, header=("id", "PredictionString")), ("0", "1"))


def test_long_form_with_the_class_first(tmp_path) -> None:
    keys = [f"{name}_{id_}" for id_ in IDS for name in CLASSES]
    asked = sample(*["0"] * 9, header=("row_id", "target"), keys=keys)
    form = find_form(asked, CLASSES, ids=IDS)
    rows = dict(write(tmp_path, form, Decision("none"))[1:])
    assert list(rows) == keys and float(rows["cat_a_1"]) == pytest.approx(0.7)


def test_long_form(tmp_path) -> None:
    keys = [f"{id_}_{name}" for name in ("dog", "bird", "cat") for id_ in IDS]
    form = find_form(
        sample(*["0"] * 9, header=("id_class", "probability"), keys=keys), CLASSES, ids=IDS
    )
    assert form.kind == "long"
    header, *rows = write(tmp_path, form, Decision("none"))
    assert header == ["id_class", "probability"] and [row[0] for row in rows] == keys
    found = {key: float(value) for key, value in rows}
    assert found["a_1_cat"] == pytest.approx(0.7) and found["a_10_bird"] == pytest.approx(0.2)
    assert sum(found[f"a_2_{name}"] for name in CLASSES) == pytest.approx(1.0, abs=1e-6)


def test_lines_that_are_no_long_form() -> None:
    """A line short, or ids that look like it, are none."""
    keys = [f"{id_}_{name}" for id_ in IDS for name in CLASSES]
    header = ("id", "x")
    assert split_lines(keys, IDS) is not None
    assert split_lines(keys[:-1], IDS) is None
    assert split_lines(IDS, IDS) is None
    with pytest.raises(UserError, match="no column is a class"):
        find_form(sample(*["0.1"] * 8, header=header, keys=keys[:-1]), CLASSES, ids=IDS)


def test_ones_in_class_columns(tmp_path) -> None:
    asked = Sample(("id", "dog", "cat", "bird"), ("0", "0", "0"), tuple(IDS))
    form = find_form(asked, CLASSES, holds="labels")
    rows = write(tmp_path, form)
    assert [row[1:] for row in rows[1:]] == [["0", "1", "0"], ["0", "0", "1"], ["1", "0", "0"]]


def test_without_a_sample(tmp_path) -> None:
    rows = write(tmp_path, find_form(None, CLASSES, holds="labels"))
    assert rows[0] == ["ID", "label"] and rows[1] == ["a_1", "cat"]
    assert find_form(None, CLASSES).header == ("ID", *CLASSES)


def test_names_that_need_quotes_come_back(tmp_path) -> None:
    classes = ('a, "b"', "c\nd", "=e")
    rows = write(tmp_path, find_form(None, classes, holds="labels"))
    assert [row[1] for row in rows[1:]] == ["c\nd", 'a, "b"', "=e"]


@pytest.mark.parametrize("kind", ["labels", "lists", "long"])
def test_what_was_written_wrongly_does_not_stand(tmp_path, monkeypatch, kind) -> None:
    """A byte that the disk changed is found when the file is read back."""
    header, keys = ("id", "label"), None
    if kind == "long":
        keys = [f"{id_}_{name}" for id_ in IDS for name in CLASSES]
    cells = {"labels": "cat", "lists": "cat dog", "long": "0"}[kind]
    holds = {"labels": "labels", "lists": "top", "long": "probabilities"}[kind]
    asked = sample(*[cells] * len(keys or IDS), header=header, keys=keys)
    form = find_form(asked, CLASSES, holds=holds, ids=IDS)
    whole = submission.csv_row
    monkeypatch.setattr(
        submission, "csv_row", lambda *row: whole(*row).replace("cat", "cta").replace("0.7", "0.8")
    )
    decision = Decision("none", top=2) if kind == "lists" else ARGMAX
    with pytest.raises(UserError, match="try again"):
        write(tmp_path, form, decision)
    assert not (tmp_path / "submission.csv").exists()


def test_numbers_that_begin_elsewhere_than_the_labels() -> None:
    classes = ("1", "2", "3")
    with pytest.raises(UserError, match="counts labels from 0, and the images' begin with 1"):
        find_form(sample("0", "1", "2"), classes, holds="labels")
    header = ("id", "0", "1", "2")
    with pytest.raises(UserError, match="'0' matches no class, and class 3 has no column: if"):
        find_form(sample("0", "0", "0", header=header), classes)
    assert find_form(sample("0", "0", "0"), classes, holds="labels").names == classes  # a filler
