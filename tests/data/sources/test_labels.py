"""What the values of plain masks are taken for."""

import cv2
import numpy as np
import pytest

from src.data.masks import read_labelled, read_test_masks
from src.data.sources.folders import read_folders
from src.data.sources.labels import decode_foreground
from tests.data.layout import refused


def write(disk, *masks):
    """Write one image and mask for each list of values."""
    for number, values in enumerate(masks):
        disk.image(f"images/{number}.jpg")
        pixels = np.zeros((6, 8), np.uint16 if max(values) > 255 else np.uint8)
        pixels.flat[: len(values)] = values
        cv2.imwrite(str(disk.path(f"masks/{number}.png")), pixels)


def labels_of(index):
    return [
        np.unique(index.decode(index.root / target)).tolist() for target in index.table["target"]
    ]


@pytest.mark.parametrize("value", [1, 2, 38, 128, 254, 255, 300])
def test_zero_and_one_other_value_are_background_and_foreground(disk, value):
    write(disk, [value, value], [value], [0])
    index = read_folders(disk.root)
    assert (index.classes, index.ignore_index) == (("background", "foreground"), None)
    assert labels_of(index) == [[0, 1], [0, 1], [0]]
    assert index.decode(index.root / "masks/0.png").sum() == 2


def test_two_names_leave_two_values_binary(disk):
    write(disk, [3])
    disk.text("classes.txt", "road", "car")
    index = read_folders(disk.root)
    assert index.classes == ("road", "car") and labels_of(index) == [[0, 1]]


@pytest.mark.parametrize("values", [[1, 2, 3], [1, 2, 255]])
def test_two_names_make_no_soft_edges_of_numbers(disk, values):
    write(disk, [1], values)
    disk.text("classes.txt", "road", "car")
    refused(r"1\.png holds unknown labels 2", labels_of, read_folders(disk.root))


def test_another_value_than_the_two_is_refused_where_it_is_read(disk):
    write(disk, *[[5]] * 70)
    index = read_folders(disk.root)
    write(disk, [5], [6])
    refused(r"1\.png holds 6 where other masks hold 0 and 5", labels_of, index)


def test_masks_of_either_form_in_one_set_are_never_void(disk):
    write(disk, [1, 1], [255], [0])
    index = read_folders(disk.root)
    assert index.ignore_index is None and labels_of(index) == [[0, 1], [0, 1], [0]]
    assert any("both are read as foreground" in note for note in index.notes)


def test_class_numbers_with_void_stay(disk):
    write(disk, [1, 255], [255], [1])  # one mask holds both: 255 is no second foreground
    index = read_folders(disk.root)
    assert (index.num_classes, index.ignore_index) == (2, 255)
    assert labels_of(index) == [[0, 1, 255], [0, 255], [0, 1]]
    write(disk, [1, 2, 4, 255], [255, 2], [1])
    index = read_folders(disk.root)
    assert (index.num_classes, index.ignore_index) == (5, 255)


@pytest.mark.parametrize(
    "values",
    [
        [128, 255],
        [28, 56, 85, 113, 141, 170, 198, 227, 255],
        [50, 100, 150],
        list(range(4, 252, 6)),
    ],
    ids=["trimap", "blurred", "spread", "many"],
)
def test_greys_that_are_no_class_numbers_are_refused(disk, values):
    write(disk, [0], values, [5 * v % 256 for v in values])
    refused(r"masks hold 0, .*masks/[12]\.png holds .*classes\.txt", read_folders, disk.root)
    disk.text("classes.txt", "road", "crack")  # the remedy
    assert all(set(labels) <= {0, 1} for labels in labels_of(read_folders(disk.root)))


def test_more_values_than_classes_are_refused(disk):
    disk.image("images/1.jpg")
    np.save(disk.path("masks/1.npy"), np.arange(200).reshape(10, 20))
    refused(r"name every label in classes\.txt", read_folders, disk.root)


def test_two_class_masks_in_either_form(disk):
    disk.mask("soft.png", {(0, 0): 255, (0, 1): 130, (0, 2): 120})
    disk.mask("index.png", {(0, 0): 1})
    disk.mask("odd.png", {(0, 0): 7})
    assert decode_foreground(disk.root / "soft.png").sum() == 2
    assert decode_foreground(disk.root / "index.png").sum() == 1
    refused("reaches 7", decode_foreground, disk.root / "odd.png")


def test_labels_with_void_stay_labels(tmp_path):
    path = tmp_path / "m.png"
    labels = np.array([[0, 1, 255, 1]], np.uint8)
    cv2.imwrite(str(path), labels)
    assert np.array_equal(decode_foreground(path), labels)
    cv2.imwrite(str(path), np.array([[0, 1, 200, 255]], np.uint8))  # soft edges
    assert np.array_equal(decode_foreground(path), [[0, 0, 1, 1]])


def draw(disk, *values, name="masks/1.png"):
    """Write an image and a mask of 8 x 48 pixels with a bar of 2 pixels for each value."""
    mask = np.zeros((8, 48), np.uint8)
    for number, value in enumerate(values):
        mask[:, 6 * number + 2 : 6 * number + 4] = value
    cv2.imwrite(str(disk.path(name)), mask)
    disk.image(name.replace("masks", "images").replace("png", "jpg"))


@pytest.mark.parametrize(
    ("values", "void"),
    [
        ((1, 2, 3, 4), False),
        ((60, 120, 180, 240), False),
        ((64, 128, 191, 255), False),
        ((128, 255), False),
        ((100, 200), False),
        ((1, 11, 13, 255), True),  # classes of Cityscapes
        ((1, 2, 255), True),
    ],
)
def test_every_number_of_a_lane_is_lane(disk, values, void):
    draw(disk, *values)
    index = read_labelled("lanes", disk.root)
    said = f"every number above 0 is read as lane{' and 255 as void' * void}"
    assert any(note.endswith(said) for note in index.notes)
    labels = index.decode(index.root / "masks/1.png")
    assert (labels == 1).sum() == 16 * (len(values) - void)
    assert (labels == 255).sum() == 16 * void


def test_soft_edges_are_cut_aloud(disk):
    mask = np.zeros((8, 48), np.uint8)
    mask[:, 20:25] = (64, 191, 255, 128, 64)
    cv2.imwrite(str(disk.path("masks/1.png")), mask)
    cv2.imwrite(str(disk.path("masks/2.png")), np.minimum(mask, 100))  # an edge alone
    disk.image("images/1.jpg", "images/2.jpg")
    index = read_labelled("lanes", disk.root)
    assert any(
        "greys, as soft edges do: from 128 on they are read as lane" in n for n in index.notes
    )
    assert [index.decode(index.mask_path(row)).sum() for row in (0, 1)] == [24, 0]


def test_numbers_in_few_of_many_masks_are_found(disk):
    for number in range(70):
        draw(disk, *((1, 2) if number == 1 else ()), name=f"masks/{number:02}.png")
    index = read_labelled("lanes", disk.root)
    assert index.decode(index.root / "masks/01.png").sum() == 32


@pytest.mark.parametrize("source", ["folders", "lanes"])
def test_a_foreground_that_is_most_of_the_picture_is_said(disk, source):
    for number in range(4):
        disk.image(f"images/{number}.jpg")
        disk.mask(f"masks/{number}.png", {(number, 0): 255})
    assert not any("inverted" in note for note in read_labelled(source, disk.root).notes)
    for number in range(3):
        path = disk.root / f"masks/{number}.png"
        cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert any(
        "covers 98% of the picture in 3 of 4 masks; if the masks are inverted" in note
        for note in read_labelled(source, disk.root).notes
    )
    for folder in ("images", "masks"):
        (disk.root / folder).rename(disk.path(f"test/{folder}"))
    assert any("inverted" in note for note in read_test_masks(source, disk.root).notes)
