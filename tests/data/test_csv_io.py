import csv
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.classes import nfc
from src.data.csv_io import escape_cell, read_csv, unescape_cell, write_csv
from src.script import UserError
from tests.data.layout import refused

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


def write(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_line_ends_and_separators(tmp_path, encoding, newline, separator):
    lines = ["번호, 이름 ".replace(",", separator), "001,NA".replace(",", separator), ""]
    table = read_csv(write(tmp_path / "a.csv", newline.join(lines), encoding))
    assert table.to_dict("list") == {"번호": ["001"], "이름": ["NA"]}


@pytest.mark.parametrize("quoted", ["x", '"x\r y"'])
def test_a_row_that_begins_with_a_space_after_a_return(tmp_path, quoted):
    text = f"id,b\r1,{quoted}\r 3,4\r,\r\r 5,6\r"  # pandas 2 repeats rows here
    rows = read_csv(write(tmp_path / "a.csv", text)).to_numpy().tolist()
    assert rows == [["1", quoted.strip('"')], [" 3", "4"], ["", ""], [" 5", "6"]]


def test_nothing_is_guessed_about_cells(tmp_path):
    cells = ["001", "NA", "null", "nan", "", "1e5", "True", " x ", "2020-01-01"]
    table = read_csv(write(tmp_path / "a.csv", "id,b\n" + "".join(f"{c},1\n" for c in cells)))
    assert table["id"].tolist() == cells


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,b\n1,2\n1,2,3\n", "line 3"),
        ('a,b\n1,"2\n', "EOF inside string"),
        ("a,b\n1,\0\n", "not text in UTF-8"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_csv(write(tmp_path / "a.csv", content))
    assert "a.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_and_binary_files_are_named(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xff\x80")
    for name in ("missing.csv", "b.csv"):
        refused(name, read_csv, tmp_path / name)
    refused("is a folder: if the table lies in it", read_csv, tmp_path)


@pytest.mark.parametrize(
    "attack", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "'"]
)
def test_formulas_are_disarmed_in_the_file_and_intact_after_reading(tmp_path, attack):
    write_csv(tmp_path / "a.csv", ["id", "n"], [[attack, -1]])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        raw = list(csv.reader(file))[1]
    assert raw == ["'" + attack, "-1"]
    assert read_csv(tmp_path / "a.csv", unescape=True)["id"].tolist() == [attack]


@given(TEXT)
def test_escape_is_undone_exactly(text):
    assert unescape_cell(escape_cell(text)) == text
    assert not escape_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [(f"{number}", *row) for number, row in enumerate(rows)]
    write_csv(path, ["n", "a", "b"], rows)
    assert list(read_csv(path, unescape=True).itertuples(index=False, name=None)) == rows


@given(st.binary(max_size=60) | st.text(string.printable + "가\0", max_size=60).map(str.encode))
def test_any_bytes_are_a_table_or_a_named_refusal(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("csv") / "fuzz.csv"
    path.write_bytes(content)
    try:
        table = read_csv(path)
    except UserError as error:
        assert "fuzz.csv" in str(error)
    else:
        assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())
        assert table.columns.is_unique


def test_nfc():
    assert nfc("가") == "가" and nfc("abc") == "abc"


KOREAN = [
    "번호,라벨\n1,개\n2,고양이\n",
    "id,label\n1,개\n2,소\n3,말\n",
    "id,label\n1,K5_3세대_하이브리드_2020_2022\n2,디_올뉴니로_2022_2025\n3,Q30_2017_2019\n",
    "id,label\n1,A클래스_W177\n2,더_뉴_그랜저_IG_2020\n3,아반떼N\n",
    "id,label\n1,A형\n2,AB형\n3,O형\n",
    "파일명,상태\n가방 (大).jpg,햏\n펲시.jpg,정상 · 양호\n똠방각하.jpg,불량\n",
]
WESTERN = [
    ("Größe,Größe\nöß,Öß\n", "cp1252"),
    ("id,Größe\n1,groß\n2,klein\n", "cp1252"),
    ("id,label\n1,Äpfel\n2,Ärger\n", "cp1252"),
    ("id,label\n1,Ölöl\n2,ÄÖÜ\n", "cp1252"),
    ("id,label\n1,Bäume\n2,Wald\n", "latin-1"),
    ("id,label\n1,25 °C\n2,5 µm\n", "cp1252"),
    ("id,label\n1,crème brûlée\n2,pâté\n", "cp1252"),
    ("id,label\n1,Škoda\n2,Žluťoučký kůň\n", "cp1250"),
    ("id,label\n1,Škoda\n2,Žena\n", "cp1250"),
    ("id,label\n1,ČÁST\n2,KŘÍŽ\n", "cp1250"),
    ("id,label\n1,ČÁST\n2,ČÁSTKA\n", "cp1250"),
    ("id,label\n1,příliš\n2,úpěl ďábelské ódy\n", "cp1250"),
    ("id,label\n1,кошка\n2,собака\n", "cp1251"),
    ("id,label\n1,犬\n2,猫\n", "shift-jis"),
    ("id,label\n1,苹果\n2,香蕉和橙子\n", "gbk"),
]


@pytest.mark.parametrize("text", KOREAN)
def test_korean_spreadsheets_are_read(tmp_path, text):
    read = read_csv(write(tmp_path / "a.csv", text, "cp949")).to_csv(index=False)
    assert read == text


@pytest.mark.parametrize(("text", "encoding"), WESTERN)
def test_other_encodings_are_refused_instead_of_read_as_korean(tmp_path, text, encoding):
    refused(
        r"a\.csv is not text in UTF-8: save it as CSV in UTF-8",
        read_csv,
        write(tmp_path / "a.csv", text, encoding),
    )


def test_lines_of_names_of_files_put_together_are_no_rows(tmp_path):
    path = write(tmp_path / "a.csv", "id,b\n1,2\nid,b\nid,3\n")
    assert read_csv(path).to_numpy().tolist() == [["1", "2"], ["id", "3"]]
