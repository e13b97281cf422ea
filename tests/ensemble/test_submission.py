from __future__ import annotations

import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ensemble import submission
from src.ensemble.matching import match_columns
from src.ensemble.submission import Form, to_columns, write_form
from src.metrics.decisions import Decision
from src.script import UserError
from tests.tables import read_rows


def log(probs):
    return np.log(np.array(probs)).astype(np.float32)


def write(path, id_column, ids, columns, log_probs):
    form = Form("columns", (id_column, *columns.names), columns)
    write_form(path, form, ids, lambda rows: log_probs[rows], Decision("none"))


def test_columns_are_matched_by_name_whatever_their_order_or_form():
    names = [unicodedata.normalize("NFD", "b_가"), "a"]
    columns = match_columns(names, ["a", "b_가"])
    assert columns.names == tuple(names) and not columns.notes
    np.testing.assert_allclose(to_columns(log([[0.2, 0.8]]), columns), [[0.8, 0.2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("split", [0.3, 0.4, 0.3]),
        ("first", [0.0, 0.4, 0.6]),
        ("both_equal_renormalised", [0.375, 0.25, 0.375]),
    ],
)
def test_alias_policies_by_hand(policy, expected):
    groups = [("new", "old")]  # trained under the name said first
    columns = match_columns(["old", "b", "new"], ["b", "new"], alias_groups=groups, policy=policy)
    probs = to_columns(log([[0.4, 0.6]]), columns)[0]
    np.testing.assert_allclose(probs, expected, atol=1e-6)
    assert probs.min() > 0 and probs.sum() == pytest.approx(1, abs=1e-12)


def test_an_alias_column_alone_takes_the_whole_mass():
    columns = match_columns(["old", "b"], ["b", "new"], alias_groups=[("new", "old")])
    np.testing.assert_allclose(to_columns(log([[0.4, 0.6]]), columns), [[0.6, 0.4]], rtol=1e-6)


def test_columns_for_some_classes_hold_their_own_probabilities(tmp_path):
    columns = match_columns(["c", "a"], ["a", "b", "c"])
    answers = log([[0.47, 0.47, 0.06], [0.25, 0.5, 0.25]])
    np.testing.assert_allclose(to_columns(answers, columns), [[0.06, 0.47], [0.25, 0.25]])
    assert "asks for 2 of 3 classes" in columns.notes[0] and "left for b " in columns.notes[0]
    path = tmp_path / "s.csv"
    write(path, "id", ["x", "y"], columns, answers)
    assert path.read_text().startswith("id,c,a\nx,0.0") and "\ny,0.25,0.25\n" in path.read_text()


def test_alias_columns_of_some_classes_share_what_their_class_has():
    groups = [("new", "old")]
    columns = match_columns(
        ["old", "new"], ["b", "new"], alias_groups=groups, policy="both_equal_renormalised"
    )
    np.testing.assert_allclose(to_columns(log([[0.4, 0.6]]), columns), [[0.3, 0.3]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "classes", "taken"),
    [
        ("dog", ["cat", "dog"], "dog"),
        ("is_dog", ["cat", "dog"], "dog"),
        ("Prob Cat", ["cat", "dog"], "cat"),
        ("target", ["0", "1"], "1"),
        ("has_cactus", ["0", "1"], "1"),
        ("label", ["No", "Yes"], "Yes"),
        ("no", ["no", "yes"], "no"),
    ],
)
def test_one_column_is_the_probability_of_one_class(name, classes, taken):
    columns = match_columns([name], classes)
    probs = np.array([[0.125, 0.875]])
    expected = probs[:, classes.index(taken)][:, None]
    np.testing.assert_allclose(to_columns(log(probs), columns), expected, rtol=1e-6)
    if name != taken:
        assert f"column {name!r} is taken for " in columns.notes[0] and taken in columns.notes[0]


@pytest.mark.parametrize(
    ("names", "classes", "taken"),
    [(("Class0", "Class1"), ("0", "1"), [0, 1]), (("1", "0"), ("0.0", "1.0"), [1, 0]),
     (("00", "01"), ("0", "1"), [0, 1]), (("a_vote", "b_vote"), ("a", "b"), [0, 1]),
     (("label_1", "label_0"), ("0.0", "1.0"), [1, 0]),
     (("diagnosis_1", "diagnosis_0"), ("0", "1"), [1, 0]),
     (("b in it", "a in it"), ("a", "b"), [1, 0])],
)  # fmt: skip
def test_numbers_are_the_same_however_they_are_written(names, classes, taken):
    assert match_columns(names, classes).classes.tolist() == taken


def test_numbers_that_begin_elsewhere_are_not_guessed():
    with pytest.raises(ValueError, match=r"a line for each into aliases\.csv"):
        match_columns(("Class1", "Class2", "Class3"), ("0", "1", "2"))
    with pytest.raises(ValueError, match=r"a line for each into aliases\.csv"):
        match_columns(("grade_1", "grade_2", "grade_3"), ("0", "1", "2"))


def test_a_class_without_training_images_gets_what_the_floor_has_for_it(tmp_path):
    columns = match_columns(["a", "UNK", "b"], ["a", "b"], floor=0.06)
    answers = log([[0.25, 0.75]])
    probs = to_columns(answers, columns)
    np.testing.assert_allclose(probs, [[0.98 * 0.25, 0.02, 0.98 * 0.75]], rtol=1e-6)
    assert "UNK is no class with training images: every row gets 0.02" in columns.notes[0]
    write(tmp_path / "s.csv", "id", ["x"], columns, answers)
    two = match_columns(["a", "u", "b", "v"], ["a", "b"])  # no floor was learned
    np.testing.assert_allclose(to_columns(answers, two)[0, [1, 3]], [5e-5, 5e-5], rtol=1e-6)


def test_many_columns_that_are_taken_for_classes_are_not_said_one_by_one():
    classes = [str(k) for k in range(40)]
    columns = match_columns([f"prob_{name}" for name in classes], classes)
    assert columns.classes.tolist() == list(range(40)) and len(columns.notes) == 3
    assert columns.notes[2].endswith("'prob_2' is taken for class '2', and 37 others likewise")


def test_a_column_that_may_be_another_class_is_refused_with_a_remedy_that_works():
    with pytest.raises(UserError, match=r"write the line `dog,hound` into aliases\.csv"):
        match_columns(["cat", "hound"], ["cat", "dog"])
    columns = match_columns(["cat", "hound"], ["cat", "dog"], alias_groups=[("dog", "hound")])
    np.testing.assert_allclose(to_columns(log([[0.2, 0.8]]), columns), [[0.2, 0.8]], rtol=1e-6)


def test_the_other_of_two_classes_is_asked_for_by_an_alias():
    note = match_columns(["target"], ["no", "yes"]).notes[0]
    assert "class, 'yes'" in note and "the line `no,target` into aliases.csv" in note
    columns = match_columns(["target"], ["no", "yes"], alias_groups=[("no", "target")])
    np.testing.assert_allclose(to_columns(log([[0.25, 0.75]]), columns), [[0.25]])


def test_one_column_may_be_named_in_aliases():
    with pytest.raises(
        UserError, match=r"write the line `ill,target` .with that class. into aliases"
    ):
        match_columns(["target"], ["fine", "ill"])
    columns = match_columns(["target"], ["fine", "ill"], alias_groups=[("ill", "target")])
    np.testing.assert_allclose(to_columns(log([[0.25, 0.75]]), columns), [[0.75]])


def test_no_class_is_guessed_from_signs_or_from_two_that_look_alike():
    for names in (["="], ["P"]):
        with pytest.raises(UserError, match="no column is a class"):
            match_columns(names, ["+", "-"])
    with pytest.raises(UserError, match="'CAT' matches no class"):
        match_columns(["CAT", "dog"], ["Cat", "cat", "dog"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "c"], r"column 'c' matches no class \(nearest without a column: b\)"),
        (["a", "b", "a"], "column 'a' occurs twice"),
    ],
)
def test_bad_samples_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        match_columns(names, ["a", "b"])


def test_file_by_hand_and_earlier_file_survives_a_failure(tmp_path):
    path = tmp_path / "deep" / "submission.csv"
    columns = match_columns(["b", "a"], ["a", "b"])
    predictions = log([[1.0, 1e-30], [0.25, 0.75]])
    write(path, "ID", ["001", "NA"], columns, predictions)
    text = path.read_text(encoding="utf-8")
    assert text == "ID,b,a\n001,1e-15,1\nNA,0.75,0.25\n"
    broken = np.full((2, 2), np.nan, dtype=np.float32)
    with pytest.raises(UserError, match="the predictions are no distributions"):
        write(path, "ID", ["001", "NA"], columns, broken)
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["submission.csv"]


@pytest.mark.parametrize(("old", "new"), [("ID", "id"), ("x,", "y,"), ("0.75", "0.7"), ("\n", "")])
def test_what_was_written_wrongly_does_not_stand(tmp_path, monkeypatch, old, new):
    whole = submission.csv_row
    monkeypatch.setattr(submission, "csv_row", lambda *row: whole(*row).replace(old, new))
    columns = match_columns(["a", "b"], ["a", "b"])
    with pytest.raises(UserError, match=r"line \d is not what was written; try again"):
        write(tmp_path / "s.csv", "ID", ["x", "z"], columns, log([[0.25, 0.75], [0.5, 0.5]]))
    assert not (tmp_path / "s.csv").exists()


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=10)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_names_and_ids_survive_a_round_trip(tmp_path_factory, data):
    """Commas, quotes, line breaks and formulas stand in the file as they stand in the sample."""
    unique = {"unique_by": lambda text: unicodedata.normalize("NFC", text)}
    names = data.draw(st.lists(TEXT.filter(bool), min_size=1, max_size=5, **unique))
    ids = data.draw(st.lists(TEXT, max_size=6, unique=True))
    policy = data.draw(st.sampled_from(("split", "first", "both_equal_renormalised")))
    order = data.draw(st.permutations(names))
    seed = data.draw(st.integers(0, 100))
    sharp = data.draw(st.sampled_from([1.0, 100.0, 60000.0]))
    logits = sharp * np.random.default_rng(seed).standard_normal((len(ids), len(names)))
    log_probs = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    columns = match_columns(order, names, policy=policy)
    path = tmp_path_factory.mktemp("s") / "submission.csv"
    write(path, "=ID,", ids, columns, log_probs)
    header, *rows = read_rows(path)
    assert header == ["=ID,", *order]
    assert [row[0] for row in rows] == ids
    probs = np.array([row[1:] for row in rows], dtype=float).reshape(len(ids), len(names))
    assert (probs > 0).all()
    expected = np.exp(log_probs.astype(float))[:, [names.index(name) for name in order]]
    np.testing.assert_allclose(probs, expected / expected.sum(1, keepdims=True), atol=1e-8)


def test_pandas_reads_what_a_grader_would(tmp_path):
    path = tmp_path / "submission.csv"
    columns = match_columns(["b, or c", 'a "x"'], ['a "x"', "b, or c"])
    write(path, "ID", ["007"], columns, log([[0.125, 0.875]]))
    table = pd.read_csv(path, dtype={"ID": str})
    assert table.columns.tolist() == ["ID", "b, or c", 'a "x"']
    assert table.loc[0].tolist() == ["007", 0.875, 0.125]
