from src.data.sources.folders import read_folders
from src.data.sources.names import read_lines, read_split_lists
from tests.data.layout import refused


def test_split_lists_take_ids_names_and_paths(disk):
    disk.text("train.txt", "001", "imgs/002.jpg x")
    disk.text("val.txt", "a.b_003", "/data/set/drive 1/004.jpg")
    known = ("001", "002", "a.b_003", "drive 1/004")
    splits = dict.fromkeys(known[:2], "train") | dict.fromkeys(known[2:], "valid")
    assert read_split_lists(disk.root, known) == splits
    disk.text("test.txt", "002.jpg")
    refused("002 is in train", read_split_lists, disk.root, known)


def test_blanks_in_names_do_not_cut_them(disk):
    for number in range(3):
        disk.image(f"images/road {number}.jpg")
        disk.mask(f"masks/road {number}.png", {(0, 0): 1})
    disk.text("train.txt", "road 0.jpg", "images/road 1.jpg masks/road 1.png")
    disk.text("val.txt", "road 2")
    assert read_folders(disk.root).table["split"].tolist() == ["train", "train", "valid"]


def test_lists_that_name_no_image_are_refused(disk):
    disk.text("train.txt", "left_1")
    refused(
        r"left_1 for instance, where images are like a\.b", read_split_lists, disk.root, ["a.b"]
    )


def test_lists_of_bare_names_of_images_in_folders(disk):
    """OpenEarthMap: aachen_1.tif for aachen/images/aachen_1.tif."""
    disk.text("train.txt", "aachen_1.tif", "gone_7.tif")
    disk.text("val.txt", "accra_2.tif")
    splits = {"aachen/aachen_1": "train", "accra/accra_2": "valid"}
    assert read_split_lists(disk.root, [*splits, "accra/accra_3"]) == splits
    refused(
        "the lists name none of the images",
        read_split_lists,
        disk.root,
        ["a/aachen_1", "b/aachen_1"],
    )


def test_the_first_word_of_a_line(disk):
    disk.text("a.txt", "2007_1  1", "", "2007_2 -1")
    assert [line.split()[0] for line in read_lines(disk.root / "a.txt")] == ["2007_1", "2007_2"]
    assert read_lines(disk.root / "b.txt") == []
