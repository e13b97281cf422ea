"""Names, folders and tables of sets as they are downloaded."""

import numpy as np
import pytest
from PIL import Image

from src.data.masks import read_labelled, read_test_masks
from tests.data.layout import refused

DOT = {(0, 0): 255}


def write(disk, *pairs):
    for image, mask in pairs:
        disk.image(image)
        if mask:
            disk.mask(mask, DOT)


def targets_of(disk, split=None):
    table = read_labelled("auto", disk.root).table
    table = table if split is None else table[table["split"] == split]
    return dict(zip(table["image"], table["target"], strict=True))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/0001TP_{}.png", "labels/0001TP_{}_P.png"),  # fast.ai's CamVid
        ("img/IMG_00{}.jpg", "masks/IMG_00{}_crackmap.png"),
        ("images/{}.jpg", "masks/tile_{}.png"),
        ("images/frame_{}.jpg", "masks/mask_{}.png"),
        ("images/scan{}_mr.jpg", "masks/scan{}.png"),
        ("stare-images/im{}.ppm", "labels-ah/im{}.ah.ppm"),
        ("Image_0{}L.jpg", "Image_0{}L_1stHO.png"),
        ("{}.bmp", "{}_anno.bmp"),
        ("train-org-img/{}.jpg", "train-label-img/{}_lab.png"),
        ("Imgs/{}.jpg", "Imgs/{}.png"),  # MSRA10K
        ("images/{}.gif", "manual1/{}.tif"),
        ("Изображения/{}.jpg", "маски/{}.png"),
        ("{}_json/img.png", "{}_json/label.png"),  # labelme_json_to_dataset
    ],
)
def test_masks_are_found(disk, image, mask):
    pairs = [(image.format(number), mask.format(number)) for number in (1, 2, 11)]
    write(disk, *pairs)
    assert targets_of(disk) == dict(pairs)


def test_an_affix_is_that_of_all_masks_and_parts_no_number(disk):
    write(disk, ("images/1.jpg", "masks/1_hair.png"), ("images/2.jpg", "masks/2_skin.png"))
    refused("no mask has the name of an image", targets_of, disk)
    for number in (1, 2):
        (disk.root / f"masks/{number}_{['hair', 'skin'][number - 1]}.png").unlink()
        disk.mask(f"masks/3{number}.png", DOT)
    refused("no mask has the name of an image", targets_of, disk)


def test_two_annotators_are_not_chosen_between(disk):
    write(disk, ("a/1.jpg", "a/1_1stHO.png"), ("a/2.jpg", "a/2_1stHO.png"))
    disk.mask("a/1_2ndHO.png", DOT)
    refused(r"two masks of 1: remove .* 1_mask_1, 1_mask_2", targets_of, disk)


def test_parts_are_joined_as_the_refusal_says(disk):
    write(disk, ("CXR/1.png", "Mask/leftMask/1.png"))
    disk.mask("Mask/rightMask/1.png", {(5, 5): 255})
    refused(r"named 1_mask_1, 1_mask_2", targets_of, disk)
    for number, side in enumerate(("left", "right"), start=1):
        (disk.root / f"Mask/{side}Mask/1.png").rename(disk.root / f"Mask/1_mask_{number}.png")
    index = read_labelled("auto", disk.root)
    assert index.decode(index.mask_path(0)).sum() == 2


def test_two_images_of_one_mask_are_named(disk):
    write(disk, ("train/A/1.png", "train/label/1.png"), ("train/B/1.png", ""))
    refused(r"may be the mask of .*A/1\.png or of .*B/1\.png", targets_of, disk)


def test_a_set_in_two_formats_is_refused_until_one_is_gone(disk):
    for form in ("png", "tiff"):
        for split in ("train", "val"):
            write(disk, (f"{form}/{split}/1.{form}", f"{form}/{split}_labels/1.{form}"))
    refused(r"one image in two formats: remove the folder tiff or png", targets_of, disk)
    for path in (disk.root / "tiff").rglob("*.tiff"):
        path.unlink()
    assert targets_of(disk) == {
        "png/train/1.png": "png/train_labels/1.png", "png/val/1.png": "png/val_labels/1.png",
    }  # fmt: skip


def test_splits_that_names_say(disk):
    write(disk, ("DUTS-TR/DUTS-TR-Image/1.jpg", "DUTS-TR/DUTS-TR-Mask/1.png"),
          ("DUTS-TE/DUTS-TE-Image/2.jpg", "DUTS-TE/DUTS-TE-Mask/2.png"))  # fmt: skip
    assert [*targets_of(disk, "train")] == ["DUTS-TR/DUTS-TR-Image/1.jpg"]
    assert len(read_test_masks("auto", disk.root)) == 1


def test_splits_that_files_names_begin_with(disk):
    write(disk, *((f"{n}_1.bmp", f"{n}_1_anno.bmp") for n in ("train", "testA", "testB")))
    assert [*targets_of(disk, "train")] == ["train_1.bmp"]
    assert len(read_test_masks("auto", disk.root)) == 2
    write(disk, ("other_1.bmp", "other_1_anno.bmp"))
    assert len(targets_of(disk)) == 4


def test_a_list_of_the_images_held_out_alone(disk):
    write(disk, *((f"images/{n}.jpg", f"labels/{n}.png") for n in range(3)))
    disk.text("valid.txt", "2.jpg")
    assert len(targets_of(disk, "train")) == 2 and len(targets_of(disk, "valid")) == 1


def test_masks_of_one_defect_in_a_test_folder(disk):
    write(disk, ("test/broken/0.png", "ground_truth/broken/0_mask.png"), ("train/good/0.png", ""))
    refused("the train split has images but no masks", targets_of, disk)


def test_pictures_of_labels_are_no_images(disk):
    write(disk, ("train/1.jpg", "train/1_segmentation.png"), ("test/2_superpixels.png", ""))
    write(disk, ("test/2.jpg", ""))
    assert len(read_test_masks("auto", disk.root)) == 1
    notes = " | ".join(read_labelled("auto", disk.root).notes)
    assert "pictures of labels, left out: 1 (2_superpixels)" in notes


@pytest.mark.parametrize("divided", ["files", "column"])
def test_tables_pair_images_and_masks(disk, divided):
    write(disk, *((f"photo/p{n}.jpg", f"drawn/q{n}.png") for n in range(3)))
    lines = [f"photo/p{n}.jpg,drawn/q{n}.png" for n in range(3)]
    if divided == "files":
        disk.text("train.csv", "image,mask", *lines[:2], "photo/gone.jpg,drawn/gone.png")
        disk.text("val.csv", "image,mask", lines[2])
    else:
        words = ("train", "train", "val")
        rows = [f"1,{line},{word}" for line, word in zip(lines, words, strict=True)]
        disk.text("metadata.csv", "id,image_path,mask_path,split", *rows)
    assert targets_of(disk, "train") == {f"photo/p{n}.jpg": f"drawn/q{n}.png" for n in (0, 1)}
    assert targets_of(disk, "valid") == {"photo/p2.jpg": "drawn/q2.png"}


def test_lists_of_windows_pair_and_divide_by_path(disk):
    write(disk, *((f"data/photo/{n}.jpg", f"data/drawn/z{n}.png") for n in range(3)))
    disk.text("train.txt", *(f"data\\photo\\{n}.jpg,data\\drawn\\z{n}.png" for n in (0, 1)))
    disk.text("val.txt", "data\\photo\\2.jpg,data\\drawn\\z2.png")
    assert targets_of(disk, "valid") == {"data/photo/2.jpg": "data/drawn/z2.png"}


def test_archives_are_named(disk):
    disk.text("train.zip", "PK")
    refused(r"1 \.zip\); unpack train\.zip first", targets_of, disk)
    disk.text("train_masks.csv", "img,rle_mask", "a.jpg,1 3")
    refused(r"unpack train\.zip first", targets_of, disk)


def test_numbers_keep_the_order_of_a_table_with_void(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 1, (0, 1): 2})
    disk.text("class_dict.csv", "name,r,g,b", "void,0,0,0", "road,9,9,9", "car,8,8,8")
    assert read_labelled("auto", disk.root).classes == ("void", "road", "car")


def test_classes_json_names_colours(disk):
    disk.image("Tile 1/images/1.jpg")
    disk.mask("Tile 1/masks/1.png", {(0, 0): (60, 16, 152), (0, 1): (132, 41, 246)})
    refused("holds colours", targets_of, disk)
    disk.json("classes.json", {"classes": [
        {"title": "Land", "color": "#000000"}, {"title": "Building", "color": "#3C1098"},
        {"title": "Road", "color": "#8429F6"},
    ]})  # fmt: skip
    index = read_labelled("auto", disk.root)
    assert index.classes == ("Land", "Building", "Road")
    mask = index.decode(index.mask_path(0))
    assert [(mask == k).sum() for k in range(3)] == [46, 1, 1]


def test_a_mask_within_the_transparency_is_named(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): (9, 8, 7), (0, 1): (1, 2, 3)})
    with Image.open(disk.root / "masks/1.png") as image:
        clear = Image.fromarray(np.eye(6, 8, dtype=np.uint8) * 255)
        Image.merge("RGBA", [*image.split(), clear]).save(disk.root / "masks/1.png")
    refused("the mask may be its transparency", targets_of, disk)


def test_voc_two_folders_down(disk):
    base = "VOC2012_train_val/VOC2012_train_val"
    for number, split in enumerate(("train", "val")):
        disk.image(f"{base}/JPEGImages/{number}.jpg")
        disk.mask(f"{base}/SegmentationClass/{number}.png", {(0, 0): 15})
        disk.text(f"{base}/ImageSets/Segmentation/{split}.txt", str(number))
    disk.text("VOC2012_test/ImageSets/Segmentation/test.txt", "9")
    index = read_labelled("auto", disk.root)
    assert index.num_classes == 21 and index.table["split"].tolist() == ["train", "valid"]
    assert "test images of another archive" in " | ".join(index.notes)


QUARTER = "0 0 0 0.5 0 0.5 0.5 0 0.5"


def test_yolo_splits_by_yaml_and_by_lists(disk):
    for place in ("a/1", "b/2", "b/3"):
        disk.image(f"images/{place}.jpg")
        disk.text(f"labels/{place}.txt", QUARTER)
    disk.text("data.yaml", "train: ../sets/x/images/a", "val: images/b", "names: [crack]")
    assert len(targets_of(disk, "train")) == 1 and len(targets_of(disk, "valid")) == 2
    disk.text("data.yaml", "train: train.txt", "val: images/gone", "names: [crack]")
    disk.text("train.txt", "./images/a/1.jpg", "./images/b/2.jpg")
    disk.text("test.txt", "./images/b/3.jpg")
    assert len(targets_of(disk)) == 2 and len(read_test_masks("auto", disk.root)) == 1


def test_lists_divide_what_json_annotates(disk):
    shape = {"label": "crack", "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon"}
    for number in range(3):
        disk.image(f"data/{number}.jpg")
        disk.json(f"data/{number}.json", {"version": "5", "flags": {}, "shapes": [shape]})
    disk.text("train.txt", "data/0.json", "data/1.jpg")
    disk.text("test.txt", "2")
    assert len(targets_of(disk, "train")) == 2 and len(read_test_masks("auto", disk.root)) == 1


@pytest.mark.parametrize("numbers", [(60, 120, 200), (1, 2, 301)])
def test_numbered_things_are_foreground_of_a_lane_run(disk, numbers):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 0})
    mask = np.zeros((6, 8), np.uint16)
    mask[0, :3] = numbers
    Image.fromarray(mask).save(disk.root / "masks/1.png")
    index = read_labelled("lanes", disk.root)
    assert index.decode(index.root / "masks/1.png").sum() == 3
    assert any("every number above 0 is read as lane" in note for note in index.notes)
