"""Each source on a tiny copy of its layout: rows, labels, groups, and what it says is missing."""

import numpy as np
import pytest
from scipy.io import savemat

from src.data.masks import read_labelled
from src.data.sources.folders import read_folders
from src.data.sources.micro_sets import read_cfd, read_cvppp, read_etis, read_voc, sequence_of
from src.data.sources.registry import detect_source, list_datasets, read_micro, read_source
from src.data.sources.street_sets import COLOURS, read_camvid
from tests.data.layout import refused


def rows_of(index, *columns):
    return index.table[list(columns)].values.tolist()


def labels_of(index, row=0):
    mask = index.decode(index.mask_path(row))
    return sorted(np.unique(mask).tolist())


def notes_of(index):
    return " | ".join(index.notes)


def test_voc(disk):
    base = "VOCdevkit/VOC2012"
    disk.image(f"{base}/JPEGImages/2007_1.jpg", f"{base}/JPEGImages/2007_2.jpg")
    disk.mask(f"{base}/SegmentationClass/2007_1.png", {(0, 0): 20, (1, 1): 255}, palette=True)
    disk.text(f"{base}/ImageSets/Segmentation/train.txt", "2007_1", "2007_9")
    disk.text(f"{base}/ImageSets/Segmentation/test.txt", "2007_2")
    index = read_voc(disk.root)
    assert rows_of(index, "id", "target", "split") == [
        ["2007_1", "SegmentationClass/2007_1.png", "train"],
        ["2007_2", "", "test"],
    ]
    assert labels_of(index) == [0, 20, 255]
    assert (index.num_classes, index.ignore_index) == (21, 255)
    assert "1 found, 1464 known" in notes_of(index) and "2007_9" in notes_of(index)
    disk.mask(f"{base}/SegmentationClass/2007_1.png", {(0, 0): 21}, palette=True)
    refused("unknown labels 21", labels_of, index)


def test_etis_original_and_folders(disk):
    disk.image("ETIS-LaribPolypDB/6.tif", "ETIS-LaribPolypDB/7.tif", "ETIS-LaribPolypDB/8.tif")
    for number in (6, 7):
        disk.mask(f"Ground Truth/p{number}.tif", {(2, 2): 255})
    index = read_etis(disk.root)
    assert rows_of(index, "id", "group", "split") == [["6", "seq001", ""], ["7", "seq007", ""]]
    assert labels_of(index) == [0, 1] and index.ignore_index is None
    assert "3 found, 196 known" in notes_of(index) and "(8)" in notes_of(index)
    disk.image("images/12.png")
    disk.mask("masks/12.png", {(0, 0): 255})
    assert rows_of(read_etis(disk.root), "id", "group") == [["12", "seq007"]]


def test_etis_sequences_cover_every_frame():
    groups = [sequence_of(f"ETIS_{number}") for number in range(1, 197)]
    assert len(set(groups)) == 29 and "" not in groups
    assert groups == sorted(groups)
    assert sequence_of("197") == sequence_of("x") == ""


def test_cvppp(disk):
    for plant in ("A1/plant001", "A1/plant002", "A4/plant001"):
        disk.image(f"training/{plant}_rgb.png")
    disk.mask("training/A1/plant001_label.png", {(0, 0): 1, (0, 1): 9}, palette=True)
    disk.mask("training/A1/plant001_fg.png", {(0, 0): 1})
    disk.mask("training/A4/plant001_fg.png", {(5, 5): 1})
    disk.image("testing/A1/plant003_rgb.png")
    index = read_cvppp(disk.root)
    assert rows_of(index, "id", "split") == [
        ["A1_plant001", ""],
        ["A4_plant001", ""],
        ["A1_plant003", "test"],
    ]
    assert index.decode(index.mask_path(0)).sum() == 2  # label > 0, not fg
    assert "plant002" in notes_of(index) and "A2, A3" in notes_of(index)
    assert "A1 labelled: 1 found, 128 known" in notes_of(index)


def write_cracks(path, *labels):
    segmentation = np.ones((6, 8), np.uint8)
    segmentation[0, : len(labels)] = labels
    path.parent.mkdir(exist_ok=True)
    savemat(path, {"groundTruth": {"Segmentation": segmentation, "Boundaries": segmentation * 0}})


def test_cfd_crack_is_two_and_nothing_else(disk):
    disk.image(*(f"image/00{n}.jpg" for n in (1, 2, 3)))
    write_cracks(disk.path("groundTruth/001.mat"), 2, 2, 3, 4)
    write_cracks(disk.path("groundTruth/002.mat"), 2)
    disk.text("train.txt", "001")
    disk.text("val.txt", "002")
    disk.text("test.txt", "003")
    index = read_cfd(disk.root)
    assert rows_of(index, "id", "split") == [["001", "train"], ["002", "valid"], ["003", "test"]]
    assert index.decode(index.root / "groundTruth/001.mat").sum() == 2
    assert index.take("valid").table["id"].tolist() == ["002"]
    assert "3 found, 118 known" in notes_of(index)
    disk.text("groundTruth/001.mat", "no matlab")
    refused(r"001\.mat", labels_of, index)


def test_cfd_without_lists_is_undivided(disk):
    disk.image("image/001.jpg", "image/002.jpg")
    write_cracks(disk.path("groundTruth/001.mat"), 2)
    index = read_cfd(disk.root)
    assert rows_of(index, "id", "split") == [["001", ""]]
    assert "without a mask, left out: 1 (002)" in notes_of(index)


def test_camvid_in_segnet_layout(disk):
    disk.image("train/0001TP_1.png", "val/0016E5_1.jpg", "test/Seq05VD_f1.jpg")
    disk.mask("trainannot/0001TP_1.png", {(0, 0): 11, (0, 1): 10})
    disk.mask("valannot/0016E5_1.png", {(0, 0): 12})
    index = read_camvid(disk.root)
    assert rows_of(index, "group", "split") == [
        ["0001TP", "train"],
        ["0016E5", "valid"],
        ["Seq05VD", "test"],
    ]
    assert (index.num_classes, index.ignore_index) == (11, 11)
    assert labels_of(index) == [0, 10, 11]
    refused("unknown labels 12", labels_of, index, 1)


def test_camvid_in_colours(disk):
    disk.image("701_StillsRaw_full/0006R0_f1.png")
    colours = {(row, column): (128, 128, 128) for row in range(6) for column in range(8)}
    colours |= {(0, 0): COLOURS["LaneMkgsDriv"][:3], (0, 1): (0, 0, 0)}
    disk.mask("LabeledApproved_full/0006R0_f1_L.png", colours)
    index = read_camvid(disk.root)
    assert labels_of(index) == [0, 3, 11]  # sky, road, void
    disk.mask("LabeledApproved_full/0006R0_f1_L.png", {**colours, (3, 3): (1, 2, 3)})
    refused("no CamVid colour", labels_of, index)


def test_labels_of_camvids_names_in_other_colours_are_folders(disk):
    disk.image("train/1.png", "train/2.png", "test/3.png")
    disk.mask("train_labels/1_L.png", {(0, 0): (200, 0, 0), (0, 1): (0, 0, 200)})
    disk.mask("train_labels/2_L.png", {(0, 0): (0, 0, 200)})
    disk.text("class_dict.csv", "name,r,g,b", "none,0,0,0", "red,200,0,0", "blue,0,0,200")
    assert detect_source(disk.root) == "folders"
    assert labels_of(read_labelled("auto", disk.root)) == [0, 1, 2]
    disk.mask("train_labels/1_L.png", dict.fromkeys(np.ndindex(6, 8), (128, 128, 128)))
    assert detect_source(disk.root) == "camvid"


def test_camvid_has_32_colours_and_11_classes():
    assert len(COLOURS) == len({colour[:3] for colour in COLOURS.values()}) == 32
    assert {label for *_, label in COLOURS.values()} == set(range(12))


def test_folders_with_splits_and_index_masks(disk):
    disk.image("train/images/a.jpg", "train/images/b.jpg", "val/images/c.jpg", "test/images/a.jpg")
    disk.mask("train/masks/a.png", {(0, 0): 3, (1, 1): 255})
    disk.mask("train/masks/z.png", {})
    disk.mask("val/masks/c.png", {(0, 0): 1})
    index = read_folders(disk.root)
    assert rows_of(index, "id", "split") == [
        ["train/a", "train"],
        ["valid/c", "valid"],
        ["test/a", "test"],
    ]
    assert (index.num_classes, index.ignore_index) == (4, 255)
    assert labels_of(index) == [0, 3, 255]
    assert "without a mask, left out: 1 (b)" in notes_of(index)
    assert "without an image: 1 (z)" in notes_of(index)


def test_folders_binary_npy_and_lists(disk):
    disk.image("images/f_1.jpg", "images/f_2.jpg", "images/f_9.jpg")
    disk.mask("masks/f_1.png", {(0, 0): 255})
    np.save(disk.path("masks/f_2.npy"), np.eye(6, 8, dtype=np.int64))
    disk.text("train.txt", "f_1", "f_2", "f_5")
    disk.text("test.txt", "f_9")
    index = read_folders(disk.root, foreground=True, frames=True)
    assert rows_of(index, "group", "split") == [["f_1", "train"], ["f_1", "train"], ["f_9", "test"]]
    assert labels_of(index, 0) == labels_of(index, 1) == [0, 1]
    assert "listed but missing: 1 (f_5)" in notes_of(index)


def test_folders_tell_binary_from_index_and_name_classes(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 255})
    assert read_folders(disk.root).classes == ("background", "foreground")
    assert read_folders(disk.root).ignore_index is None
    disk.text("classes.txt", "sky", "old road", "tree")
    disk.mask("masks/1.png", {(0, 0): 2})
    index = read_folders(disk.root)
    assert index.classes == ("sky", "old road", "tree") and labels_of(index) == [0, 2]
    disk.mask("masks/1.png", {(0, 0): 3})
    refused("unknown labels 3", labels_of, index)


def test_folders_refuse_what_they_do_not_know(disk):
    refused("images/", read_folders, disk.root)
    disk.image("images/1.jpg", "images/1.png")
    refused("twice", read_folders, disk.root)


def test_micro_layout(disk):
    disk.image("ETIS/train/images/ETIS_7.jpg", "ETIS/test/images/ETIS_8.jpg")
    disk.mask("ETIS/train/masks/ETIS_7.png", {(0, 0): 1})
    disk.image("VOC/train/images/v.jpg")
    disk.mask("VOC/train/masks/v.png", {(0, 0): 20})
    etis, voc = read_micro(disk.root, "ETIS"), read_micro(disk.root, "VOC")
    assert rows_of(etis, "id", "group", "split") == [
        ["ETIS_7", "seq007", "train"],
        ["ETIS_8", "seq007", "test"],
    ]
    assert (etis.num_classes, voc.num_classes) == (2, 21)
    assert labels_of(voc) == [0, 20]
    assert "2 found, 196 known" in notes_of(etis)
    assert list_datasets(disk.root) == ("VOC", "ETIS")
    refused("CFD is missing", read_micro, disk.root, "CFD")


def test_micro_reads_the_original_layout_too(disk):
    disk.image("CFD/image/001.jpg")
    write_cracks(disk.path("CFD/groundTruth/001.mat"), 2)
    assert labels_of(read_micro(disk.root, "CFD")) == [0, 1]


@pytest.mark.parametrize(
    ("folders", "said"),
    [(("setA/", "setB/"), "setA (2), setB (2) images"), (("", "old/"), ". (2), old (2) images")],
)
def test_sets_below_the_folder_that_was_named_are_counted_aloud(disk, folders, said):
    for name in folders:
        for number in range(2):
            disk.image(f"{name}images/{number}.jpg")
            disk.mask(f"{name}masks/{number}.png", {(0, 0): 1})
    index = read_source("auto", disk.root)
    assert len(index) == 4 and "2 folders with masks of their own" in notes_of(index)
    assert said in notes_of(index)


@pytest.mark.parametrize("pattern", ["{0}/{1}/0.jpg", "{1}/{0}/bonn/0.jpg", "aachen/{1}/{0}/0.jpg"])
def test_folders_of_one_set_are_no_sets(disk, pattern):
    for split in ("train", "val"):
        disk.image(pattern.format(split, "images"))
        disk.mask(pattern.format(split, "masks").replace(".jpg", ".png"), {(0, 0): 1})
    assert "masks of their own" not in notes_of(read_source("folders", disk.root))
