"""test.csv, sample_submission.csv and the folder of test images."""

import unicodedata

import pytest

from src.data.index import read_test
from src.data.sample import read_sample
from tests.data.layout import lay, refused, rows

NFD = unicodedata.normalize("NFD", "가방")


def test_test_csv_in_the_order_of_the_sample(tmp_path):
    lay(tmp_path, "test/x.jpg", "test/y.jpg", test="ID,img_path\n002,./test/y.jpg\nNA,test/x.jpg\n")
    index = read_test(tmp_path)
    assert rows(index, "id", "image", "target", "split") == [
        ("002", "test/y.jpg", "", "test"),
        ("NA", "test/x.jpg", "", "test"),
    ]
    lay(tmp_path, sample_submission="\ufeffID,a,b\r\nNA,0.5,0.5\r\n002,0.5,0.5\r\n")
    assert rows(read_test(tmp_path), "id") == [("NA",), ("002",)]


def test_test_csv_needs_no_id_name_that_the_sample_gives(tmp_path):
    lay(tmp_path, "test/x.jpg", test="img_path,key\nx.jpg,k\n", sample_submission="key,a\nk,1\n")
    assert rows(read_test(tmp_path), "id", "image") == [("k", "test/x.jpg")]


def test_sample_without_test_csv_finds_images_by_id(tmp_path):
    lay(tmp_path, "test/b.jpg", "test/a.jpg", "test/unused.jpg", "train/x/a.jpg")
    lay(tmp_path, sample_submission="id,p\nb,1\na.jpg,1\n")
    assert rows(read_test(tmp_path), "id", "image") == [
        ("b", "test/b.jpg"),
        ("a.jpg", "test/a.jpg"),
    ]


def test_bare_test_folder(tmp_path):
    lay(tmp_path, "test/b.jpg", "test/in/a.jpg")
    assert rows(read_test(tmp_path), "id") == [("b",), ("a",)]
    lay(tmp_path, "test/b.png")
    assert rows(read_test(tmp_path), "id") == [("b.jpg",), ("b.png",), ("a.jpg",)]
    lay(tmp_path, "test/in/b.png")
    assert rows(read_test(tmp_path), "id")[-1] == ("test/in/b.png",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"test": "id,image\n1,x.jpg\n1,y.jpg\n"}, "id '1' 2 times"),
        ({"test": "id,image\n1,x.jpg\n2,gone.jpg\n"}, r"names 1 image .* first 'gone\.jpg'"),
        ({"test": "id,image\n1,x.jpg\n", "sample_submission": "id,a\n2,1\n"}, "1 id only in"),
        ({"sample_submission": "id,a\ngone,1\n"}, "names 1 image"),
        ({"sample_submission": "id,a\nx,1\nx,1\n"}, "id 'x' 2 times"),
        ({"sample_submission": "id\nx\n"}, "one column"),
        ({"test": "id,image\n"}, "no rows"),
    ],
)
def test_bad_test_tables_are_refused(tmp_path, texts, message):
    lay(tmp_path, "test/x.jpg", "test/y.jpg", **texts)
    refused(message, read_test, tmp_path)


def test_no_test_data(tmp_path):
    refused(r"no test\.csv and no test/", read_test, tmp_path)
    (tmp_path / "test").mkdir()
    refused("no images in", read_test, tmp_path)


def test_sample_submission_keeps_names_and_ids(tmp_path):
    assert read_sample(tmp_path)[0] is None
    lay(tmp_path, sample_submission=f"\ufeffID,{NFD},b\r\n007,0.1,0.9\r\n")
    table = read_sample(tmp_path)[0]
    assert table.columns.tolist() == ["ID", NFD, "b"] and table["ID"].tolist() == ["007"]
