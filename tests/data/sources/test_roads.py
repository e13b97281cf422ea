"""CurveLanes, CULane's lines and KITTI's roads, of six rows and eight columns."""

import numpy as np
import pytest
from PIL import Image

from src.data.masks import read_labelled, read_test_masks
from src.data.sources.lanes import read_lane_lines
from src.data.sources.registry import detect_source
from tests.data.layout import refused


@pytest.fixture(autouse=True)
def thin_lines(monkeypatch):
    monkeypatch.setattr("src.data.sources.lanes.LINE_WIDTH", 1)


def test_curvelanes(disk):
    down = [{"x": "2", "y": "5.0"}, {"x": "2.2", "y": "0"}]
    for split, name in (("train", "1"), ("valid", "2")):
        disk.image(f"{split}/images/{name}.jpg")
        disk.json(f"{split}/labels/{name}.lines.json", {"Lines": [down, [down[0]]]})
    disk.image("test/images/3.jpg")
    assert detect_source(disk.root) == "lane_lines"
    index = read_lane_lines(disk.root)
    assert index.table["split"].tolist() == ["test", "train", "valid"]
    mask = index.decode(index.root / "train/labels/1.lines.json")
    assert mask.sum() == 6 and mask[:, 2].all()
    assert len(read_labelled("auto", disk.root)) == 2
    assert read_test_masks("auto", disk.root).table["id"].tolist() == ["3"]


def test_culane_lines_without_masks(disk):
    for number in range(4):
        disk.image(f"driver/a.MP4/{number}.jpg")
        disk.text(f"driver/a.MP4/{number}.lines.txt", "-3.0 2 20.4 2", "1 1")
    disk.text("list/train.txt", "/driver/a.MP4/0.jpg", "/driver/a.MP4/1.jpg")
    disk.text("list/test.txt", "/driver/a.MP4/2.jpg")
    index = read_lane_lines(disk.root)
    assert index.table["split"].tolist() == ["train", "train", "test"]
    assert "in no list: 1 (driver/a.MP4/3)" in " | ".join(index.notes)
    mask = index.decode(index.root / "driver/a.MP4/0.lines.txt")
    assert mask.sum() == 8 and mask[2].all()
    disk.text("driver/a.MP4/0.lines.txt", "1 2 3")
    refused(r"0\.lines\.txt is damaged .*: mend or remove it", read_lane_lines, disk.root)


def test_kitti_roads(disk):
    disk.image("training/image_2/um_000000.png", "testing/image_2/um_000000.png")
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[2:] = 255, 0, 0
    mask[4:, 2:4] = 255, 0, 255
    for kind in ("road", "lane"):
        path = disk.path(f"training/gt_image_2/um_{kind}_000000.png")
        Image.fromarray(mask).save(path)
    assert detect_source(disk.root) == "kitti_road"
    index = read_labelled("auto", disk.root)
    drawn = index.decode(index.mask_path(0))
    assert np.bincount(drawn.ravel(), minlength=256)[[0, 1, 255]].tolist() == [28, 4, 16]
    assert "own lane, left out: 1 (um_lane_000000)" in " | ".join(index.notes)
    assert len(read_test_masks("auto", disk.root)) == 1
    disk.mask("training/gt_image_2/um_road_000000.png", {(0, 0): (0, 255, 0)})
    refused("other colours than red, magenta and black", read_labelled, "auto", disk.root)
