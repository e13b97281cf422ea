import pickle

import numpy as np
import pytest
from PIL import Image

from src.data.canonical import MaskSource
from src.data.sources.labels import decode_foreground
from src.data.sources.masks import Row, build_index
from src.data.sources.registry import SOURCES, detect_source, read_source
from src.script import UserError
from tests.data.layout import refused


def test_same_names_in_two_splits_get_the_split_in_front(tmp_path):
    rows = [Row("1", "a/1.jpg", split="train"), Row("1", "b/1.jpg", split="test")]
    index = build_index(tmp_path, rows, ("a", "b"), decode_foreground)
    assert index.table["id"].tolist() == ["train/1", "test/1"]
    refused(
        "names two images", build_index, tmp_path, [rows[0], rows[0]], ("a", "b"), decode_foreground
    )
    refused("no images", build_index, tmp_path, [], ("a", "b"), decode_foreground)


def test_size_is_checked(disk):
    disk.image("images/1.png")
    Image.new("L", (9, 6)).save(disk.path("masks/1.png"))
    with pytest.raises(UserError, match=r"9x6 pixels but its image .*1\.png is 8x6: give both"):
        MaskSource(disk.root, ["images/1.png"], ["masks/1.png"])[0]


def test_an_index_travels_to_workers(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 1})
    index = read_source("folders", disk.root)
    again, path = pickle.loads(pickle.dumps(index)), index.mask_path(0)
    assert np.array_equal(again.decode(path), index.decode(path))


def test_registry_names_its_mistakes(disk):
    refused("unknown", read_source, "cityscapes", disk.root)
    refused("not a folder", read_source, "voc", disk.root / "nowhere")
    assert "micro/CarDD" in SOURCES


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", "voc"),
        ("trainannot/1.png", "camvid"),
        ("train_labels/1.png", "folders"),
        ("training/A1/plant1_rgb.png", "cvppp"),
        ("CarDD_COCO/annotations/x.json", "cardd"),
        ("Ground Truth/p1.tif", "etis"),
        ("train_set/label_data_0313.json", "lanes"),
        ("train/_annotations.coco.json", "coco"),
        ("annotations/instances_val2017.json", "coco"),
        ("images/1.jpg", "folders"),
    ],
)
def test_layouts_are_recognised(disk, file, name):
    disk.text(file)
    assert detect_source(disk.root) == name
