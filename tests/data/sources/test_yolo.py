"""YOLO's polygons: names, splits, background, boxes and damaged lines."""

import pytest

from src.data.masks import read_labelled, read_test_masks
from src.data.sources.registry import detect_source
from tests.data.layout import refused

QUARTER = "1 0 0 0.5 0 0.5 0.5 0 0.5"


def test_polygons_and_background(disk):
    disk.image("train/images/1.jpg", "train/images/2.jpg", "valid/images/3.jpg")
    disk.text("train/labels/1.txt", QUARTER)
    disk.text("valid/labels/3.txt", QUARTER, "0 0.5 0.5 1 1")  # and a box
    disk.text("data.yaml", "names: [spot, crack]")
    assert detect_source(disk.root) == "yolo"
    index = read_labelled("auto", disk.root)
    assert index.classes == ("background", "crack")
    assert index.table["split"].tolist() == ["train", "train", "valid"]
    masks = [index.decode(index.root / target) for target in index.table["target"]]
    assert [mask.sum() for mask in masks] == [12, 0, 12] and masks[0][:3, :4].all()
    assert read_labelled("lanes", disk.root).classes == ("background", "lane")


def test_a_test_folder_without_labels_is_to_be_predicted(disk):
    disk.image("train/images/1.jpg", "test/images/2.jpg", "test/images/3.jpg")
    disk.text("train/labels/1.txt", QUARTER)
    table = read_test_masks("auto", disk.root).table
    assert table["target"].tolist() == ["", ""]
    disk.text("test/labels/2.txt", QUARTER)  # then 3.jpg is background
    assert "" not in read_test_masks("auto", disk.root).table["target"].tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [("0 0.5 0.5 0.2 0.2", "1 boxes, no polygons"), ("0 0.1 0.1 0.2 0.2 0.3", "5 numbers behind"),
     ("0 10 10 20 20 30 10", "no share of a side")],
)  # fmt: skip
def test_what_is_refused(disk, line, message):
    disk.image("images/1.jpg")
    disk.text("labels/1.txt", line)
    refused(message, read_labelled, "yolo", disk.root)


def test_names_by_number_and_none(disk):
    disk.image("images/train/1.jpg")
    disk.text("labels/train/1.txt", QUARTER)
    assert read_labelled("auto", disk.root).classes == ("background", "class_1")
    disk.text("set.yaml", "names:", "  0: a", "  1: b")
    assert read_labelled("auto", disk.root).classes == ("background", "b")
