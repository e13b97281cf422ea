"""labelme's JSON beside photographs."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from src.data.sources.lanes import read_lanes
from src.data.sources.registry import detect_source, read_source
from src.script import UserError
from tests.data.layout import refused


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
    masks = [index.decode(index.root / target) for target in index.table["target"]]
    assert [(m == 1).sum() for m in masks] == [6, 12, 0]  # a circle of 2 px: 12.57 of area
    assert (masks[0] == 2).sum() == 4
    assert "which have no area: left out: 1 (2.json)" in " | ".join(index.notes)
    assert read_lanes(disk.root).classes == ("background", "lane")


def test_masks_are_shapes_and_what_was_drawn_on_another_size_is_refused(disk):
    write(disk, "1", ("dent", "mask", [[4, 1], [6, 2]]))
    content = json.loads((disk.root / "train/1.json").read_text())
    data = io.BytesIO()
    Image.fromarray(np.array([[1, 1, 0], [0, 1, 1]], np.uint8)).save(data, "PNG")
    content["shapes"][0]["mask"] = base64.b64encode(data.getvalue()).decode()
    unsaid = ({}, {"imageHeight": "6", "imageWidth": "8"}, {"imageHeight": -1, "imageWidth": -1})
    for sides in (*unsaid, {"imageHeight": 6, "imageWidth": 8}):
        disk.json("train/1.json", content | sides)
        index = read_source("auto", disk.root)
        mask = index.decode(index.mask_path(0))
        assert np.argwhere(mask).tolist() == [[1, 4], [1, 5], [2, 5], [2, 6]]
    disk.json("train/1.json", content | {"imageHeight": 12, "imageWidth": 16})
    refused("1.json is 16x12 pixels but its image .* is 8x6", read_source, "auto", disk.root)
    content["shapes"][0]["points"] = []
    disk.json("train/1.json", content)
    refused("1.json: shape 1 is damaged", read_source, "auto", disk.root)


def test_a_photograph_is_found_by_imagepath(disk):
    write(disk, "1", ("dent", "rectangle", [[4, 1], [7, 3]]), image="..\\images\\photo.jpg")
    (disk.root / "train/1.jpg").unlink()
    refused(r"1\.json: no photograph of it lies below", read_source, "labelme", disk.root)
    disk.image("images/photo.jpg")
    assert read_source("labelme", disk.root).table["image"].tolist() == ["images/photo.jpg"]


@pytest.mark.parametrize("points", [[[0, 0], [1], [2, 2]], [[0, 0], ["a", 1], [2, 2]], None])
def test_damage_is_named(disk, points):
    write(disk, "1", ("dent", "polygon", points))
    refused(r"1\.json: shape 1 is damaged", read_source, "labelme", disk.root)


def test_nothing_drawn_is_refused(disk):
    write(disk, "1")
    refused(r"no polygon is drawn in 1\.json", read_source, "auto", disk.root)


def test_json_of_something_else_is_no_annotation(disk):
    disk.image("images/1.jpg")
    disk.json("images/meta.json", {"version": 1, "info": {}})
    disk.json("info.json", {"info": {}, "images": []})
    disk.json("list.json", [{"a": 1}])
    assert detect_source(disk.root) == "folders"


def task(image, *items):
    result = [{"type": kind, "value": {kind: ["car"], **value}} for kind, value in items]
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": result}]}


def test_photographs_within_are_written_out_by_the_line_that_is_named(disk):
    write(disk, "1", ("dent", "rectangle", [[4, 1], [7, 3]]))
    content = json.loads((disk.root / "train/1.json").read_text())
    content["imageData"] = base64.b64encode((disk.root / "train/1.jpg").read_bytes()).decode()
    (disk.root / "train/1.jpg").unlink()
    disk.json("train/1.json", content)
    with pytest.raises(UserError, match=r"holds its photograph within \(imageData\)") as caught:
        read_source("auto", disk.root)
    line = str(caught.value).rpartition("\n")[2]
    exec(line.removeprefix('python -c "').removesuffix('"'))
    index = read_source("auto", disk.root)
    assert index.decode(index.mask_path(0)).sum() == 6


# One run of three numbers 0, one of two RGBA pixels that are drawn, and numbers one by one.
HEAD = f"{6 * 8 * 4:032b}" + f"{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 9))


def pack(*runs):
    """Runs of (width's place and bits, numbers that are equal or not)."""
    bits = HEAD
    for place, width, numbers in runs:
        equal = len(set(numbers)) == 1
        bits += str(int(equal)) + f"{place:02b}" + f"{len(numbers) - 1:0{width}b}"
        bits += "".join(f"{number:08b}" for number in (numbers[:1] if equal else numbers))
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def test_label_studio_brushes(disk):
    disk.image("1.jpg")
    # pixels (0, 2) and (0, 3) are 255 in all four, (0, 4) has 9 as its alpha, the rest is 0
    data = pack((0, 3, [0] * 8), (1, 4, [255] * 8), (0, 3, [1, 2, 3, 9]), (2, 8, [0] * 172))
    item = {"type": "brushlabels", "original_width": 8, "original_height": 6,
            "value": {"brushlabels": ["car"], "format": "rle", "rle": data}}  # fmt: skip
    task = {"id": 1, "data": {"image": "1.jpg"}, "annotations": [{"result": [item]}]}
    disk.json("p.json", [task])
    index = read_source("auto", disk.root)
    mask = index.decode(index.mask_path(0))
    assert mask.sum() == 3 and mask[0, 2:5].all()
    item["original_width"] = 9
    disk.json("p.json", [task])
    refused(
        r"task 1 is damaged .*a brush of 48 pixels on an image of 9", read_source, "auto", disk.root
    )


def test_label_studio_draws_in_percent(disk):
    disk.image("images/1f2e-p 1.jpg", "p2.jpg", "images/p3.jpg")
    half = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]]}
    box = {"x": 50, "y": 50, "width": 25, "height": 50}
    tasks = [
        task("/data/upload/3/1f2e-p%201.jpg", ("polygonlabels", half), ("choices", {})),
        task("/data/upload/3/9a9a-p2.jpg", ("rectanglelabels", box), ("brushlabels", {"rle": []})),
        task("/data/local-files/?d=set/images/p3.jpg"),
    ]
    disk.json("project-1.json", tasks)
    index = read_source("auto", disk.root)
    assert index.classes == ("background", "car")
    assert [index.decode(index.root / target).sum() for target in index.table["target"]] == [
        12,
        6,
        0,
    ]
    assert read_lanes(disk.root).classes == ("background", "lane")
    disk.json("project-1.json", [*tasks, {"data": {}, "annotations": []}])
    notes = read_source("labelstudio", disk.root).notes
    assert "tasks without annotations, left out: 1 (project-1.json, task 4)" in notes
    disk.json("project-1.json", [*tasks, {"data": {}, "annotations": [{"result": []}]}])
    refused(r"project-1\.json: task 4 is damaged", read_source, "labelstudio", disk.root)
