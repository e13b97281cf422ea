"""What folders' names say: split, kind of files, and the rest."""

import os

import pytest

from src.data.sources.places import find_inner, read_place, split_of_name, walk
from src.data.sources.registry import read_source
from tests.data.layout import refused


@pytest.mark.parametrize(
    ("folders", "split", "kind", "rest"),
    [
        ("images/train", "train", "image", ""),
        ("train/images", "train", "image", ""),
        ("train_images", "train", "image", ""),
        ("Train/Masks", "train", "mask", ""),
        ("img_dir/val", "valid", "image", ""),
        ("ann_dir/validation", "valid", "mask", ""),
        ("annotations/training", "train", "mask", ""),
        ("testannot", "test", "mask", ""),
        ("val2017", "valid", "", ""),
        ("JPEGImages", "", "image", ""),
        ("SegmentationClass", "", "mask", ""),
        ("laneseg_label_w16/driver_23_30frame", "", "mask", "driver_23_30frame"),
        ("driver_23_30frame/05.MP4", "", "", "driver_23_30frame/05.MP4"),
        ("train_set/clips/0313-1", "train", "", "clips/0313-1"),
        ("images/ann", "", "image", "ann"),  # a person called Ann
        ("Segmentation/images", "", "image", "Segmentation"),
        ("images/test_site3", "", "image", "test_site3"),
        ("images/drive 1", "", "image", "drive 1"),
        ("train_01/images", "train", "image", "01"),
        ("train/images/val", "train", "image", "val"),
    ],
)
def test_a_path_says_split_and_kind(folders, split, kind, rest):
    place = read_place(folders.split("/"))
    assert (place.split, place.kind, "/".join(place.rest)) == (split, kind, rest)


def test_names_of_files_say_a_split_only_where_nothing_else_is_in_them():
    names = ("instances_train2017", "val_list", "train_gt", "test_label", "trainval")
    assert [split_of_name(name) for name in names] == ["train", "valid", "train", "test", "train"]
    assert not any(split_of_name(n) for n in ("instances_default", "my_train_park"))


def test_the_lone_folder_of_an_archive_is_entered(disk):
    disk.image("road set/images/1.jpg")
    disk.mask("road set/masks/1.png", {(0, 0): 1})
    disk.text("readme.txt")
    assert len(read_source("auto", disk.root)) == 1
    assert find_inner(disk.root / "road set") == disk.root / "road set"
    disk.image("train/a.jpg")
    (disk.root / "alone" / "train").mkdir(parents=True)
    assert find_inner(disk.root / "alone") == disk.root / "alone"  # the name is a split


def test_links_in_a_circle_end(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 1})
    (disk.root / "images" / "again").symlink_to(disk.root / "images")
    assert len(read_source("folders", disk.root)) == 1


def test_a_link_is_never_read_instead_of_the_folder_it_leads_to(disk):
    disk.image("train/images/1.jpg")
    (disk.root / "zz").symlink_to(disk.root / "train")
    (disk.root / "deep").symlink_to(disk.root / "zz")
    (disk.root / "zzz").symlink_to(disk.root / "train" / "images")
    (disk.root / "__MACOSX").symlink_to(disk.root / "__MACOSX")  # leads nowhere
    found = [(parts, files) for parts, files in walk(disk.root) if files]
    assert found == [(("train", "images"), ["1.jpg"])]  # the names say the split


def test_folders_of_file_servers_hold_no_images(disk):
    disk.image(
        "images/1.jpg", "images/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/images/._1.jpg"
    )
    disk.mask("masks/1.png", {(0, 0): 1})
    assert read_source("auto", disk.root).table["id"].tolist() == ["1"]


def test_nothing_to_read_is_said_with_what_is_there(disk):
    disk.text("labels/1.txt")
    refused(
        r"found labels/ \(1 \.txt\); the layouts are in docs/layo", read_source, "auto", disk.root
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_refused(disk):
    disk.image("images/1.jpg")
    (disk.root / "images").chmod(0)
    refused(r"images cannot be read .*restore it", list, walk(disk.root))


def test_a_folder_that_is_gone_is_refused(disk):
    refused("nowhere cannot be read", list, walk(disk.root / "nowhere"))
