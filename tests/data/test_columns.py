import pytest

from src.data.index import read_train
from tests.data.layout import refused


def read(root, labels, header="id,label", **kwargs):
    """Index a train.csv with these label cells, one image each."""
    (root / "train").mkdir()
    for row in range(len(labels)):
        (root / f"train/{row}.jpg").write_bytes(b"x")
    lines = [header, *(f"{row},{cells}" for row, cells in enumerate(labels))]
    (root / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    return read_train(root, **kwargs)


def said(index):
    """Return all notes but the one on the columns."""
    return [note for note in index.notes if not note.startswith("train.csv: image")]


def test_blanks_around_labels_are_no_part_of_them(tmp_path):
    index = read(tmp_path, ["cat", "cat ", " cat", "dog", '" dog"', "\tdog"])
    assert index.classes == ("cat", "dog")
    assert said(index) == [
        "2 sets of labels that differ in blanks only, first '\\tdog', ' dog', 'dog': merged"
    ]


def test_blanks_after_every_comma_are_nothing_to_speak_of(tmp_path):
    index = read(tmp_path, [" a, g", " b, g"], "id, label, group")
    assert index.classes == ("a", "b") and said(index) == []
    assert index.table["group"].tolist() == ["g", "g"]


def test_a_blank_label_is_no_label(tmp_path):
    refused("no label in column label for 1", read, tmp_path, ["a", " ", "b"])


def test_case_is_kept_and_said(tmp_path):
    index = read(tmp_path, ["Cat", "cat", "dog"])
    assert index.classes == ("Cat", "cat", "dog")
    assert len(said(index)) == 1 and "in case only, first 'Cat', 'cat'" in said(index)[0]
    assert "aliases.csv" in said(index)[0]


def test_numbers_written_in_several_ways_are_said(tmp_path):
    index = read(tmp_path, ["1", "1.0", "01", "2"])
    assert len(index.classes) == 4
    assert len(said(index)) == 1
    assert "in how a number is written only, first '01', '1', '1.0'" in said(index)[0]


@pytest.mark.parametrize("labels", [["0", "1"] * 4, ["0.0", "1.0"] * 4, list(map(str, range(12)))])
def test_numbers_are_good_names_of_classes(tmp_path, labels):
    assert said(read(tmp_path, labels)) == []


@pytest.mark.parametrize("step", [13.7, 9.0])
def test_a_measurement_is_no_class(tmp_path, step):
    refused(
        "8 different numbers in 8 rows: that is a measurement",
        read,
        tmp_path,
        [str(row * step) for row in range(8)],
    )


def test_numbers_with_decimals_that_repeat_are_said(tmp_path):
    index = read(tmp_path, ["1.5", "2.0", "2.5"] * 3)
    assert len(said(index)) == 1 and "not as a measurement" in said(index)[0]


@pytest.mark.parametrize("both", ["rust scab", '"rust,scab"', "scab|rust"])
def test_several_labels_in_a_cell_are_said(tmp_path, both):
    index = read(tmp_path, ["rust", "scab", both])
    assert len(index.classes) == 3
    assert len(said(index)) == 1 and "1 label made of other labels" in said(index)[0]


def test_names_of_two_words_are_nothing_to_speak_of(tmp_path):
    assert said(read(tmp_path, ["New York", "New Delhi", "York"])) == []


def test_one_hot_columns_are_classes(tmp_path):
    index = read(tmp_path, ["1,0,0", "0,1,0", "0,0,1", "0,1,0"], "image_id,healthy,rust,scab")
    assert index.table["target"].tolist() == ["healthy", "rust", "scab", "rust"]
    assert index.classes == ("healthy", "rust", "scab")
    assert "label = the one of healthy, rust, scab that is 1" in index.notes[0]


def test_one_of_the_columns_may_be_named(tmp_path):
    index = read(tmp_path, ["1,1", "0,1"], "image_id,healthy,rust", label_column="healthy")
    assert index.classes == ("0", "1")


def test_class_folders_that_differ_in_case_are_said(tmp_path):
    for folder in ("cat", "Cat"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        (tmp_path / f"train/{folder}/1.jpg").write_bytes(b"x")
    assert any("differ in case only" in note for note in read_train(tmp_path).notes)
