import os
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.index import COLUMNS, find_root, read_sample_submission, read_test, read_train
from src.script import UserError
from tests.data.layout import lay, rows

NFD = unicodedata.normalize("NFD", "가방")
NFC = "가방"


def test_class_folders(tmp_path):
    lay(tmp_path, "train/b/2.JPG", "train/a/deep/er/1.jpeg", "train/a/0.webp", "train/b/x.txt")
    index = read_train(tmp_path)
    assert tuple(index.table.columns) == COLUMNS and index.classes == ("a", "b")
    assert rows(index, "id", "image", "target", "group", "split") == [
        ("train/a/0.webp", "train/a/0.webp", "a", "", "train"),
        ("train/a/deep/er/1.jpeg", "train/a/deep/er/1.jpeg", "a", "", "train"),
        ("train/b/2.JPG", "train/b/2.JPG", "b", "", "train"),
    ]
    assert index.notes == ()


@pytest.mark.parametrize(
    "ending", ["jpg", "JPG", "jpeg", "JPEG", "png", "webp", "bmp", "tif", "Tiff"]
)
def test_extensions_in_any_case(tmp_path, ending):
    lay(tmp_path, f"train/a/1.{ending}", "train/b/1.jpg")
    assert len(read_train(tmp_path)) == 2


def test_litter_is_left_out(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/a/._1.jpg", "train/.git/1.jpg")
    lay(tmp_path, "train/__MACOSX/a/1.jpg", "train/a/.ipynb_checkpoints/1.jpg")
    assert len(read_train(tmp_path)) == 2


def test_empty_class_folder_and_loose_images_are_said(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/loose.jpg")
    (tmp_path / "train/empty").mkdir()
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and len(index) == 2
    assert any("train/empty has no images" in note for note in index.notes)
    assert any("1 images directly in train/" in note for note in index.notes)


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    lay(tmp_path, "train/a/odd.jpg/1.jpg", "train/b/1.jpg")
    assert rows(read_train(tmp_path), "image")[0] == ("train/a/odd.jpg/1.jpg",)


def test_symlink_loops_end_and_links_are_followed_once(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "elsewhere/c/1.jpg")
    (tmp_path / "train/a/loop").symlink_to(tmp_path / "train/a")
    (tmp_path / "train/a/up").symlink_to(tmp_path / "train")
    (tmp_path / "train/a/other").symlink_to(tmp_path / "train/b")
    (tmp_path / "train/a/top").symlink_to(tmp_path)
    (tmp_path / "train/a/self").symlink_to(tmp_path / "train/a/self")
    (tmp_path / "train/c").symlink_to(tmp_path / "elsewhere/c")
    (tmp_path / "train/0").symlink_to(tmp_path / "train/a")
    index = read_train(tmp_path)
    assert rows(index, "image", "target") == [
        ("train/a/1.jpg", "a"),
        ("train/b/1.jpg", "b"),
        ("train/c/1.jpg", "c"),
    ]
    assert any("train/a/loop links to" in note for note in index.notes)
    assert any("broken link" in note for note in index.notes)


def test_unicode_twins_are_merged(tmp_path):
    lay(tmp_path, f"train/{NFC}/1.jpg", f"train/{NFD}/1.jpg", f"train/{NFD}/2.jpg", "train/b/1.jpg")
    index = read_train(tmp_path)
    assert index.classes == ("b", NFC)
    assert index.table["target"].tolist().count(NFC) == 3
    assert index.table["id"].is_unique and f"train/{NFC}/2.jpg" in set(index.table["id"])
    assert all((tmp_path / image).is_file() for image in index.table["image"])
    assert any("merged" in note for note in index.notes)


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    os.close(os.open(os.fsencode(tmp_path / "train/a") + b"/\xb0\xa1.jpg", os.O_CREAT))
    with pytest.raises(UserError, match="not a name in UTF-8: rename it"):
        read_train(tmp_path)


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match=r"no train/ and no train\.csv"):
        read_train(tmp_path)
    lay(tmp_path, "train/flat.jpg")
    with pytest.raises(UserError, match="no images in class folders"):
        read_train(tmp_path)
    lay(tmp_path, "train/a/1.jpg")
    with pytest.raises(UserError, match="only one class, 'a'"):
        read_train(tmp_path)
    with pytest.raises(UserError, match=r"no train\.csv .* drop the column flags"):
        read_train(tmp_path, label_column="x")


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
    with pytest.raises(UserError, match=r"'7\.jpg' fits train/x/7\.jpg and train/y/7\.jpg"):
        read_train(tmp_path)


def test_columns_are_detected_by_content_and_overridden_by_name(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg")
    text = "n,where,label,also\n1,1.jpg,a,b\n2,2.jpg,b,a\n"
    assert rows(read_train(lay(tmp_path, train=text)), "target") == [("a",), ("b",)]
    index = read_train(tmp_path, label_column="also", group_column="n", image_column="where")
    assert rows(index, "target", "group") == [("b", "1"), ("a", "2")]
    with pytest.raises(UserError, match=r"no column 'wher' \(did you mean where\?\): --image"):
        read_train(tmp_path, image_column="wher")


def test_the_one_column_left_is_the_label(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg", train="id,mark\n1,a\n2,b\n")
    assert read_train(tmp_path).classes == ("a", "b")
    lay(tmp_path, train="id,mark,mood\n1,a,x\n2,b,y\n")
    with pytest.raises(UserError, match="name it with --label_column"):
        read_train(tmp_path)
    lay(tmp_path, train="weight,height\n1,2\n")
    with pytest.raises(UserError, match="name it with --image_column"):
        read_train(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n1,a\n1,b\n", "id '1' 2 times"),
        ("id,label\n1,a\n3,b\n", "names 1 images that are not in .* first '3'"),
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
        with pytest.raises(UserError, match=r"leaves the data folder .* --allow_outside"):
            read(root)
    if "C:" not in form and "\\" not in form:
        images = read_train(root, allow_outside=True).table["image"]
        assert (root / images[0]).read_bytes() == b"x" and images[1] == "train/1.jpg"


def test_an_absolute_path_inside_is_inside(tmp_path):
    root = lay(tmp_path, "train/1.jpg", "train/2.jpg")
    lay(root, train=f"image,label\n{root.resolve()}/train/1.jpg,a\n2.jpg,b\n")
    assert read_train(root).table["image"][0] == "train/1.jpg"


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
        ({"test": "id,image\n1,x.jpg\n2,gone.jpg\n"}, r"names 1 images .* first 'gone\.jpg'"),
        ({"test": "id,image\n1,x.jpg\n", "sample_submission": "id,a\n2,1\n"}, "1 ids only in"),
        ({"sample_submission": "id,a\ngone,1\n"}, "names 1 images"),
        ({"sample_submission": "id,a\nx,1\nx,1\n"}, "id 'x' 2 times"),
        ({"sample_submission": "id\nx\n"}, "one column"),
        ({"test": "id,image\n"}, "no rows"),
    ],
)
def test_bad_test_tables_are_refused(tmp_path, texts, message):
    lay(tmp_path, "test/x.jpg", "test/y.jpg", **texts)
    with pytest.raises(UserError, match=message):
        read_test(tmp_path)


def test_no_test_data(tmp_path):
    with pytest.raises(UserError, match=r"no test\.csv and no test/"):
        read_test(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no images in"):
        read_test(tmp_path)


def test_sample_submission_keeps_names_and_ids(tmp_path):
    assert read_sample_submission(tmp_path) is None
    lay(tmp_path, sample_submission=f"\ufeffID,{NFD},b\r\n007,0.1,0.9\r\n")
    table = read_sample_submission(tmp_path)
    assert table.columns.tolist() == ["ID", NFD, "b"] and table["ID"].tolist() == ["007"]


def test_root_is_the_folder_or_its_one_data_set(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        find_root(tmp_path / "input")
    with pytest.raises(UserError, match=r"looked there .* train/, train\.csv"):
        find_root(tmp_path)
    lay(tmp_path, "cars/Train/a/1.jpg", "weights/some.pth")
    assert find_root(tmp_path) == tmp_path / "cars"
    assert find_root(tmp_path / "cars") == tmp_path / "cars"
    lay(tmp_path, "digits/test/1.jpg")
    with pytest.raises(UserError, match=r"\(cars, digits\): pass --data_dir .*cars"):
        find_root(tmp_path)


def test_twenty_thousand_files_a_second(tmp_path):
    seed = tmp_path / "seed"
    seed.write_bytes(b"x")
    for number in range(20):
        (tmp_path / f"train/차종_{number}").mkdir(parents=True)
    for number in range(6000):
        os.link(seed, tmp_path / f"train/차종_{number % 20}/차종_{number}.jpg")
    read_train(tmp_path)  # the first call imports pandas
    start = time.process_time()
    assert len(read_train(tmp_path)) == 6000
    assert time.process_time() - start < 6000 / 20_000


CELL = st.text(st.sampled_from("ab0.,/\\\"'\n\r;가ᄀ ́ ~:"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(CELL, CELL), max_size=5), st.sampled_from(["id,label", "image,class", ""])
)
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


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_a_folder_of_validation_images_is_said_to_be_unused(tmp_path, name):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{name}/a/2.jpg", f"{name}/b/2.jpg")
    index = read_train(tmp_path)
    assert len(index) == 2 and len(index.notes) == 1
    assert f"{name} is not used" in index.notes[0] and "move images" in index.notes[0]


def test_class_folders_without_train_are_recognised_and_not_trusted(tmp_path):
    lay(tmp_path, "cat/1.jpg", "dog/1.jpg")
    remedy = rf"if the folders cat, dog are classes, move them into {tmp_path}/train, else unpack"
    with pytest.raises(UserError, match=rf"no data set in .*{remedy}"):
        find_root(tmp_path)
    lay(tmp_path, "test/1.jpg")
    with pytest.raises(UserError, match=rf"no train/ and no train\.csv in .*{remedy}"):
        read_train(find_root(tmp_path))


def test_a_file_is_no_data_folder(tmp_path):
    lay(tmp_path, train="id,label\n")
    with pytest.raises(UserError, match=rf"is a file: pass its folder, --data_dir {tmp_path}$"):
        find_root(tmp_path / "train.csv")
