import shutil

import pytest

from src.data.masks import VoidReader, read_labelled, read_test_masks
from src.data.sources.folders import read_folders
from tests.data.layout import refused


def pairs_of(disk):
    return read_folders(disk.root).table[["id", "image", "target"]].values.tolist()


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("7.jpg", "7_mask.png"),
        ("7.jpg", "7_label.png"),
        ("7.jpg", "7-seg.png"),
        ("7.jpg", "mask_7.png"),
        ("img_7.jpg", "mask_7.png"),
        ("7_sat.jpg", "7_Mask.png"),
        ("drive 1/7.jpg", "drive 1/7.png"),
        ("drive 1/7.jpg", "drive 1/7_gt.png"),
        ("7.jpg", "00007.png"),
        ("case07_slice_3.jpg", "case7_slice_003_mask.png"),
    ],
)
def test_a_mask_is_found_by_its_images_name(disk, image, mask):
    disk.image(f"images/{image}", "images/other.jpg")
    disk.mask(f"masks/{mask}", {(0, 0): 1})
    disk.mask("masks/other.png", {(0, 0): 1})
    name = image.removesuffix(".jpg")
    assert [name, f"images/{image}", f"masks/{mask}"] in pairs_of(disk)
    notes = " | ".join(read_folders(disk.root).notes)
    assert ("without words such as mask: 1" in notes) == (name != mask.removesuffix(".png"))


def test_an_equal_name_comes_first(disk):
    disk.image("images/7.jpg", "images/7_mask.jpg", "images/8.jpg", "images/8_gt.jpg")
    for name in ("7", "7_mask", "8", "8_gt"):
        disk.mask(f"masks/{name}.png", {(0, 0): 1})
    assert all(target == f"masks/{name}.png" for name, _, target in pairs_of(disk))


def test_same_names_in_two_subfolders_stay_apart(disk):
    for drive in "ab":
        disk.image(f"images/{drive}/0.jpg")
        disk.mask(f"masks/{drive}/0.png", {(0, 0): 1})
    disk.image("images/.thumbnails/a.jpg")
    disk.text("train.txt", "a/0.jpg")
    disk.text("val.txt", "images/b/0.jpg")
    table = read_folders(disk.root).table
    assert table["id"].tolist() == ["a/0", "b/0"]
    assert table["split"].tolist() == ["train", "valid"]


def test_masks_without_any_image_are_refused(disk):
    disk.image("images/left_1.jpg")
    disk.mask("masks/right_1.png", {(0, 0): 1})
    refused(r"as .*images/left_1\.jpg and .*masks/right_1\.png show", read_folders, disk.root)


@pytest.mark.parametrize(("image", "number"), [("IDRiD_0{}", "IDRiD_0{}"), ("{}", "0000{}")])
def test_masks_of_several_kinds_are_named_and_one_is_read(disk, image, number):
    for n in "78":
        disk.image(f"images/{image.format(n)}.jpg")
        for kind in ("MA", "l_EX"):
            disk.mask(f"masks/{kind}/{number.format(n)}_{kind}.png", {(0, 0): 1})
    refused(r"2 kinds \(MA, l_EX\), and one is read here", read_folders, disk.root)
    shutil.rmtree(disk.root / "masks/MA")
    targets = [f"masks/l_EX/{number.format(n)}_l_EX.png" for n in "78"]
    assert [target for _, _, target in pairs_of(disk)] == targets


def test_two_masks_of_one_image_are_refused(disk):
    disk.image("images/7.jpg")
    disk.mask("masks/7_mask.png", {(0, 0): 1})
    disk.mask("masks/7_label.png", {(0, 0): 1})
    refused("two masks of 7", read_folders, disk.root)


def test_parts_of_a_mask_are_joined(disk):
    disk.image("a/7 (1).png", "a/7 (2).png")
    disk.mask("a/7 (1)_mask.png", {(0, 0): 255})
    disk.mask("a/7 (1)_mask_1.png", {(1, 1): 255})
    disk.mask("a/7 (2)_mask.png", {(2, 2): 255})
    index = read_labelled("auto", disk.root)
    masks = [index.decode(index.root / target).sum() for target in index.table["target"]]
    assert masks == [2, 1] and any("1 image with several masks" in note for note in index.notes)
    before = VoidReader(index).describe()
    disk.mask("a/7 (1)_mask_1.png", {(1, 1): 255, (1, 2): 255, (3, 3): 255})
    assert VoidReader(index).describe() != before  # the first part alone is a file of the table
    disk.mask("a/7 (2)_mask.png", {(2, 2): 1, (2, 3): 2})
    disk.mask("a/7 (1)_mask.png", {(0, 0): 1})
    disk.mask("a/7 (1)_mask_1.png", {(1, 1): 1})
    refused("hold 3 labels: draw one mask an image", read_labelled, "auto", disk.root)


def test_a_folder_of_one_image_and_many_masks(disk):
    for name in ("ab", "cd"):
        disk.image(f"stage1_train/{name}/images/{name}.png")
        disk.mask(f"stage1_train/{name}/masks/x{name}1.png", {(0, 0): 255})
        disk.mask(f"stage1_train/{name}/masks/x{name}2.png", {(0, 1): 255})
    index = read_labelled("auto", disk.root)
    assert [index.decode(index.root / target).sum() for target in index.table["target"]] == [2, 2]


def test_two_folders_of_masks_are_not_chosen_between(disk):
    disk.image("training/images/21_training.tif")
    disk.mask("training/1st_manual/21_manual1.png", {(0, 0): 255})
    disk.mask("training/mask/21_training_mask.png", {(0, 0): 255, (1, 1): 255})
    refused(
        "are two masks of 21_training: remove one, or its folder", read_labelled, "auto", disk.root
    )
    (disk.root / "training/mask/21_training_mask.png").unlink()  # followed
    index = read_labelled("auto", disk.root)
    assert index.decode(index.mask_path(0)).sum() == 1


@pytest.mark.parametrize(
    ("image", "mask"),
    [("traincrop/1.jpg", "traincrop/1.png"), ("imagesTr/c_1_0000.png", "labelsTr/c_1.png"),
     ("images/10k/train/1.jpg", "labels/sem_seg/masks/train/1.png"),
     ("训练集/图像/1.jpg", "训练集/标签/1.png"), ("treino/imagens/1.jpg", "treino/máscaras/1.png")],
)  # fmt: skip
def test_more_places(disk, image, mask):
    disk.image(image)
    disk.mask(mask, {(0, 0): 1})
    assert read_labelled("auto", disk.root).table["split"].tolist() == ["train"]


def test_lists_beside_the_annotations_keep_the_test_split_out(disk):
    disk.image(*(f"images/a_{n}.jpg" for n in range(3)))
    for n in range(3):
        disk.mask(f"annotations/trimaps/a_{n}.png", {(0, 0): 1})
    disk.text("annotations/trainval.txt", "a_0 1 1 1", "a_1 1 1 1")
    disk.text("annotations/test.txt", "a_2 1 1 1")
    assert read_labelled("auto", disk.root).table["id"].tolist() == ["a_0", "a_1"]
    assert read_test_masks("auto", disk.root).table["id"].tolist() == ["a_2"]
