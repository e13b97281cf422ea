import pytest

from src.data.index import read_test
from src.data.sample import read_sample
from src.ensemble.matching import match_columns
from tests.data.layout import refused


def put(root, text, num_images=2):
    (root / "sample_submission.csv").write_text(text, encoding="utf-8")
    (root / "test").mkdir(exist_ok=True)
    for number in range(num_images):
        (root / f"test/{100 + number}.jpg").write_bytes(b"x")
    return root


def test_the_usual_form_is_taken_as_it_is(tmp_path):
    table, notes = read_sample(put(tmp_path, "key,a,id_card\n100,.5,.5\n101,.5,.5\n"))
    assert list(table.columns) == ["key", "a", "id_card"] and notes == []


@pytest.mark.parametrize(
    ("text", "place", "more"),
    [
        ("a,b,id\n.5,.5,0100\n.5,.5,101\n", 2, ""),
        (",id,a,b\n0,0100,.5,.5\n1,101,.5,.5\n", 0, ", and columns without a name are left out"),
        (
            "a,Unnamed: 1,id,b\n0,0,0100,.5\n1,1,101,.5\n",
            1,
            ", and columns without a name are left out",
        ),
    ],
)
def test_ids_further_back_are_found(tmp_path, text, place, more):
    table, notes = read_sample(put(tmp_path, text))
    assert list(table.columns) == ["id", "a", "b"] and table["id"].tolist() == ["0100", "101"]
    assert notes == [f"sample_submission.csv: 'id' holds the ids{more}"]
    assert table.attrs["place"] == place


def test_ids_further_back_find_their_images(tmp_path):
    index = read_test(put(tmp_path, "a,b,id\n.5,.5,101\n.5,.5,100\n"))
    assert index.table["image"].tolist() == ["test/101.jpg", "test/100.jpg"]
    assert any("holds the ids" in note for note in index.notes)


def test_the_only_names_a_data_frame_wrote_are_the_ids(tmp_path):
    table = read_sample(put(tmp_path, ",a,b\n0100,.5,.5\n101,.5,.5\n"))[0]
    assert list(table.columns) == ["", "a", "b"] and table[""].tolist() == ["0100", "101"]


@pytest.mark.parametrize("classes", ["ab", "01"])
def test_a_line_for_each_class_is_called_that(tmp_path, classes):
    lines = "".join(f"{name},{c},.5\n" for name in (100, 101) for c in classes)
    refused(
        r"2 lines for every id \(id, class, prob\): one for each",
        read_sample,
        put(tmp_path, f"id,class,prob\n{lines}"),
    )


def test_a_column_of_text_is_no_class(tmp_path):
    text = "id,a,b,Usage\n100,.5,.5,Public\n101,.5,.5,Private\n"
    refused(
        r"column 'Usage' holds text \(Public\), no prob.*remove",
        read_sample,
        put(tmp_path, text),
    )


@pytest.mark.parametrize("cells", ["0,5;0,5", ";", "0,5;1"])
def test_numbers_may_be_written_with_a_comma_or_lack(tmp_path, cells):
    table = read_sample(put(tmp_path, f"id;a;b\n100;{cells}\n101;{cells}\n"))[0]
    assert list(table.columns) == ["id", "a", "b"]


@pytest.mark.parametrize("cell", ["a", "1"])
def test_a_sample_of_labels_is_told_from_one_of_probabilities(tmp_path, cell):
    sample = read_sample(put(tmp_path, f"id,label\n100,{cell}\n101,{cell}\n"))[0]
    refused(
        r"asks for 'label' alone.*its ids and the columns a, b; if",
        match_columns,
        list(sample.columns[1:]),
        ["a", "b"],
    )


def wide(*, newline="\n", place=0, num_rows=150):
    """Return the text of a sample of twelve classes, and its rows, with ids at a place."""
    rows = [["id", *(f"c{k}" for k in range(12))]]
    rows += [[str(100 + n), *(f"{n}.{k:02d}" for k in range(12))] for n in range(num_rows)]
    for row in rows:
        row.insert(place, row.pop(0))
    return newline.join(map(",".join, rows)) + newline, rows


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_of_a_wide_table_later_rows_have_ids_alone(tmp_path, newline):
    text, rows = wide(newline=newline)
    table = read_sample(put(tmp_path, text))[0]
    assert list(table.columns) == rows[0] and table["id"].tolist() == [r[0] for r in rows[1:]]
    assert table.iloc[99].tolist() == rows[100]
    kept = "149.11" if newline == "\r" else ""  # Macs before 2001: as slow as all were
    assert table.iloc[149, 12] == kept and table.iloc[149, 1] == "149.00"


def test_ids_far_back_in_a_wide_table_are_read(tmp_path):
    text, rows = wide(place=10)
    table = read_sample(put(tmp_path, text))[0]
    assert table.columns[0] == "id" and table["id"].tolist() == [row[10] for row in rows[1:]]


def test_a_wide_table_is_checked_to_its_end(tmp_path):
    text, rows = wide()
    refused("line 152, saw 14", read_sample, put(tmp_path, f"{text}999{',0' * 13}\n"))
    refused("has id '249' 2 times", read_sample, put(tmp_path, text + ",".join(rows[-1])))
    again = text + text.partition("\n")[0] + "\n" + ",".join(["999", *rows[-1][1:]])
    table = read_sample(put(tmp_path, again))[0]
    assert table["id"].tolist() == [*(row[0] for row in rows[1:]), "999"]
    quoted = text + ",".join(['"9,9"', *rows[-1][1:]])
    assert read_sample(put(tmp_path, quoted))[0]["id"].iloc[-1] == "9,9"
