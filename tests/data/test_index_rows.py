"""train.csv and tables of labels under other names; what no table may do."""

import ntpath
import os
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.data.index import find_root, read_test, read_train
from src.script import UserError
from tests.data.layout import lay, refused, rows

NFD = unicodedata.normalize("NFD", "가방")
NFC = "가방"


def test_train_csv_with_group_bom_crlf_and_korean_header(tmp_path):
    lay(tmp_path, "train/001.jpg", "train/NA.png", f"train/{NFD}.jpg")
    text = f"\ufeff아이디,이미지경로,라벨,그룹\r\n001,train/001.jpg,{NFD},g1\r\n"
    text += f"NA,./train/NA.png,b,\r\n7,train\\{NFC}.jpg,b,g1\r\n"
    index = read_train(lay(tmp_path, train=text))
    assert rows(index, "id", "image", "target", "group") == [
        ("001", "train/001.jpg", NFC, "g1"),
        ("NA", "train/NA.png", "b", ""),
        ("7", f"train/{NFD}.jpg", "b", "g1"),
    ]
    assert index.classes == ("b", NFC)


@pytest.mark.parametrize("cell", ["7.jpg", "images/7.jpg", "train/images/7.jpg", "7", "images/7"])
def test_train_csv_finds_images_by_part_of_their_path(tmp_path, cell):
    lay(tmp_path, "train/images/7.jpg", "train/images/8.jpg", "test/7.jpg")
    other = cell.replace("7", "8")
    index = read_train(lay(tmp_path, train=f"image,label\n{cell},a\n{other},b\n"))
    assert rows(index, "image") == [("train/images/7.jpg",), ("train/images/8.jpg",)]
    assert index.table["id"].tolist() == index.table["image"].tolist()


def test_an_ambiguous_path_is_refused(tmp_path):
    lay(tmp_path, "train/x/7.jpg", "train/y/7.jpg", train="image,label\n7.jpg,a\n7.jpg,b\n")
    refused(r"'7\.jpg' fits train/x/7\.jpg and train/y/7\.jpg", read_train, tmp_path)


def test_columns_are_detected_by_content_and_overridden_by_name(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg")
    text = "n,where,label,also\n1,1.jpg,a,b\n2,2.jpg,b,a\n"
    assert rows(read_train(lay(tmp_path, train=text)), "target") == [("a",), ("b",)]
    index = read_train(tmp_path, label_column="also", group_column="n", image_column="where")
    assert rows(index, "target", "group") == [("b", "1"), ("a", "2")]
    refused(
        r"no column 'wher' \(did you mean where\?\): --image",
        read_train,
        tmp_path,
        image_column="wher",
    )


def test_the_one_column_left_is_the_label(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg", train="id,mark\n1,a\n2,b\n")
    assert read_train(tmp_path).classes == ("a", "b")
    lay(tmp_path, train="id,mark,mood\n1,a,x\n2,b,y\n")
    refused("name it with --label_column", read_train, tmp_path)
    lay(tmp_path, train="weight,height\n1,2\n")
    refused("name it with --image_column", read_train, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,label\n1,a\n1,b\n",
            "lines of train/1.jpg with different labels .a, b.: ids must be uni",
        ),
        ("id,label\n1,a\n3,b\n", "names 1 image not in .* first '3'"),
        ("id,label\n1,a\n2,\n", "no label in column label for 2"),
        ("id,label\n1,a\n2\n", "no label in column label for 2"),
        ("id,label\n", "no rows"),
        ("id,label\n1,a\n2,b,c\n", "not a well-formed CSV"),
    ],
)
def test_bad_train_csv_is_refused_by_name(tmp_path, text, message):
    lay(tmp_path, "train/1.jpg", "train/2.jpg", train=text)
    with pytest.raises(UserError, match=message) as caught:
        read_train(tmp_path)
    assert "train.csv" in str(caught.value)


@pytest.mark.parametrize("form", ["../{}", "{}", "train/../../{}", "..\\{}", "C:\\x\\{}"])
def test_a_path_cannot_leave_the_data_folder(tmp_path, form):
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"x")
    root = lay(tmp_path / "data", "train/1.jpg")
    cell = form.format(outside if form == "{}" else "secret.jpg")
    lay(root, train=f"image,label\n{cell},a\ntrain/1.jpg,b\n", test=f"id,image\n1,{cell}\n")
    for read in (read_train, read_test):
        refused(r"leaves the data folder .* --allow_outside", read, root)
    if "C:" not in form and "\\" not in form:
        images = read_train(root, allow_outside=True).table["image"]
        assert (root / images[0]).read_bytes() == b"x" and images[1] == "train/1.jpg"


def test_an_absolute_path_inside_is_inside(tmp_path):
    root = lay(tmp_path, "train/1.jpg", "train/2.jpg")
    lay(root, train=f"image,label\n{root.resolve()}/train/1.jpg,a\n2.jpg,b\n")
    assert read_train(root).table["image"][0] == "train/1.jpg"


def test_a_drive_is_one_in_either_case(tmp_path, monkeypatch):
    """c:\\data of an editor's terminal is C:\\data; two folders play the one here."""
    monkeypatch.setattr(os.path, "normcase", ntpath.normcase)
    root = lay(tmp_path / "data", "train/1.jpg", "train/2.jpg")
    said = lay(tmp_path / "DATA", "train/1.jpg").resolve() / "train" / "1.jpg"
    lay(root, train=f"image,label\n{said},a\n2.jpg,b\n")
    assert read_train(root).table["image"][0] == "train/1.jpg"


@pytest.mark.parametrize("allowed", [False, True])
def test_an_absolute_path_through_a_link_to_the_data_is_inside(tmp_path, allowed):
    """As below macOS's /tmp, or a linked input/; the folder's name may be in NFD there."""
    (tmp_path / "link").symlink_to(lay(tmp_path / NFD, "train/1.jpg", "train/2.jpg"))
    for root in (tmp_path / "link", tmp_path / NFD):
        lay(root, train=f"image,label\n{root}/train/1.jpg,a\n2.jpg,b\n")
        index = read_train(root, allow_outside=allowed)
        assert index.table["image"][0] == "train/1.jpg"


CELL = st.text(st.sampled_from("ab0.,/\\\"'\n\r;가ᄀ ́ ~:"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(CELL, CELL), max_size=5), st.sampled_from(["id,label", "image,class", ""])
)
@example([("", '"\\0'), ("", '"\r0'), ("", '"\\'), ("", '"')], "id,label")
def test_any_csv_is_an_index_inside_the_folder_or_a_refusal(tmp_path_factory, cells, header):
    root = tmp_path_factory.mktemp("fuzz")
    lay(root, "train/a.jpg", "train/b/0.jpg", "test/ab.png")
    text = "\n".join([header, *(",".join(row) for row in cells)])
    for name, read in (("train", read_train), ("test", read_test)):
        lay(root, **{name: text})
        try:
            index = read(root)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert index.table["id"].is_unique
        for image in index.table["image"]:
            assert (root / image).resolve().is_relative_to(root.resolve())
            assert (root / image).is_file()


def test_an_id_that_is_the_label_or_repeats_is_no_id(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg", "train/3.jpg",
        train="Image,Id\n1.jpg,w1\n2.jpg,w1\n3.jpg,w2\n")  # fmt: skip
    index = read_train(tmp_path, label_column="Id")
    assert index.table["id"].tolist() == ["train/1.jpg", "train/2.jpg", "train/3.jpg"]
    assert index.classes == ("w1", "w2")


def test_an_id_of_products_gives_way_to_the_paths(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg", "train/3.jpg",
        train="id,image,label\n7,1.jpg,a\n7,2.jpg,b\n8,3.jpg,b\n")  # fmt: skip
    index = read_train(tmp_path)
    assert len(set(index.table["id"])) == 3
    assert any("repeats" in note for note in index.notes)


@pytest.mark.parametrize("name", ["train_labels", "labels", "Train_Labels"])
@pytest.mark.parametrize("folder", ["train", "train/images", "images"])
def test_a_table_of_labels_under_another_name(tmp_path, name, folder):
    lay(tmp_path, f"{folder}/1.tif", f"{folder}/2.tif", **{name: "id,label\n1,a\n2,b\n"})
    assert find_root(tmp_path.parent / tmp_path.name) == tmp_path
    index = read_train(tmp_path)
    assert rows(index, "image", "target") == [(f"{folder}/1.tif", "a"), (f"{folder}/2.tif", "b")]
    assert index.notes[0].startswith(f"{name}.csv: image = id, label = label")


def test_class_folders_win_over_a_table_that_is_not_train_csv(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", labels="id,name\n0,a\n1,b\n")
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and len(index.notes) == 1
    assert "labels.csv is not used" in index.notes[0]
