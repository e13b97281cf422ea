"""Files of a data set that cannot be read: refused with their name, and never waited for."""

import os

import numpy as np
import pytest

from src.data.masks import read_labelled
from src.pipelines.run_folder import data_label
from tests.data.layout import refused

READ_BY_THEIR_NAME = ("train.csv", "annotations/instances_train.json", "annotations.xml")


@pytest.fixture
def one(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 1})
    return disk


@pytest.mark.parametrize("name", [*READ_BY_THEIR_NAME, "classes.txt", "label_data_1.json"])
def test_a_broken_link(one, name):
    one.path(name).symlink_to("nowhere")
    refused(rf"{name}.* cannot be read.*: restore", read_labelled, "auto", one.root)


@pytest.mark.parametrize("name", READ_BY_THEIR_NAME)
def test_a_pipe(one, name):
    os.mkfifo(one.path(name))
    refused(f"{name} is not a file: remove it", read_labelled, "auto", one.root)


def test_a_folder_called_like_a_table(one):
    one.path("train.csv/x")
    refused(
        r"train\.csv is not a file: .* rename it if it is a folder", read_labelled, "auto", one.root
    )


def test_a_broken_link_of_an_array(disk):
    disk.image("images/1.jpg", "images/2.jpg")
    np.save(disk.path("masks/1.npy"), np.ones((6, 8), np.uint8))
    disk.path("masks/2.npy").symlink_to("nowhere")
    refused(r"2\.npy cannot be read \(No such file.*restore", read_labelled, "auto", disk.root)


def test_a_broken_link_of_labels_is_no_background(disk):
    disk.image("images/1.jpg", "images/2.jpg")
    disk.text("labels/1.txt", "0 .1 .1 .9 .1 .9 .9")
    disk.path("labels/2.txt").symlink_to("nowhere")
    refused(r"2\.txt is a broken link", read_labelled, "yolo", disk.root)


def test_a_broken_link_of_the_folder_of_masks(disk):
    disk.image("images/1.jpg")
    disk.path("masks").symlink_to("nowhere")
    refused("restore masks, a broken link", read_labelled, "auto", disk.root)


def test_a_data_folder_that_leads_to_itself_has_a_name(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert data_label(str(tmp_path / "loop")) == "loop"
