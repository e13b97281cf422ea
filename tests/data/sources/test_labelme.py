"""labelme's JSON beside photographs."""

import pytest

from src.data.sources.lanes import read_lanes
from src.data.sources.registry import read_source
from src.script import UserError


def write(disk, name, *shapes, image="beside.jpg", folder="train"):
    disk.image(f"{folder}/{name}.jpg")
    content = {"version": "5.4.1", "flags": {}, "imagePath": image, "imageData": None}
    content["shapes"] = [
        {"label": label, "points": points, "shape_type": kind} for label, kind, points in shapes
    ]
    disk.json(f"{folder}/{name}.json", content)


def test_shapes_are_drawn_and_labels_are_classes(disk):
    square = [[0, 0], [2, 0], [2, 2], [0, 2]]
    write(disk, "1", ("scratch", "polygon", square), ("dent", "rectangle", [[4, 1], [7, 3]]))
    write(disk, "2", ("dent", "circle", [[4, 3], [6, 3]]), ("dent", "line", [[0, 0], [5, 5]]))
    write(disk, "3", folder="val")
    index = read_source("auto", disk.root)
    assert index.classes == ("background", "dent", "scratch")
    assert index.table["split"].tolist() == ["train", "train", "valid"]
    masks = [index.read_mask(target, (6, 8)) for target in index.table["target"]]
    assert [(m == 1).sum() for m in masks] == [6, 12, 0]  # a circle of 2 px: 12.57 of area
    assert (masks[0] == 2).sum() == 4
    assert "which have no area: left out: 1 (2.json)" in " | ".join(index.notes)
    assert read_lanes(disk.root).classes == ("background", "lane")


def test_a_photograph_is_found_by_imagepath(disk):
    write(disk, "1", ("dent", "rectangle", [[4, 1], [7, 3]]), image="..\\images\\photo.jpg")
    (disk.root / "train/1.jpg").unlink()
    with pytest.raises(UserError, match=r"1\.json has no photograph beside it"):
        read_source("labelme", disk.root)
    disk.image("images/photo.jpg")
    assert read_source("labelme", disk.root).table["image"].tolist() == ["images/photo.jpg"]


@pytest.mark.parametrize("points", [[[0, 0], [1], [2, 2]], [[0, 0], ["a", 1], [2, 2]], None])
def test_damage_is_named(disk, points):
    write(disk, "1", ("dent", "polygon", points))
    with pytest.raises(UserError, match=r"1\.json: shape 1 is damaged"):
        read_source("labelme", disk.root)


def test_nothing_drawn_is_refused(disk):
    write(disk, "1")
    with pytest.raises(UserError, match="no labelme JSON with a polygon"):
        read_source("auto", disk.root)
