import os
import time
import timeit
import unicodedata
from functools import partial
from pathlib import Path

import pytest

from src.data.index import COLUMNS, find_root, read_train
from tests.data.layout import lay, refused, rows

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
    assert index.notes == ("left out as no images: 1 file .txt",)


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
    assert any("1 image directly in train/" in note for note in index.notes)


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


def test_folders_without_numbers_of_files_are_all_read(tmp_path, monkeypatch):
    """``st_ino`` is 0 where Windows or a network drive gives files no number."""
    lay(tmp_path, "train/a/1.jpg", "train/a/deep/1.jpg", "train/b/1.jpg")
    stat = Path.stat

    def unnumbered(path, **options):
        return os.stat_result((stat(path, **options).st_mode, 0, 0, *[0] * 7))

    monkeypatch.setattr(Path, "stat", unnumbered)
    assert len(read_train(tmp_path)) == 3


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
    refused("not a name in UTF-8: rename it", read_train, tmp_path)


def test_nothing_to_train_on(tmp_path):
    refused(r"no train/ and no train\.csv", read_train, tmp_path)
    lay(tmp_path, "train/flat.jpg")
    refused("no images in class folders", read_train, tmp_path)
    lay(tmp_path, "train/a/1.jpg")
    refused("only one class, 'a'", read_train, tmp_path)
    refused(r"no train\.csv .* drop the column flags", read_train, tmp_path, label_column="x")


def test_root_is_the_folder_or_its_one_data_set(tmp_path):
    refused("is missing", find_root, tmp_path / "input")
    refused(r"looked there .* train/, train\.csv", find_root, tmp_path)
    lay(tmp_path, "cars/Train/a/1.jpg", "weights/some.pth")
    assert find_root(tmp_path) == tmp_path / "cars"
    assert find_root(tmp_path / "cars") == tmp_path / "cars"
    lay(tmp_path, "digits/test/1.jpg")
    refused(r"\(cars, digits\): pass --data_dir .*cars", find_root, tmp_path)


def test_a_folder_too_low_is_told_where_the_whole_lies(tmp_path):
    lay(tmp_path, "cars/train/a/1.jpg", "cars/train/b/2.jpg", "cars/test/3.jpg")
    for part in ("train", "train/a", "test"):
        refused(
            rf"a part of one: pass --data_dir {tmp_path}/cars$", find_root, tmp_path / "cars" / part
        )
    lay(tmp_path, "training/a/1.jpg", "training/b/2.jpg")  # alone it may be called anything
    refused(rf"move them into {tmp_path}/training/train", find_root, tmp_path / "training")


def test_a_listing_costs_little_more_than_its_walk(tmp_path):
    seed = tmp_path / "seed"
    seed.write_bytes(b"x")
    for number in range(20):
        (tmp_path / f"train/차종_{number}").mkdir(parents=True)
    for number in range(6000):
        os.link(seed, tmp_path / f"train/차종_{number % 20}/차종_{number}.jpg")
    assert len(read_train(tmp_path)) == 6000

    def walk():
        return sorted(path for path in tmp_path.rglob("*") if path.is_file())

    listing, plain = (
        min(timeit.repeat(work, timer=time.process_time, number=1, repeat=3))
        for work in (partial(read_train, tmp_path), walk)
    )
    assert listing < 5 * plain  # 1.1 times, measured


def test_class_folders_without_train_are_recognised_and_not_trusted(tmp_path):
    lay(tmp_path, "cat/1.jpg", "dog/1.jpg")
    remedy = rf"if the folders cat, dog are classes, move them into {tmp_path}/train, else unpack"
    refused(rf"no data set in .*{remedy}", find_root, tmp_path)
    lay(tmp_path, "test/1.jpg")
    refused(rf"no train/ and no train\.csv in .*{remedy}", read_train, find_root(tmp_path))


def test_a_file_is_no_data_folder(tmp_path):
    lay(tmp_path, train="id,label\n")
    refused(
        rf"is a file: pass its folder, --data_dir {tmp_path}$", find_root, tmp_path / "train.csv"
    )
