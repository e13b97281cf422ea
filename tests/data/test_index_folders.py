"""Files and folders as other programs leave them: read, or refused by their true cause."""

import os

import pytest

from src.data.index import find_root, read_test, read_train
from tests.data.layout import pairs, put, refused, rows

# Files that a scan meets


@pytest.mark.parametrize(
    ("name", "kind"),
    [("w.jfif", "JPEG"), ("w.jpe", "JPEG"), ("w", "JPEG"), ("w.JPG_large", "JPEG"),
     ("w.ppm", "PPM"), ("w.pgm", "PPM"), ("w.jp2", "JPEG2000"), ("w.dat", "PNG")],
)  # fmt: skip
def test_an_image_is_known_by_its_content(tmp_path, name, kind):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    put(tmp_path, f"train/b/{name}", f"test/{name}", kind=kind)
    assert (f"train/b/{name}", "b") in pairs(tmp_path)
    assert rows(read_test(tmp_path), "image") == [(f"test/{name}",)]


def test_files_that_are_no_images_are_counted_by_ending(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    for name in ("a/1.txt", "b/1.TXT", "b/1.json", "b/clip.mp4", "b/2.mp4", "b/3.jpg.part"):
        (tmp_path / "train" / name).write_bytes(b"no image")
    (tmp_path / "train/a/Thumbs.db").write_bytes(b"x")
    index = read_train(tmp_path)
    assert len(index) == 2
    assert index.notes == (
        "2 files .mp4 left out, first train/b/2.mp4: not a format that is read here: convert "
        "them to PNG, or remove them",
        "1 file .part left out, first train/b/3.jpg.part: cut short, it seems: finish the download",
        "left out as no images: 1 file .json, 2 files .txt",
    )


def test_a_test_folder_with_files_that_may_be_images_is_refused_until_they_are_mended(tmp_path):
    put(tmp_path, "test/1.jpg", "test/3.jpg")
    (tmp_path / "test/readme.txt").write_bytes(b"x")
    (tmp_path / "test/2.bin").write_bytes(b"raw sensor")
    refused(r"1 file \.bin .* convert them to PNG, or remove them", read_test, tmp_path)
    (tmp_path / "test/2.bin").unlink()
    put(tmp_path, "test/2.png", kind="PNG")
    index = read_test(tmp_path)
    assert rows(index, "id") == [("1",), ("2",), ("3",)]
    assert index.notes == ("left out as no images: 1 file .txt",)


def test_a_pipe_is_not_waited_for(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    os.mkfifo(tmp_path / "train/a/pipe")
    assert any("no file: remove" in note for note in read_train(tmp_path).notes)


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "lost+found", "__MACOSX", "$RECYCLE.BIN", ".ipynb_checkpoints",
     "@Recycle", "@__thumb", "Thumbnails", "System Volume Information", "__pycache__"],
)  # fmt: skip
def test_folders_of_systems_are_no_classes_and_hold_no_images(tmp_path, name):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg")
    for place in ("train", "train/a", "test"):
        put(tmp_path, f"{place}/{name}/1.jpg/SYNOPHOTO_THUMB_M.jpg", f"{place}/{name}/x.jpg")
    index = read_train(tmp_path)
    assert pairs(tmp_path) == [("train/a/1.jpg", "a"), ("train/b/1.jpg", "b")]
    assert rows(read_test(tmp_path), "image") == [("test/1.jpg",)]
    assert name[0] == "." or any(f"system are left out: {name}" in note for note in index.notes)


def test_what_is_sorted_into_recycle_is_a_class_of_waste(tmp_path):
    put(tmp_path, "train/compost/1.jpg", "train/recycle/1.jpg", "train/RECYCLER/1.jpg")
    assert read_train(tmp_path).classes == ("compost", "recycle")


# Where folders lie


def test_validation_folders_of_the_same_classes_join_the_training_images(tmp_path):
    put(tmp_path, *(f"{split}/{name}/{split}.jpg" for split in ("train", "valid", "test")
                    for name in "ab"))  # fmt: skip
    index = read_train(tmp_path)
    assert pairs(tmp_path) == [
        ("train/a/train.jpg", "a"), ("train/b/train.jpg", "b"),
        ("valid/a/valid.jpg", "a"), ("valid/b/valid.jpg", "b"),
    ]  # fmt: skip
    assert "2 images of valid/ are trained on too" in index.notes[0]
    assert rows(read_test(tmp_path), "image") == [("test/a/test.jpg",), ("test/b/test.jpg",)]


def test_validation_folders_of_other_classes_do_not(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/c/2.jpg")
    index = read_train(tmp_path)
    assert len(index) == 2
    assert index.notes == ("val/ is not used: it has classes that train/ has not (c)",)


@pytest.mark.parametrize("inner", ["train", "images", "data/images"])
def test_class_folders_one_folder_deeper(tmp_path, inner):
    put(tmp_path, f"train/{inner}/a/1.jpg", f"train/{inner}/b/1.jpg", f"val/{inner}/a/2.jpg")
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and len(index) == 3
    assert index.notes[0] == f"the class folders lie in train/{inner}/"


def test_one_class_is_not_taken_for_a_folder_of_classes(tmp_path):
    put(tmp_path, "train/cat/1.jpg", "train/cat/more/2.jpg")
    refused("only one class, 'cat'", read_train, tmp_path)


def test_data_up_to_three_folders_down_are_found(tmp_path):
    put(tmp_path, "archive/dataset/pets/train/a/1.jpg", "archive/dataset/pets/train/b/1.jpg")
    assert find_root(tmp_path) == tmp_path / "archive/dataset/pets"
    put(tmp_path, "archive/other/x/train/a/1.jpg")
    refused(r"\(archive/dataset/pets, archive/other/x\): pass --data", find_root, tmp_path)


def test_splits_inside_train_are_splits_and_no_classes(tmp_path):
    put(tmp_path, *(f"train/{split}/{name}/{split}.jpg" for split in ("train", "valid", "test")
                    for name in "ab"))  # fmt: skip
    root = find_root(tmp_path)
    assert root == tmp_path / "train" and read_train(root).classes == ("a", "b")
    assert len(read_train(root)) == 4 and len(read_test(root)) == 2


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, "train/train/1.jpg", "train/plane/1.jpg")
    assert find_root(tmp_path) == tmp_path and read_train(tmp_path).classes == ("plane", "train")


@pytest.mark.parametrize("name", ["_classes.csv", "metadata.csv", "labels.csv"])
def test_tables_inside_the_folder_of_images(tmp_path, name):
    put(tmp_path, "train/1.jpg", "train/2.jpg")
    (tmp_path / "train" / name).write_text("filename, cat, dog\n1.jpg, 1, 0\n2.jpg, 0, 1\n")
    assert pairs(tmp_path) == [("train/1.jpg", "cat"), ("train/2.jpg", "dog")]


def test_a_table_of_another_kind_is_named(tmp_path):
    put(tmp_path, "pictures/1.jpg")
    (tmp_path / "train.xlsx").write_bytes(b"x")
    refused(r"save train\.xlsx as train\.csv in", find_root, tmp_path)
    (tmp_path / "train.csv").write_text("image,label\n1.jpg,a\n1.jpg,b\n")
    assert find_root(tmp_path) == tmp_path
