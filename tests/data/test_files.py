"""Which file a cell of a CSV means: of its own split, never a mask, never a guess among equals."""

import pytest

from src.data.index import read_test, read_train
from tests.data.layout import lay, refused


@pytest.mark.parametrize("train", ["train_images", "Train", "train"])
def test_train_and_test_files_of_one_name_are_told_apart(tmp_path, train):
    other = train.replace("rain", "est")
    lay(tmp_path, f"{train}/1.jpg", f"{train}/2.jpg", f"{other}/1.jpg", f"{other}/2.jpg",
        train="id,label\n1,a\n2,b\n", test="id\n1\n2\n")  # fmt: skip
    assert read_train(tmp_path).table["image"].tolist() == [f"{train}/1.jpg", f"{train}/2.jpg"]
    assert read_test(tmp_path).table["image"].tolist() == [f"{other}/1.jpg", f"{other}/2.jpg"]


def test_file_names_are_found_in_any_case(tmp_path):
    lay(tmp_path, "train/x.JPG", "train/Y.jpg", train="image,label\ntrain/x.jpg,a\ny.JPG,b\n")
    assert read_train(tmp_path).table["image"].tolist() == ["train/x.JPG", "train/Y.jpg"]


@pytest.mark.parametrize("trains", ["train", "train_images", "jpeg/train", "images_train"])
@pytest.mark.parametrize("lost", ["train", "test"])
def test_a_missing_file_is_never_the_one_of_the_other_split(tmp_path, trains, lost):
    tests = trains.replace("train", "test")
    lay(tmp_path, *(f"{folder}/{name}.png" for folder in (trains, tests) for name in range(4)),
        train="id,label\n" + "".join(f"{name},{'ab'[name % 2]}\n" for name in range(4)),
        sample_submission="id,a,b\n" + "".join(f"{name},.5,.5\n" for name in range(4)))  # fmt: skip
    read, folder = (read_train, trains) if lost == "train" else (read_test, tests)
    assert len(read(tmp_path)) == 4
    (tmp_path / folder / "3.png").unlink()
    refused(rf"names 1 image not in .*{folder}/, first '3'", read, tmp_path)
    for name in range(3):
        (tmp_path / folder / f"{name}.png").unlink()
    refused(rf"names 4 images not in .*{folder}/", read, tmp_path)


def test_the_other_split_is_meant_where_the_cell_says_so_or_nothing_else_is_there(tmp_path):
    lay(tmp_path, *(f"in/train/{n}.jpg" for n in (1, 2, 3)), train="id,label\n1,a\n2,b\n")
    lay(tmp_path, test="id\n3\n")  # no training image
    assert read_test(tmp_path).table["image"].tolist() == ["in/train/3.jpg"]
    lay(tmp_path, "in/test/9.jpg", test="id,image\n1,train/1.jpg\n9,9.jpg\n")
    assert read_test(tmp_path).table["image"].tolist() == ["in/train/1.jpg", "in/test/9.jpg"]


@pytest.mark.parametrize("masks", ["train_masks", "masks", "train/labels", "trainannot/gt"])
def test_masks_are_never_taken_for_images(tmp_path, masks):
    lay(tmp_path, *(f"{folder}/{name}" for folder, ending in (("images", "jpg"), (masks, "png"))
                    for name in (f"1.{ending}", f"2.{ending}")),
        train="id,label\n1,a\n2,b\n")  # fmt: skip
    assert read_train(tmp_path).table["image"].tolist() == ["images/1.jpg", "images/2.jpg"]
    (tmp_path / "images/2.jpg").unlink()
    refused(r"names 1 image .* first '2'", read_train, tmp_path)


def test_folders_that_sound_like_masks_may_hold_the_images(tmp_path):
    lay(tmp_path, "train/with_mask/1.jpg", "train/without_mask/2.jpg", "test/3.jpg",
        train="id,label\n1,a\n2,b\n")  # fmt: skip
    images = ["train/with_mask/1.jpg", "train/without_mask/2.jpg"]
    assert read_train(tmp_path).table["image"].tolist() == images


def test_images_of_equal_rank_are_not_guessed(tmp_path):
    lay(tmp_path, "images/1.jpg", "train_small/1.jpg", "images/2.jpg", "val/2.jpg",
        train="image,label\n2.jpg,a\n1.jpg,b\n")  # fmt: skip
    refused(r"fits images/1\.jpg and train_small/1\.jpg", read_train, tmp_path)
    (tmp_path / "train_small/1.jpg").unlink()
    assert read_train(tmp_path).table["image"].tolist() == ["images/2.jpg", "images/1.jpg"]


def test_one_row_of_a_wrong_folder_does_not_move_the_others_there(tmp_path):
    lay(tmp_path, "small/1.jpg", "small/2.jpg", "images/2.jpg",
        train="image,label\n1.jpg,a\n2.jpg,b\n")  # fmt: skip
    refused(r"'2\.jpg' fits images/2\.jpg and small/2\.jpg", read_train, tmp_path)
