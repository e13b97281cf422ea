import pytest

from src.data.sources.folders import read_folders
from src.script import UserError


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
    with pytest.raises(UserError, match=r"as .*images/left_1\.jpg and .*masks/right_1\.png show"):
        read_folders(disk.root)


def test_two_masks_of_one_image_are_refused(disk):
    disk.image("images/7.jpg")
    disk.mask("masks/7_mask.png", {(0, 0): 1})
    disk.mask("masks/7_label.png", {(0, 0): 1})
    with pytest.raises(UserError, match="two masks of 7"):
        read_folders(disk.root)
