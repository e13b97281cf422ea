"""Tables and ids as other programs leave them: read, or refused by their true cause."""

import pytest

from src.data.index import find_root, read_test, read_train
from src.data.sample import read_sample
from tests.data.layout import lay, pairs, put, refused, rows

# Tables


FOUR = ("train/1.jpg", "train/2.jpg", "train/3.jpg", "train/4.jpg")
TABLE = "image,label\n1.jpg,a\n2.jpg,b\n3.jpg,a\n4.jpg,b\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "sep=,\r\n" + text.replace("\n", "\r\n"),
        lambda text: '"sep=;"\n' + text.replace(",", ";"),
        lambda text: text + ",\n,\n",
        lambda text: text.replace("\n", "\n,\n"),
        lambda text: ",\n" + text,
        lambda text: text + '"",""\n',
        lambda text: text.replace("\n", ",\n"),
        lambda text: text.replace("\n", ",,,\n"),
        lambda text: text.replace("\n", ",,,\n").replace(",,,\n", "\n", 1),
        lambda text: "".join(f"{n - 1 if n else ''},{line}" for n, line in _numbered(text)),
        lambda text: text.replace("image,", "Unnamed: 0.1,Unnamed: 0,image,")
        .replace("\n1.", "\n0,0,1.").replace("\n2.", "\n1,1,2.")
        .replace("\n3.", "\n2,2,3.").replace("\n4.", "\n3,3,4."),
        lambda text: text.replace(",", "|"),
        lambda text: text.replace(",", "\t"),
    ],
)  # fmt: skip
def test_what_spreadsheets_and_data_frames_leave_in_a_table(tmp_path, change):
    put(tmp_path, *FOUR)
    (tmp_path / "train.csv").write_bytes(change(TABLE).encode())
    index = read_train(tmp_path)
    assert rows(index, "image", "target") == list(zip(FOUR, "abab", strict=True))


def _numbered(text):
    """Number the lines as a data frame does: the header has an empty name."""
    return enumerate(text.splitlines(keepends=True))


def test_a_column_without_a_name_may_hold_the_ids(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train=",label\n1,a\n2,b\n3,a\n4,b\n")
    assert rows(read_train(tmp_path), "id", "image")[0] == ("1", "train/1.jpg")


def test_tables_separated_by_tabs_may_say_so_in_their_names(tmp_path):
    put(tmp_path, *FOUR, "test/9.jpg")
    (tmp_path / "train.tsv").write_text(TABLE.replace(",", "\t"))
    (tmp_path / "test.tsv").write_text("id\timage\nx\t9.jpg\n")
    (tmp_path / "sample_submission.tsv").write_text("id\ta\tb\nx\t0\t0\n")
    assert len(read_train(find_root(tmp_path))) == 4
    assert rows(read_test(tmp_path), "id", "image") == [("x", "test/9.jpg")]


@pytest.mark.parametrize("first", ["1.jpg,a\n", "1,a\n", "train/1,a\n"])
def test_a_table_without_names_of_columns_is_refused_and_read_once_it_has_them(tmp_path, first):
    put(tmp_path, *FOUR)
    text = TABLE.partition("\n")[2].replace("1.jpg,a\n", first)
    lay(tmp_path, train=text)
    refused(r"no line of column names.*such as 'image,label'", read_train, tmp_path)
    lay(tmp_path, train="image,label\n" + text)
    assert len(read_train(tmp_path)) == 4


def test_names_are_proposed_in_the_order_of_the_columns(tmp_path):
    put(tmp_path, *FOUR)
    text = "a,1.jpg\nb,2.jpg\na,3.jpg\nb,4.jpg\n"
    lay(tmp_path, train=text)
    refused("such as 'label,image'", read_train, tmp_path)
    lay(tmp_path, train="label,image\n" + text)
    assert rows(read_train(tmp_path), "image", "target") == list(zip(FOUR, "abab", strict=True))


def test_a_list_of_test_images_and_a_sample_need_names_of_columns_too(tmp_path):
    put(tmp_path, "test/t0.jpg", "test/t1.jpg")
    lay(tmp_path, test="t0.jpg\nt1.jpg\n")
    refused(r"no line of column names.*such as 'image'", read_test, tmp_path)
    lay(tmp_path, test="image\nt0.jpg\nt1.jpg\n", sample_submission="t0,0.5,0.5\nt1,0.5,0.5\n")
    refused(
        r"no line of column names.*: id, then the class of each of the 2",
        read_sample,
        tmp_path,
    )
    lay(tmp_path, sample_submission="id,a,b\nt0,0.5,0.5\nt1,0.5,0.5\n")
    assert rows(read_test(tmp_path), "id") == [("t0",), ("t1",)]


@pytest.mark.parametrize("first", ["9000", "TEST_01", "00a7f3"])
def test_a_table_of_ids_and_words_without_names_is_refused(tmp_path, first):
    ids = [first, first.replace("0", "1")]
    put(tmp_path, *(f"test/{key}.jpg" for key in ids))
    lines = "".join(f"{key},cat\n" for key in ids)
    lay(tmp_path, sample_submission=lines)
    assert any("no line of column names: nor" in note for note in read_test(tmp_path).notes)
    assert rows(read_test(tmp_path), "id") == [(key,) for key in ids]


def test_ids_of_the_sample_are_known_in_test_csv_whatever_their_column(tmp_path):
    put(tmp_path, "test/a.jpg", "test/b.jpg")
    lay(
        tmp_path,
        test=",filename\n0,b.jpg\n1,a.jpg\n",
        sample_submission="index,x,y\n1,0,0\n0,0,0\n",
    )
    assert rows(read_test(tmp_path), "id", "image") == [("1", "test/a.jpg"), ("0", "test/b.jpg")]


@pytest.mark.parametrize("header", ["id,0.0,1.0", "id,0,1,2", "image_id,1.5,2.5"])
def test_classes_may_be_numbers(tmp_path, header):
    lay(tmp_path, sample_submission=f"{header}\n" + "x" + ",0" * header.count(",") + "\n")
    assert list(read_sample(tmp_path)[0].columns) == header.split(",")


def test_labels_that_say_nothing_are_said(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train=TABLE.replace("2.jpg,b", "2.jpg,nan").replace("3.jpg,a", "3.jpg,None"))
    index = read_train(tmp_path)
    assert index.classes == ("None", "a", "b", "nan")
    assert any("2 labels are 'None', 'nan', trained as a class" in note for note in index.notes)


def test_minus_one_among_other_numbers_may_be_a_missing_label(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train="image,label\n1.jpg,0\n2.jpg,1\n3.jpg,-1\n4.jpg,1\n")
    assert any("1 label is '-1', trained as a class" in n for n in read_train(tmp_path).notes)
    lay(tmp_path, train="image,label\n1.jpg,1\n2.jpg,1\n3.jpg,-1\n4.jpg,-1\n")
    assert not any("trained as a class" in note for note in read_train(tmp_path).notes)


def test_images_without_a_group_are_no_group(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train="image,label,group\n1.jpg,a,p\n2.jpg,b,NA\n3.jpg,a,nan\n4.jpg,b, \n")
    assert read_train(tmp_path).table["group"].tolist() == ["p", "", "", ""]


def test_images_of_one_split_are_never_taken_for_the_others(tmp_path):
    """An archive that was not unpacked, and ids that count from 1 in both."""
    put(tmp_path, *FOUR)
    lay(tmp_path, train=TABLE, sample_submission="id,a,b\n1,0,0\n2,0,0\n")
    for test in ("", "id\n1\n2\n"):
        lay(tmp_path, **({"test": test} if test else {}))
        refused(r"2 test images missing.* first train/1\.jpg", read_test, tmp_path)
    put(tmp_path, "train/5.jpg", "train/6.jpg")  # one folder for both
    lay(tmp_path, sample_submission="id,a,b\n5,0,0\n6,0,0\n", test="id\n5\n6\n")
    assert read_test(tmp_path).table["image"].tolist() == ["train/5.jpg", "train/6.jpg"]
    lay(tmp_path, sample_submission="id,a,b\n1,0,0\n", test="id,image\n1,train/1.jpg\n")
    assert read_test(tmp_path).table["image"].tolist() == ["train/1.jpg"]  # it says so
    (tmp_path / "train").rename(tmp_path / "test")
    refused(r"4 train images missing.* first test/1\.jpg", read_train, tmp_path)


def test_class_folders_hold_no_test_images(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    lay(tmp_path, sample_submission="id,a,b\n1,0,0\n2,0,0\n")
    refused("2 test images missing", read_test, tmp_path)


def test_folder_and_file_name_in_two_columns(tmp_path):
    put(tmp_path, "train/x/1.jpg", "train/y/1.jpg")
    lay(tmp_path, train="folder,filename,label\nx,1.jpg,a\ny,1.jpg,b\n")
    assert pairs(tmp_path) == [("train/x/1.jpg", "a"), ("train/y/1.jpg", "b")]


def test_absolute_paths_of_another_machine_are_found_by_their_ends(tmp_path):
    put(tmp_path, "train/1.jpg", "train/2.jpg")
    lay(tmp_path, train="path,label\n/kaggle/input/x/train/1.jpg,a\nC:\\data\\train\\2.jpg,b\n")
    assert pairs(tmp_path) == [("train/1.jpg", "a"), ("train/2.jpg", "b")]


def test_a_column_of_masks_is_not_the_image(tmp_path):
    put(tmp_path, "train/images/1.jpg", "train/images/2.jpg", "train/masks/1.png")
    lay(tmp_path, train="mask,picture,diagnosis\n1.png,1.jpg,a\n2.png,2.jpg,b\n")
    assert pairs(tmp_path) == [("train/images/1.jpg", "a"), ("train/images/2.jpg", "b")]


def test_other_images_of_a_row_are_said_to_be_unused(tmp_path):
    put(tmp_path, "train/1.jpg", "train/2.jpg", "train/3.jpg", "train/4.jpg")
    note = "train.csv: right names other images and is not used"
    lay(tmp_path, train="left,right,label\n1.jpg,2.jpg,a\n3.jpg,4.jpg,b\n")
    assert any(note in said for said in read_train(tmp_path).notes)
    lay(tmp_path, train="left,right,label\n1.jpg,train/1.jpg,a\n3.jpg,train/3.jpg,b\n")
    assert not any(note in said for said in read_train(tmp_path).notes)


# Ids


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [("im_1", "im_1.png"), ("im_1.jpg", "im_1"), ("test/im_1.jpg", "im_1"), ("IM_1", "im_1"),
     ("001", "1"), ("1 ", "1")],
)  # fmt: skip
def test_ids_of_test_and_sample_may_be_written_differently(tmp_path, mine, theirs):
    put(tmp_path, "test/x.jpg", "test/y.jpg")
    lay(tmp_path, test=f"id,image\n{mine},x.jpg\nother,y.jpg\n",
        sample_submission=f"id,a,b\nother,0,0\n{theirs},0,0\n")  # fmt: skip
    index = read_test(tmp_path)
    assert rows(index, "id", "image") == [("other", "test/y.jpg"), (theirs, "test/x.jpg")]
    assert any("the submission has the sample's" in note for note in index.notes)


@pytest.mark.parametrize("sample", ["1,0\n2,0\n", "1,0\n01,0\n"])
def test_ids_that_would_become_one_are_not_joined(tmp_path, sample):
    put(tmp_path, "test/x.jpg", "test/y.jpg")
    lay(tmp_path, test="id,image\n1.jpg,x.jpg\n1.png,y.jpg\n", sample_submission=f"id,a\n{sample}")
    refused("2 ids only in the sample, 2 only in", read_test, tmp_path)


def test_ids_that_differ_in_case_stay_apart(tmp_path):
    put(tmp_path, "test/x.jpg", "test/y.jpg")
    lay(tmp_path, test="id,image\na,x.jpg\nA,y.jpg\n",
        sample_submission="id,a\nA.png,0\na.png,0\n")  # fmt: skip
    index = read_test(tmp_path)
    assert rows(index, "id", "image") == [("A.png", "test/y.jpg"), ("a.png", "test/x.jpg")]


def test_a_sample_may_name_files_with_another_ending(tmp_path):
    put(tmp_path, "test/1.png", "test/2.png", kind="PNG")
    lay(tmp_path, sample_submission="id,a,b\n1.jpg,0,0\n2.jpg,0,0\n")
    index = read_test(tmp_path)
    assert rows(index, "id", "image") == [("1.jpg", "test/1.png"), ("2.jpg", "test/2.png")]
    assert any("'1.jpg' is taken for test/1.png" in note for note in index.notes)
    put(tmp_path, "test/1.jpg")
    refused(r"names 1 image .* first '2\.jpg'", read_test, tmp_path)


def test_altered_copies_of_one_picture_share_a_fold(tmp_path):
    names = [f"train/a/x_jpg.rf.{n:032x}.jpg" for n in range(3)] + ["train/b/y_jpg.rf." + "0" * 32]
    put(tmp_path, *names[:3], names[3] + ".jpg", "train/b/plain.jpg")
    index = read_train(tmp_path)
    assert index.table["group"].tolist() == ["train/a/x_jpg"] * 3 + ["", ""]
    assert any("1 picture with altered copies" in note for note in index.notes)


def test_raw_data_of_cameras_are_no_tiff(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    put(tmp_path, "train/a/2.NEF", kind="TIFF")
    assert any("1 file .nef" in note and "raw data" in note for note in read_train(tmp_path).notes)


def test_a_packed_folder_is_to_be_unpacked(tmp_path):
    (tmp_path / "train.zip").write_bytes(b"PK")
    refused(r"found \./ \(1 \.zip\); unpack train\.zip there, else", find_root, tmp_path)


def test_columns_that_count_rows_are_no_labels(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train="row,no,name,a,b\n0,1,1,1,0\n1,2,2,0,1\n2,3,3,1,0\n3,4,4,0,1\n")
    index = read_train(tmp_path, image_column="name")
    assert index.table["target"].tolist() == list("abab")


def test_a_table_of_validation_rows_is_said_to_be_unused(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train=TABLE, val="image,label\n5.jpg,a\n")
    assert any("val.csv is not used: add its lines" in n for n in read_train(tmp_path).notes)


def test_a_list_of_ids_needs_a_name_too(tmp_path):
    put(tmp_path, "test/t0.jpg", "test/t1.jpg")
    lay(tmp_path, test="t0\nt1\n")
    refused(r"its first line is 't0'; .* such as 'image'", read_test, tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training_Set", "test_set"), ("train_images", "test_images"), ("train", "test1"),
     ("seg_train/seg_train", "seg_test/seg_test"), ("asl_alphabet_train", "asl_alphabet_test"),
     ("TrainData", "TestData"), ("학습_이미지", "테스트_이미지")],
)  # fmt: skip
def test_folders_that_name_a_split_among_other_words(tmp_path, train, test):
    put(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{test}/7.jpg")
    root = find_root(tmp_path)
    assert root == tmp_path
    assert rows(read_train(root), "image") == [(f"{train}/a/1.jpg",), (f"{train}/b/1.jpg",)]
    assert rows(read_test(root), "image") == [(f"{test}/7.jpg",)]


@pytest.mark.parametrize("name", ["train_masks", "train_wheels", "training_camp", "test_train"])
def test_a_word_that_says_something_is_no_split(tmp_path, name):
    put(tmp_path, f"{name}/a/1.jpg", f"{name}/b/1.jpg", "other/a/1.jpg")
    refused("no data set in", find_root, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "# exported 2024\n" + TABLE,
        "# exported, 2024, by hand\n" + TABLE,
        "My labels\n" + TABLE,
        "My labels,\n\n" + TABLE,
        TABLE + "image,label\n",
    ],
)
def test_titles_above_the_names_and_names_in_between_are_passed_over(tmp_path, text):
    put(tmp_path, *FOUR)
    lay(tmp_path, train=text)
    assert rows(read_train(tmp_path), "image", "target") == list(zip(FOUR, "abab", strict=True))


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        (
            "csv/train.csv",
            TABLE,
            r"if csv/train\.csv has the labels, move it to .*train\.csv, else",
        ),
        ("marks_2024.csv", TABLE, r"if marks_2024\.csv has the labels, move it to"),
        (
            "train.txt",
            "1.jpg a\n",
            r"write train\.txt as train\.csv, with a first line image,label",
        ),
    ],
)
def test_a_table_of_another_name_is_offered(tmp_path, name, text, remedy):
    put(tmp_path, *FOUR)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    refused(remedy, read_train, find_root(tmp_path))
    lay(tmp_path, train=TABLE)
    assert len(read_train(find_root(tmp_path))) == 4


def test_columns_set_apart_by_blanks_are_refused_by_that(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train=TABLE.replace(",", " "))
    refused("not set apart by commas", read_train, tmp_path)


def test_numbers_with_a_comma_in_one_hot_columns(tmp_path):
    put(tmp_path, *FOUR)
    lay(tmp_path, train="image;a;b\n1.jpg;1,0;0,0\n2.jpg;0,0;1,0\n3.jpg;1,0;0,0\n4.jpg;0,0;1,0\n")
    assert read_train(tmp_path).table["target"].tolist() == list("abab")
