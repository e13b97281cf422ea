"""COCO files: categories as classes, and what is wrong with a file by its name."""

import copy

import pytest

from src.data.sources.coco import read_coco
from src.data.sources.lanes import read_lanes
from src.data.sources.registry import read_source
from src.script import UserError


def square(x, y, side=2):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


CONTENT = {
    "images": [{"id": n, "file_name": f"p{7 * n}.jpg", "height": 6, "width": 8} for n in (1, 2)],
    "annotations": [
        {"id": 11, "image_id": 1, "category_id": 9, "segmentation": square(0, 0), "area": None},
        {"id": 12, "image_id": 2, "category_id": 4, "segmentation": square(3, 1, 3)},
        {"id": 13, "image_id": 2, "category_id": 9, "segmentation": square(0, 0)},
    ],
    "categories": [
        {"id": 9, "name": "banana"},
        {"id": 0, "name": "fruits"},
        {"id": 4, "name": "apple"},
    ],
}


@pytest.fixture
def content():
    return copy.deepcopy(CONTENT)


def write(disk, content, split="train"):
    disk.image(f"{split}/p7.jpg", f"{split}/p14.jpg")
    disk.json(f"{split}/_annotations.coco.json", content)


def test_categories_with_masks_are_the_classes(disk, content):
    write(disk, content)
    index = read_source("auto", disk.root)
    assert index.classes == ("background", "apple", "banana")  # by id; nothing is a "fruits"
    masks = [index.read_mask(target, (6, 8)) for target in index.table["target"]]
    assert [(m == 1).sum() for m in masks] == [0, 9] and [(m == 2).sum() for m in masks] == [4, 4]


def test_a_lane_run_takes_them_as_one_and_says_so(disk, content):
    write(disk, content)
    index = read_lanes(disk.root)
    assert index.classes == ("background", "lane")
    assert index.read_mask(index.table["target"].iat[1]).sum() == 13
    assert "2 categories taken as one class, lane: apple, banana" in index.notes
    content["annotations"] = content["annotations"][1:2]
    write(disk, content)
    assert not read_lanes(disk.root).notes


def test_splits_share_their_classes(disk, content):
    write(disk, content)
    content["annotations"] = content["annotations"][:1]
    write(disk, content, "valid")
    index = read_coco(disk.root)
    assert index.classes == ("background", "apple", "banana")
    valid = index.take("valid")
    assert valid.read_mask(valid.table["target"].iat[0]).max() == 2


def test_boxes_are_no_masks(disk, content):
    for item in content["annotations"][:2]:
        item |= {"segmentation": [], "bbox": [0, 0, 2, 2]}
    write(disk, content)
    index = read_coco(disk.root)
    assert index.classes == ("background", "banana")
    assert any("without a mask, left out: 2 (11, 12)" in note for note in index.notes)
    del content["annotations"][2]["segmentation"]
    write(disk, content)
    with pytest.raises(UserError, match=r"_annotations\.coco\.json holds 3 boxes but no masks"):
        read_coco(disk.root)
    content["annotations"] = []
    write(disk, content)
    with pytest.raises(UserError, match="holds no annotations"):
        read_coco(disk.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": [[1, 2, 3]]}, "a polygon of 3 coordinates"),
        ({"segmentation": [1, 2, 3, 4]}, "a segmentation that is no list of polygons"),
        ({"segmentation": [[1, 2, "3", 4]]}, "a segmentation that is no list of polygons"),
        ({"segmentation": {"size": [6, 8]}}, "run lengths without counts"),
        ({"category_id": 7}, "the category 7, which the file does not list"),
        ({"image_id": None}, "no image_id"),
    ],
)
def test_a_damaged_annotation_is_named(disk, content, change, message):
    content["annotations"][1] |= change
    write(disk, content)
    with pytest.raises(UserError, match=rf"coco\.json: annotation 12 has {message}"):
        read_coco(disk.root)


def test_other_damage_is_named(disk, content):
    content["annotations"][1]["segmentation"] = {"counts": [3], "size": [6, 8]}
    write(disk, content)
    index = read_coco(disk.root)
    with pytest.raises(UserError, match=r"coco\.json#2: .*add up"):
        index.read_mask(index.table["target"].iat[1])
    del content["images"][1]["height"]
    write(disk, content)
    with pytest.raises(UserError, match="image 2 has no height"):
        read_coco(disk.root)
    content["categories"] = [3]
    write(disk, content)
    with pytest.raises(UserError, match="category number 1 has no id"):
        read_coco(disk.root)
    disk.json("train/_annotations.coco.json", [1])
    with pytest.raises(UserError, match="no COCO file"):
        read_coco(disk.root)


def test_an_image_outside_the_folder_is_missing(disk, content, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.jpg"
    outside.touch()
    content["images"][1]["file_name"] = str(outside)
    write(disk, content)
    index = read_coco(disk.root)
    assert len(index) == 1 and any("missing: 1" in note for note in index.notes)
