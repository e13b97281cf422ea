"""Refusals and notes of the layouts of past contests: each says what helps."""

import pytest

from src.config import FoldConfig
from src.data.index import find_root, read_test, read_train
from src.data.sample import read_sample
from src.pipelines.classification.prepare import check_test, read_index
from tests.data.layout import NAMES, lay, refused, rows, table


def test_measurements_of_an_image_in_several_lines_are_measurements(tmp_path):
    values = [str(place + 0.5) for place in range(12)]
    lay(tmp_path, *NAMES, train=table(NAMES[:6] * 2, values, head="image,target"))
    refused("that is a measurement", read_train, tmp_path)


def test_columns_beside_a_label_in_the_sample_are_named(tmp_path):
    lay(tmp_path, sample_submission="img,w,h,label\n7.jpg,3,4,cat\n")
    refused("if it is the label, remove w, h there, and add that", read_sample, tmp_path)


def test_tables_of_pixels_are_said_alone(tmp_path):
    lay(tmp_path, *(f"digits/{digit}/{place}.jpg" for digit in "01" for place in (1, 2)))
    head = ",".join(["y", *(f"pixel{place}" for place in range(784))])
    lay(tmp_path, train=table(*["01"] * 785, head=head))
    refused(r"table of the files and labels$", read_train, tmp_path)


def test_lines_without_a_label_may_be_the_test(tmp_path):
    lay(tmp_path, *NAMES, train=table(NAMES, [*"abcabcab", *[""] * 4]))
    refused(f"to predict them, move them to {tmp_path / 'test.csv'}", read_train, tmp_path)


def test_packed_test_images_are_named_for_the_test(tmp_path):
    lay(tmp_path, "train-image.hdf5", "test-image.hdf5", "train/a/1.jpg", test="n,age\n7,4\n")
    refused(r"if the images are in test-image.hdf5", read_test, tmp_path)


def test_tables_of_the_test_are_not_named_as_labels(tmp_path):
    lay(tmp_path, *(f"rois/{name}" for name in NAMES), "test/rois/a.jpg")
    (tmp_path / "test/annotations.csv").write_text("id,path\n0,rois/a.jpg\n")
    (tmp_path / "annotations.csv").write_text("path,label\nrois/1.jpg,a\n")
    refused(r"if annotations.csv has the labels", read_train, tmp_path)


def test_validation_images_without_class_folders(tmp_path):
    lay(tmp_path, "train/a/images/1.jpg", "train/b/images/2.jpg", "val/images/3.jpg")
    note = "val/ is not used: it has no images in class folders (val/<class>/)"
    assert note in read_train(tmp_path).notes


def test_test_tables_of_other_names_are_named(tmp_path):
    place = tmp_path / "train_SOaYf6m"
    lay(place, *(f"images/{name}" for name in NAMES), train=table(NAMES[:9], "abc" * 3))
    lay(tmp_path, test_vc2kHdQ="image\n10.jpg\n", sample_submission_yx="image,label\n10.jpg,a\n")
    config = FoldConfig(data_dir=str(tmp_path))
    said = check_test(config, read_index(config), describe=True)[-1]
    assert f"{tmp_path / 'test_vc2kHdQ.csv'} to {place / 'test.csv'}" in said
    (tmp_path / "test_vc2kHdQ.csv").rename(place / "test.csv")
    (tmp_path / "sample_submission_yx.csv").rename(place / "sample_submission.csv")
    assert rows(read_test(place), "image") == [("images/10.jpg",)]


@pytest.mark.parametrize("folder", ["images", "images/train"])
def test_tables_apart_from_the_images(tmp_path, folder):
    lay(tmp_path, *(f"{folder}/{name}" for name in NAMES), "csv/readme.md")
    lay(tmp_path / "csv", train=table(NAMES, "abc" * 4))
    refused(f"tables lie in .*csv and .* move the tables to {tmp_path}", find_root, tmp_path)
    (tmp_path / "csv/train.csv").rename(tmp_path / "train.csv")
    assert len(read_train(find_root(tmp_path))) == 12


@pytest.mark.parametrize(
    ("ending", "cell"), [(".nii.gz", "s"), (".svs", "s"), (".mp4", "s.mp4"), (".npy", "s")]
)
def test_files_that_are_not_read_are_named(tmp_path, ending, cell):
    lay(tmp_path, f"train/s{ending}", train=f"id,label\n{cell},a\n")
    refused(f"train/s{ending} is there, which is not read .*s.png", read_train, tmp_path)


def test_parts_of_archives_and_lists_are_named(tmp_path):
    lay(tmp_path, "train.zip.001", trainLabels="image,level\n1_left,0\n")
    refused(r"unpack train.zip.001", read_train, tmp_path)
    lay(tmp_path / "b", "train/1.jpg")
    (tmp_path / "b/train_labels.txt").write_text("1.jpg 0\n")
    refused(r"write train_labels.txt as train.csv", read_train, tmp_path / "b")


def test_a_table_of_images_beside_one_of_labels_is_named(tmp_path):
    lay(tmp_path, *NAMES, train_labels="seq_id,lion\ns1,0\ns2,1\n")
    lay(tmp_path, train_metadata="id,file,seq_id\n0,0.jpg,s1\n1,1.jpg,s2\n")
    refused(r"if it is in train_metadata.csv, join that to train_labels", read_train, tmp_path)


def test_a_table_without_labels_beside_class_folders(tmp_path):
    lay(
        tmp_path,
        "train/a/1.jpg",
        "train/b/2.jpg",
        train="file,width,height\n1.jpg,640,9\n2.jpg,7,9\n",
    )
    refused(r"folders in train/ are the classes, move train.csv away", read_train, tmp_path)
    (tmp_path / "train.csv").unlink()
    assert read_train(tmp_path).classes == ("a", "b")


def test_the_folder_of_test_images_is_no_class(tmp_path):
    lay(tmp_path, "Cover/1.jpg", "UERD/1.jpg", "Test/1.jpg")
    refused("folders Cover, UERD are classes", read_train, tmp_path)
