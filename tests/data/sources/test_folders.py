"""Folders of images and masks in the layouts that tools and contests use."""

import ntpath
import os

import numpy as np
import pytest

from src.data.decode import decode_image
from src.data.masks import VoidReader, read_labelled, read_test_masks
from src.data.sources.folders import _common, read_folders
from src.data.sources.registry import read_source
from src.script import UserError
from tests.data.layout import refused
from tests.data.sources.conftest import SIZE


def fill(disk, images, masks, splits=("train", "val", "test"), count=2, name="{}"):
    """Write ``count`` pairs a split; ``{}`` in the folders is the split."""
    for split in splits:
        for number in range(count):
            disk.image(f"{images.format(split)}/{number}.jpg")
            disk.mask(f"{masks.format(split)}/{name.format(number)}.png", {(0, 0): 1})


def splits_of(index):
    return index.table["split"].value_counts().to_dict()


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("{}/Images", "{}/Labels"),
        ("{}_images", "{}_masks"),
        ("img_dir/{}", "ann_dir/{}"),
        ("data/{}/image", "data/{}/gt"),
        ("{}/img", "{}/annotations"),
        ("{}", "{}_labels"),
        ("JPEGImages/{}", "SegmentationClass/{}"),
    ],
)
def test_folders_that_name_a_split_are_splits(disk, images, masks):
    fill(disk, images, masks)
    index = read_source("auto", disk.root)
    assert splits_of(index) == {"train": 2, "valid": 2, "test": 2}
    assert (index.table["target"] != "").all()
    assert len(read_test_masks("auto", disk.root)) == 2
    assert not set(read_labelled("auto", disk.root).table["split"]) & {"test"}


def test_training_and_validation(disk):
    fill(disk, "images/{}", "annotations/{}", ("training", "validation"))
    assert splits_of(read_source("auto", disk.root)) == {"train": 2, "valid": 2}


def test_images_and_masks_in_capitals(disk):
    fill(disk, "Images", "Masks", ("",))
    assert splits_of(read_source("auto", disk.root)) == {"": 2}


def test_archives_whose_folders_have_long_names(disk):
    fill(disk, "ISIC_{}_Data", "ISIC_{}_Part1_GroundTruth", ("Training", "Test"),
         name="{}_segmentation")  # fmt: skip
    assert splits_of(read_source("auto", disk.root)) == {"train": 2, "test": 2}


def test_masks_beside_their_images(disk):
    disk.image("scans/1.jpg", "scans/2.jpg")
    disk.mask("scans/1_mask.png", {(0, 0): 1})
    disk.mask("scans/2_mask.png", {(0, 0): 1})
    assert read_source("auto", disk.root).table["target"].tolist() == ["1_mask.png", "2_mask.png"]


def test_masks_that_alone_are_divided_divide_their_images(disk):
    disk.image("images/1.jpg", "images/2.jpg")
    disk.mask("masks/train/1.png", {(0, 0): 1})
    disk.mask("masks/val/2.png", {(0, 0): 1})
    assert splits_of(read_source("auto", disk.root)) == {"train": 1, "valid": 1}


def test_masks_that_are_not_divided_belong_to_every_split(disk):
    disk.image("images/train/1.jpg", "images/test/2.jpg")
    disk.mask("masks/1.png", {(0, 0): 1})
    disk.mask("masks/2_mask.png", {(0, 0): 1})
    index = read_source("auto", disk.root)
    assert index.table[["id", "target"]].values.tolist() == [
        ["1", "masks/1.png"],
        ["2", "masks/2_mask.png"],
    ]
    disk.image("images/test/1.jpg")
    refused("divide the masks into the same folders", read_source, "auto", disk.root)
    for name, split in (("1", "train"), ("2_mask", "test")):
        (disk.root / "masks" / split).mkdir()
        (disk.root / f"masks/{name}.png").rename(disk.root / f"masks/{split}/{name}.png")
    assert len(read_source("auto", disk.root)) == 3


def test_paddleseg_lists_name_pairs(disk):
    for number in range(3):
        disk.image(f"images/H{number}.jpg")
        disk.mask(f"labels/label of {number}.png".replace(" ", "-"), {(0, 0): 1})
    disk.text("train.txt", *[f"images/H{n}.jpg labels/label-of-{n}.png" for n in range(2)])
    disk.text("val.txt", "images/H2.jpg labels/label-of-2.png")
    index = read_source("auto", disk.root)
    assert index.table[["target", "split"]].values.tolist() == [
        ["labels/label-of-0.png", "train"],
        ["labels/label-of-1.png", "train"],
        ["labels/label-of-2.png", "valid"],
    ]


def test_culane_as_unpacked(disk):
    clip = "driver_23_30frame/05151649_0422.MP4"
    for number in range(3):
        disk.image(f"{clip}/0000{number}.jpg")
        disk.mask(f"laneseg_label_w16/{clip}/0000{number}.png", {(0, 0): 1, (0, 1): 4})
        disk.text(f"{clip}/0000{number}.lines.txt", "1 2 3 4")
    line = "/{0}/0000{1}.jpg /laneseg_label_w16/{0}/0000{1}.png 1 1 0 0"
    disk.text("list/train_gt.txt", *[line.format(clip, n) for n in range(2)])
    disk.text("list/train.txt", *[f"/{clip}/0000{n}.jpg" for n in range(2)])
    disk.text("list/test.txt", f"/{clip}/00002.jpg")
    index = read_source("lanes", disk.root)
    assert splits_of(index) == {"train": 2, "test": 1}
    assert index.decode(index.mask_path(0)).sum() == 2
    assert "up to 4: every number above 0 is read as lane" in " | ".join(index.notes)


def test_labelme_names_classes_and_drops_what_it_ignores(disk):
    disk.image("JPEGImages/1.jpg")
    disk.mask("SegmentationClass/1.png", {(0, 0): 1, (1, 1): 255}, palette=True)
    disk.text("SegmentationClassVisualization/1.jpg")
    disk.text("class_names.txt", "__ignore__", "_background_", "crack")
    index = read_source("auto", disk.root)
    assert index.classes == ("background", "crack") and len(index) == 1


def test_voc_of_ones_own_one_folder_down(disk):
    for year in ("VOC2007", "VOC2012"):
        base = f"VOCdevkit/{year}"
        disk.image(f"{base}/JPEGImages/{year}.jpg")
        disk.mask(f"{base}/SegmentationClass/{year}.png", {(0, 0): 1}, palette=True)
        disk.text(f"{base}/ImageSets/Segmentation/train.txt", year)
        assert read_source("auto", disk.root).table["id"].tolist() == [year]  # 2012 comes first
    disk.text("VOCdevkit/VOC2012/classes.txt", "background", "crack")
    index = read_source("auto", disk.root / "VOCdevkit" / "VOC2012")
    assert (index.classes, splits_of(index)) == (("background", "crack"), {"train": 1})


def test_ade20k_names_its_classes(disk):
    fill(disk, "images/{}", "annotations/{}", ("training",))
    disk.text("objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0\t0\t0\t0\twall, x")
    disk.text("sceneCategories.txt", "a b")
    assert read_source("auto", disk.root).classes == ("other", "wall")


def test_files_that_are_no_images_are_counted_and_in_test_refused(disk):
    fill(disk, "images/{}", "masks/{}")
    disk.text("images/train/x.avif")
    index = read_folders(disk.root)
    assert any("1 file .avif among the images, left out" in note for note in index.notes)
    disk.text("images/test/x.heic")
    refused(r"x\.heic is to be predicted.*convert it", read_folders, disk.root)
    (disk.root / "images/test/x.heic").unlink()  # the remedy
    read_folders(disk.root)


def test_a_split_without_masks_and_odd_names_are_said(disk):
    fill(disk, "images/{}", "masks/{}", ("train", "val"))
    for path in (disk.root / "masks" / "val").iterdir():
        path.unlink()
    disk.image("images/test_site3/9.jpg")
    notes = " | ".join(read_folders(disk.root).notes)
    assert "split valid: no masks, so its images are to be predicted" in notes
    assert "read as plain folders, not as splits: 1 (test_site3)" in notes


def test_training_without_anything_to_learn_is_refused(disk):
    disk.image("images/1.jpg")
    refused(r"found images/ \(1 \.jpg\); a mask lies in masks/", read_labelled, "auto", disk.root)
    disk.mask("masks/1.png", {})
    refused(r"all masks \(1\) are background alone", read_labelled, "auto", disk.root)
    disk.mask("masks/1.png", {(0, 0): 1})
    assert len(read_labelled("auto", disk.root)) == 1


@pytest.mark.parametrize("fill", [1, 255])
def test_masks_without_any_background_are_refused(disk, fill):
    for name in "ab":
        disk.image(f"images/{name}.jpg")
        disk.mask(f"masks/{name}.png", dict.fromkeys(np.ndindex(SIZE), fill))
    refused(
        r"all masks \(2\) are lane alone.*renumber masks that count",
        read_labelled,
        "lanes",
        disk.root,
    )
    disk.mask("masks/b.png", {(0, 0): 1})
    assert len(read_labelled("lanes", disk.root)) == 2


@pytest.mark.parametrize("source", ["auto", "lanes"])
@pytest.mark.parametrize("place", ["images/2.png", "masks/2.png"])
def test_a_pipe_among_images_and_masks_is_never_waited_for(disk, place, source):
    for name in "123":
        disk.image(f"images/{name}.png")
        disk.mask(f"masks/{name}.png", {(0, 0): 1})
    (disk.root / place).unlink()
    os.mkfifo(disk.root / place)
    with pytest.raises(UserError, match=f"{place} is not a file: remove it"):
        index = read_labelled(source, disk.root)
        decode_image(index.image_path(1))


@pytest.mark.parametrize("source", ["auto", "lanes"])
@pytest.mark.parametrize("kind", [np.int8, np.int64, np.float32])
def test_minus_one_is_void_and_less_is_refused(disk, source, kind):
    for name, label in (("1", 1), ("2", 0)):
        disk.image(f"images/{name}.png")
        np.save(disk.path(f"masks/{name}.npy"), np.array([[0, label], [label, -1]], kind))
    index = read_labelled(source, disk.root)
    masks = [VoidReader(index)(index.mask_path(row)).ravel().tolist() for row in range(2)]
    assert masks == [[0, 1, 1, 255], [0, 0, 0, 255]]
    np.save(disk.path("masks/1.npy"), np.array([[0, 1], [1, -2]], kind))
    refused(r"1\.npy holds -2, which is no label", read_labelled, source, disk.root)


@pytest.mark.parametrize("name", ["classes.txt", "train.txt"])
def test_text_that_is_not_utf8_is_named(disk, name):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 1})
    disk.path(name).write_bytes(b"1\ncaf\xe9\n")
    refused(rf"{name} is not UTF-8 \(byte 0xe9 in line 2\): save it", read_folders, disk.root)
    disk.path(name).write_bytes("\ufeff1\ncafé\n".encode())
    assert len(read_folders(disk.root)) == 1


def test_one_mask_as_array_and_as_picture(disk):
    import numpy as np

    disk.image("JPEGImages/1.jpg")
    disk.mask("SegmentationClassPNG/1.png", {(0, 0): 1})
    np.save(disk.path("SegmentationClass/1.npy"), np.eye(6, 8, dtype=np.int32))
    assert read_folders(disk.root).table["target"].tolist() == ["SegmentationClassPNG/1.png"]


def test_roboflow_masks_and_their_classes(disk):
    for split in ("train", "valid", "test"):
        disk.image(f"{split}/1.jpg")
        disk.mask(f"{split}/1_mask.png", {(0, 0): 2})
    disk.text("train/_classes.csv", "Pixel Value, Class", "0, background", "1, car", "2, road")
    index = read_source("auto", disk.root)
    assert index.classes == ("background", "car", "road")
    assert splits_of(index) == {"train": 1, "valid": 1, "test": 1}


def test_a_bare_test_folder_beside_images_and_masks(disk):
    fill(disk, "train/images", "train/masks", ("",))
    disk.image("test/7.jpg", "previews/7.jpg")
    assert splits_of(read_source("auto", disk.root)) == {"train": 2, "test": 1}


def test_names_in_another_case(disk):
    disk.image("images/IMG_7.JPG", "images/8.jpg")
    disk.mask("masks/img_7.png", {(0, 0): 1})
    disk.mask("masks/8.png", {(0, 0): 1})
    assert len(read_labelled("auto", disk.root)) == 2


def test_lists_of_images_that_are_missing_are_said(disk):
    disk.image("VOC2012/JPEGImages/1.jpg")
    disk.text("VOC2012/ImageSets/Segmentation/train.txt", "9")
    refused(
        r"no images .*listed, but image or mask is missing: 1 \(9", read_source, "auto", disk.root
    )


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("train/7_sat.jpg", "train/7_mask.png"),
        ("crops/7.jpg", "crops/7.png"),
        ("train_img/7.jpg", "train_lab/7.png"),
        ("이미지/7.jpg", "마스크/7.png"),
        ("polyps_with_GT/benign/7.png", "polyps_with_GT/benign/7_mask.png"),
        ("leftImg8bit/train/a/7_leftImg8bit.png", "gtFine/train/a/7_gtFine_labelIds.png"),
    ],
)
def test_pairs_as_public_sets_name_them(disk, image, mask):
    disk.image(image)
    disk.mask(mask, {(0, 0): 1})
    index = read_source("auto", disk.root)
    pairs = [(index.root / name for name in row) for row in index.table[["image", "target"]].values]
    assert [tuple(pair) for pair in pairs] == [(disk.root / image, disk.root / mask)]


def test_labels_of_other_tools_are_refused_with_what_was_found(disk):
    for split in ("train", "valid"):
        disk.image(f"{split}/images/1.jpg")
        disk.text(f"{split}/labels/1.txt", "crack from left to right")
    refused(r"valid/labels/ \(1 \.txt\).*exported as COCO", read_labelled, "auto", disk.root)
    assert read_test_masks("auto", disk.root).table["id"].tolist() == ["train/1", "valid/1"]


def test_masks_left_out_for_being_jpeg_are_counted(disk):
    disk.image("images/1.jpg", "images/2.jpg", "masks/1.jpg")
    disk.mask("masks/2.png", {(0, 0): 1})
    assert "for JPEG changes labels: save as PNG: 1" in " | ".join(read_folders(disk.root).notes)


def test_a_train_split_without_masks_beside_others_is_refused(disk):
    fill(disk, "images/{}", "masks/{}", ("train", "val"))
    (disk.root / "masks/train").rename(disk.root / "trian")
    refused(r"train split has images but no masks.*, trian/ \(2 ", read_source, "auto", disk.root)
    (disk.root / "trian").rename(disk.root / "masks/train")  # the remedy
    assert splits_of(read_source("auto", disk.root)) == {"train": 2, "valid": 2}


def test_a_split_whose_masks_are_all_jpeg_is_refused(disk):
    fill(disk, "{}/images", "{}/masks", ("train", "val"))
    for path in (disk.root / "train/masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    refused(r"train/masks holds no \.png.*save masks as PNG", read_source, "auto", disk.root)


def test_folders_that_names_share_have_slashes_on_windows_too(monkeypatch):
    monkeypatch.setattr(os, "path", ntpath)
    assert _common(["a/b/1", "a/b/c/2"]) == "a/b/"
    assert _common(["a/1", "b/2"]) == ""
