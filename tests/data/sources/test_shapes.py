"""Sources whose masks are drawn: COCO polygons and run lengths, TuSimple polylines."""

import numpy as np

from src.data.sources.coco import fill_polygon, rasterise
from src.data.sources.lanes import read_lanes
from src.data.sources.micro_sets import read_cardd
from tests.data.layout import refused


def test_a_polygon_holds_the_pixels_whose_centres_it_holds():
    square = np.array([[1, 1], [4, 1], [4, 3], [1, 3]], float)
    mask = fill_polygon(square, 6, 8)
    assert mask.sum() == 6 and mask[1:3, 1:4].all()
    assert not fill_polygon(square + 0.6, 6, 8)[1].any()
    triangle = fill_polygon(np.array([[0, 0], [6, 0], [0, 6]], float), 6, 6)
    assert triangle.sum(1).tolist() == [5, 4, 3, 2, 1, 0]  # x + y < 6 at centres (x + .5, y + .5)


def test_a_polygon_is_cut_at_the_frame_and_holes_stay_open():
    assert fill_polygon(np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]], float), 6, 8).all()
    there_and_back = [
        [0, 0],
        [6, 0],
        [6, 6],
        [0, 6],
        [0, 0],
        [2, 2],
        [4, 2],
        [4, 4],
        [2, 4],
        [2, 2],
    ]
    ring = fill_polygon(np.array(there_and_back, float), 6, 6)
    assert ring.sum() == 32 and not ring[2:4, 2:4].any()


def test_run_lengths_go_down_the_columns():
    mask = rasterise({"counts": [2, 3, 1], "size": [2, 3]}, 2, 3)
    assert mask.tolist() == [[False, True, True], [False, True, False]]
    refused("add up", rasterise, {"counts": [2, 3], "size": [2, 3]}, 2, 3)


def pack(counts):
    """COCO's compression: 5 bits a character, from the fourth count on as differences."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            code, value = value & 31, value >> 5
            done = value == (-1 if code & 16 else 0)
            text += chr((code if done else code | 32) + 48)
            if done:
                break
    return text


def test_compressed_run_lengths():
    counts = [5, 100, 3, 2000, 1, 40, 351]
    mask = rasterise({"counts": pack(counts), "size": [50, 50]}, 50, 50)
    assert np.array_equal(mask, rasterise({"counts": counts}, 50, 50))
    # 0, 2, 2, then 0 more than the 2 two places before, then 3 more than the other 2
    short = rasterise({"counts": "02203", "size": [1, 11]}, 1, 11)
    assert short.astype(int).tolist() == [[1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]]


def write_cardd(disk, category="dent"):
    disk.image("CarDD_COCO/train2017/1.jpg", "CarDD_COCO/train2017/2.jpg")
    boxes = [[0, 0, 4, 0, 4, 4, 0, 4]], [[2, 2, 3, 2, 3, 3, 2, 3]]
    shapes = [
        {"image_id": 1, "category_id": 7, "segmentation": boxes[1], "area": 1},
        {"image_id": 1, "category_id": 5, "segmentation": boxes[0], "area": 16},
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 6, "width": 8} for n in (1, 2, 3)]
    content = {
        "images": images,
        "annotations": shapes,
        "categories": [{"id": 5, "name": category}, {"id": 7, "name": "scratch"}],
    }
    disk.json("CarDD_COCO/annotations/instances_train2017.json", content)


def test_cardd_draws_small_damage_over_large(disk):
    write_cardd(disk)
    index = read_cardd(disk.root)
    mask = index.decode(index.mask_path(0))
    assert mask[2, 2] == 2 and (mask == 1).sum() == 15 and mask.sum() == 17
    assert not index.decode(index.mask_path(1)).any()  # nothing annotated
    assert index.num_classes == 7
    assert any("3.jpg" in note for note in index.notes)
    assert any("train: 2 found, 2816 known" in note for note in index.notes)
    binary = read_cardd(disk.root, binary=True)
    assert binary.classes == ("background", "damage")
    assert binary.decode(binary.mask_path(0)).sum() == 16


def test_cardd_refuses_other_sets(disk):
    refused("CarDD_COCO", read_cardd, disk.root)
    write_cardd(disk, category="banana")
    refused("banana", read_cardd, disk.root)
    disk.json("CarDD_COCO/annotations/instances_train2017.json", {"images": []})
    refused("lacks annotations", read_cardd, disk.root)


def test_tusimple_draws_lanes_and_groups_neighbouring_clips(disk, monkeypatch):
    monkeypatch.setattr("src.data.sources.lanes.LINE_WIDTH", 1)
    clips = [f"clips/0313-1/{clip}/20.jpg" for clip in (60, 120, 6000)]
    disk.image(*clips)
    lines = [
        f'{{"lanes": [[-2, 3, 3], [-2, -2, 6]], "h_samples": [0, 2, 4], "raw_file": "{clip}"}}'
        for clip in [*clips, "clips/0313-1/9/20.jpg"]
    ]
    disk.text("label_data_0313.json", *lines)
    index = read_lanes(disk.root)
    table = index.table
    assert table["id"].tolist() == ["0313-1/60/20", "0313-1/120/20", "0313-1/6000/20"]
    assert table["group"].nunique() == 3 and "one drive alone" in index.notes[-1]
    mask = index.decode(index.root / table["target"].iat[0])
    assert np.argwhere(mask).tolist() == [[2, 3], [3, 3], [4, 3]]  # one point is no line
    assert any("0313-1/9/20.jpg" in note for note in index.notes)
    disk.text("label_data_0313.json", '{"lanes": [[1]], "h_samples": [0, 2], "raw_file": "x"}')
    refused("line 1", read_lanes, disk.root)


def test_lanes_as_coco_polygons_and_as_folders(disk):
    disk.image("train/r_1.jpg", "train/r_2.jpg")
    content = {
        "images": [{"id": n, "file_name": f"r_{n}.jpg", "height": 6, "width": 8} for n in (1, 2)],
        "annotations": [
            {"image_id": 1, "category_id": 3, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
        ],
        "categories": [{"id": 3, "name": "solid line"}],
    }
    disk.json("train/_annotations.coco.json", content)
    index = read_lanes(disk.root)
    assert index.decode(index.mask_path(0)).sum() == 4
    assert index.table["group"].tolist() == ["r_1", "r_1"]
    disk.image("folders/images/a_1.jpg", "folders/images/a_2.jpg")
    for name in ("a_1", "a_2"):
        disk.mask(f"folders/masks/{name}.png", {(1, 1): 255})
    index = read_lanes(disk.root / "folders")
    assert index.classes == ("background", "lane")
    assert index.table["group"].tolist() == ["a_1", "a_1"]
    assert index.decode(index.root / "masks/a_1.png").sum() == 1
