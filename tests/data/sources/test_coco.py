"""COCO files: categories as classes, and what is wrong with a file by its name."""

import copy

import pytest

from src.data.masks import read_labelled
from src.data.sources.coco import read_coco
from src.data.sources.lanes import read_lanes
from src.data.sources.registry import read_source
from src.script import UserError
from tests.data.layout import refused


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
    masks = [index.decode(index.root / target) for target in index.table["target"]]
    assert [(m == 1).sum() for m in masks] == [0, 9] and [(m == 2).sum() for m in masks] == [4, 4]


def test_a_lane_run_takes_them_as_one_and_says_so(disk, content):
    write(disk, content)
    index = read_lanes(disk.root)
    assert index.classes == ("background", "lane")
    assert index.decode(index.mask_path(1)).sum() == 13
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
    assert valid.decode(valid.mask_path(0)).max() == 2


def test_boxes_are_no_masks(disk, content):
    for item in content["annotations"][:2]:
        item |= {"segmentation": [], "bbox": [0, 0, 2, 2]}
    write(disk, content)
    index = read_coco(disk.root)
    assert index.classes == ("background", "banana")
    assert any("without a mask, left out: 2 (11, 12)" in note for note in index.notes)
    del content["annotations"][2]["segmentation"]
    write(disk, content)
    refused(r"_annotations\.coco\.json holds 3 boxes but no masks", read_coco, disk.root)
    content["annotations"] = []
    write(disk, content)
    refused("holds no annotations", read_coco, disk.root)


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
    refused(rf"coco\.json: annotation 12 has {message}", read_coco, disk.root)


def test_other_damage_is_named(disk, content):
    content["annotations"][1]["segmentation"] = {"counts": [3], "size": [6, 8]}
    write(disk, content)
    index = read_coco(disk.root)
    refused(r"coco\.json#2: .*add up", index.decode, index.mask_path(1))
    del content["images"][1]["height"]
    write(disk, content)
    refused("image 2 has no height", read_coco, disk.root)
    content["categories"] = [3]
    write(disk, content)
    refused("category number 1 has no id", read_coco, disk.root)
    disk.json("train/_annotations.coco.json", [1])
    refused("no COCO file", read_coco, disk.root)


def test_an_image_outside_the_folder_is_missing(disk, content, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.jpg"
    outside.touch()
    content["images"][1]["file_name"] = str(outside)
    write(disk, content)
    index = read_coco(disk.root)
    assert len(index) == 1 and any("missing: 1" in note for note in index.notes)


def test_ids_are_compared_as_text(disk, content):
    for item in content["annotations"]:
        item["image_id"] = str(item["image_id"])
        item["category_id"] = float(item["category_id"])
    write(disk, content)
    index = read_coco(disk.root)
    masks = [index.decode(index.root / target) for target in index.table["target"]]
    assert [(m == 1).sum() for m in masks] == [0, 9] and [(m == 2).sum() for m in masks] == [4, 4]


def test_annotations_of_no_image_are_counted_and_all_are_refused(disk, content):
    content["annotations"][0]["image_id"] = 77
    write(disk, content)
    notes = " | ".join(read_coco(disk.root).notes)
    assert "of images that the file does not list, left out: 1 (77)" in notes
    for item in content["annotations"]:
        item["image_id"] += 100
    write(disk, content)
    refused(r"none of the 3 .*image_id 177; images have ids like 1", read_coco, disk.root)


def test_annotations_of_missing_images_alone_are_refused(disk, content):
    content["annotations"] = content["annotations"][:1]
    write(disk, content)
    (disk.root / "train" / "p7.jpg").unlink()
    refused("no annotation belongs to an image that is there", read_coco, disk.root)
    disk.image("train/p7.jpg")  # the remedy
    assert len(read_coco(disk.root)) == 2


def test_ids_are_unique(disk, content):
    content["images"][1]["id"] = 1
    write(disk, content)
    refused(r"two images have the id 1, p7\.jpg and p14\.jpg", read_coco, disk.root)
    content["images"][1] |= {"id": 2, "file_name": "p7.jpg"}
    write(disk, content)
    refused(r"lists the image p7\.jpg 2 times \(ids 1, 2\)", read_coco, disk.root)
    content["images"][1] |= {"file_name": "./p7.jpg"}
    write(disk, content)
    refused(r"lists train/p7\.jpg under two names or ids", read_coco, disk.root)
    content["images"][1]["file_name"] = "p14.jpg"
    content["categories"][0]["id"] = 4
    write(disk, content)
    refused("two categories have the id 4, banana and apple", read_coco, disk.root)
    content["categories"][0]["id"] = 9  # the remedies
    write(disk, content)
    index = read_coco(disk.root)
    assert [(index.decode(index.root / target) > 0).sum() for target in index.table["target"]] == [
        4,
        13,
    ]


def test_an_image_in_two_files_is_refused(disk, content):
    write(disk, content)
    content["images"][0]["file_name"] = "../train/p7.jpg"
    disk.image("valid/p14.jpg")
    disk.json("valid/_annotations.coco.json", content)
    assert len(read_coco(disk.root)) == 3  # the image of another split is not taken
    disk.json("train/more_annotations.coco.json", CONTENT)
    refused(r"p7\.jpg is listed in .*: remove one of the files", read_coco, disk.root)
    (disk.root / "train/more_annotations.coco.json").unlink()
    assert len(read_coco(disk.root)) == 3


@pytest.mark.parametrize(
    ("annotations", "folder", "split"),
    [
        ("annotations/instances_default.json", "images", ""),  # CVAT
        ("annotations/instances_train.json", "images/train", "train"),
        ("annotations/instances_train2014.json", "train2014", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "valid"),
        ("train/annotations.json", "train", "train"),
        ("annotations.json", "images", ""),
        ("train.json", "images", "train"),
        ("_annotations.coco.json", ".", ""),
        ("result.json", "images", ""),  # Label Studio
        ("test/annotations/all.json", "test/images", "test"),
    ],
)
def test_files_lie_where_tools_write_them(disk, content, annotations, folder, split):
    disk.image(f"{folder}/p7.jpg", f"{folder}/p14.jpg")
    disk.json(annotations, content)
    index = read_source("auto", disk.root)
    assert index.table["split"].tolist() == [split] * 2 and index.num_classes == 3


@pytest.mark.parametrize(
    "name",
    [
        r"images\p7.jpg",
        r"..\..\label-studio\data\media\upload\1\p7.jpg",
        r"C:\photos\images\p7.jpg",
        "/home/somebody/set/images/p7.jpg",
        "P7.JPG",
    ],
)
def test_names_with_other_folders_before_them(disk, content, name):
    disk.image("images/p7.jpg", "images/p14.jpg")
    content["images"][0]["file_name"] = name
    disk.json("result.json", content)
    index = read_source("auto", disk.root)
    assert index.table["image"].tolist() == ["images/p7.jpg", "images/p14.jpg"]


def test_a_name_that_fits_two_files_is_refused(disk, content):
    disk.image("images/p14.jpg", "a/images/p7.jpg", "b/images/p7.jpg")
    disk.json("result.json", content)
    refused(r"may be a/images/p7\.jpg or b/images/p7\.jpg.*in full", read_coco, disk.root)
    content["images"][0]["file_name"] = "b/images/p7.jpg"
    disk.json("result.json", content)
    assert read_coco(disk.root).table["image"].iat[0] == "b/images/p7.jpg"


def test_equal_names_in_two_folders_stay_apart(disk, content):
    for image, folder in zip(content["images"], "ab", strict=True):
        image["file_name"] = f"{folder}/0.jpg"
    disk.image("train/a/0.jpg", "train/b/0.jpg")
    disk.json("train/_annotations.coco.json", content)
    assert read_coco(disk.root).table["id"].tolist() == ["a/0", "b/0"]


def test_images_of_a_test_folder_without_a_file_are_to_be_predicted(disk, content):
    disk.image("train2017/p7.jpg", "train2017/p14.jpg", "test2017/1.jpg")
    disk.json("annotations/instances_train2017.json", content)
    disk.json("annotations/person_keypoints_train2017.json", content)  # the same images
    index = read_source("auto", disk.root)
    assert index.table[["id", "target", "split"]].values.tolist()[2:] == [["1", "", "test"]]


def test_folders_of_masks_come_before_a_file_of_boxes(disk, content):
    disk.image("images/p7.jpg")
    disk.mask("masks/p7.png", {(0, 0): 1})
    disk.json("boxes.json", content)
    assert read_source("auto", disk.root).classes == ("background", "foreground")


def test_run_lengths_of_another_size_are_refused(disk, content):
    content["annotations"][0]["segmentation"] = {"counts": [0, 48], "size": [8, 6]}
    write(disk, content)
    refused(r"annotation 11 has run lengths of 6x8 .* 1 is listed as", read_coco, disk.root)
    content["annotations"][0]["segmentation"]["size"] = [6, 8]  # the remedy
    write(disk, content)
    assert read_coco(disk.root).decode(disk.root / "train/_annotations.coco.json#1").all()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("images", {"height": 10**20}, "image 1 has the height .* no number of pixels"),
        ("images", {"width": "wide"}, "image 1 has the width 'wide'"),
        ("images", {"file_name": 7}, "image 1 has the file_name 7, which is no text"),
        ("images", {"id": [1]}, r"image \[1\] has the id \[1\], which is no number"),
        ("annotations", {"area": "large"}, "annotation 11 has the area 'large'"),
        ("annotations", {"segmentation": [[0, 0, float("nan"), 1, 2, 2]]}, "are no pixels"),
        ("annotations", {"segmentation": [[0, 0, 2.0**70, 1, 2, 2]]}, "are no pixels"),
        ("annotations", {"segmentation": {"counts": ["1"], "size": [6, 8]}}, "no whole numbers"),
        ("annotations", {"segmentation": {"counts": [48], "size": 6}}, "without a size"),
    ],
)
def test_numbers_that_are_none_are_named(disk, content, kind, change, message):
    content[kind][0] |= change
    write(disk, content)
    refused(rf"coco\.json: .*{message}", read_coco, disk.root)


def test_run_lengths_do_not_wrap(disk, content):
    content["annotations"][0]["segmentation"] = {"counts": [2**62] * 4 + [48], "size": [6, 8]}
    write(disk, content)
    with pytest.raises(UserError, match="do not add up"):
        read_coco(disk.root).decode(disk.root / "train/_annotations.coco.json#1")


def test_a_byte_order_mark_and_sixteen_bits(disk, content):
    write(disk, content)
    path = disk.root / "train/_annotations.coco.json"
    text = path.read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert len(read_coco(disk.root)) == 2
    path.write_bytes(text.replace("banana", "caf\xe9").encode("latin-1"))
    refused("not UTF-8", read_coco, disk.root)


def test_polygons_in_shares_of_the_image_are_seen_as_empty(disk, content):
    for item in content["annotations"]:
        item["segmentation"] = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]
    write(disk, content)
    refused(
        r"all masks \(2\) are background alone.*units \(pixels\)", read_labelled, "coco", disk.root
    )
