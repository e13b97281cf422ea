"""TuSimple as downloaded and as other tools write it, and what is wrong with a line."""

import json
from pathlib import Path

import numpy as np
import pytest

from src.data.masks import read_test_masks
from src.data.sources.lanes import read_lanes
from src.data.sources.registry import read_source
from tests.data.layout import refused


def label(raw_file, lanes=((-2, 3, 3),), rows=(0, 2, 4), **more):
    entry = {"lanes": [list(lane) for lane in lanes], "h_samples": list(rows), "raw_file": raw_file}
    return json.dumps(entry | more)


def frames(disk, base, *clips):
    disk.image(*[f"{base}clips/{clip}/20.jpg" for clip in clips])
    return [f"clips/{clip}/20.jpg" for clip in clips]


@pytest.fixture(autouse=True)
def thin_lines(monkeypatch):
    monkeypatch.setattr("src.data.sources.lanes.LINE_WIDTH", 1)


def places_of(index):
    return [
        np.argwhere(index.decode(index.root / target)).tolist() for target in index.table["target"]
    ]


def test_downloaded_folders_with_the_test_labels_beside_them(disk):
    train = frames(disk, "TUSimple/train_set/", "0313/1", "0313/2")
    test = frames(disk, "TUSimple/test_set/", "0530/1")
    disk.text("TUSimple/train_set/label_data_0313.json", *map(label, train))
    disk.text("TUSimple/test_label.json", *map(label, test))
    disk.text("TUSimple/readme.md")
    index = read_source("auto", disk.root)
    assert index.table[["id", "split"]].values.tolist() == [
        ["0530/1/20", "test"],
        ["0313/1/20", ""],
        ["0313/2/20", ""],
    ]
    assert len(read_test_masks("auto", disk.root)) == 1


@pytest.mark.parametrize("root", ["absolute", "relative"])
def test_absolute_names(disk, monkeypatch, root):
    clip = frames(disk, "set/", "0313/1")[0]
    disk.text("set/label_data_0313.json", label(f"{disk.root}/set/{clip}"))
    monkeypatch.chdir(disk.root)
    index = read_lanes(Path("set") if root == "relative" else disk.root / "set")
    assert index.table["id"].tolist() == ["0313/1/20"]
    assert places_of(index) == [[[2, 3], [3, 3], [4, 3]]]


@pytest.mark.parametrize(
    ("lane", "rows"),
    [
        ((None, 3, 3), (0, 2, 4)),
        (("-2", "3", "3"), ("0", "2", "4")),
        ((float("nan"), 3.4, 3.9), (0.0, 2.0, 4.0)),
    ],
)
def test_null_text_and_fractions_are_read(disk, lane, rows):
    clip = frames(disk, "", "0313/1")[0]
    disk.text("label_data_0313.json", label(clip, [lane], rows))
    assert places_of(read_lanes(disk.root)) == [[[2, 3], [3, 3], [4, 3]]]


def test_a_list_is_read_too(disk):
    clips = frames(disk, "", "0313/1", "0313/2")
    disk.text("label_data_0313.json", "[", ",\n".join(map(label, clips)), "]")
    assert len(read_lanes(disk.root)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (label("clips/0313/1/20.jpg", [["left", 3, 3]]), "lanes holds 'left', which is no place"),
        (label("clips/0313/1/20.jpg", [[2**33, 3, 3]]), "lanes holds 8589934592, which is no pla"),
        (label("clips/0313/1/20.jpg", [[[1], 3, 3]]), r"lanes holds \[1\], which is no place"),
        (label("clips/0313/1/20.jpg", rows=(None, 2, 4)), "a row of h_samples is missing"),
        (label("clips/0313/1/20.jpg", [[1, 2]]), "has not one x for every row"),
        (label(7), "raw_file is no text"),
        ('{"lanes": [], "h_samples": []}', "it lacks 'raw_file': mend or remove it"),
        ('{"lanes": [], ', "no TuSimple label"),
        ("7", "no TuSimple label"),
    ],
)
def test_a_damaged_line_is_named(disk, line, message):
    good = label(*frames(disk, "", "0313/1"))
    disk.text("label_data_0313.json", line, good)
    refused(rf"label_data_0313\.json, line 1: .*{message}", read_lanes, disk.root)
    disk.text("label_data_0313.json", good)  # the remedy: the line removed
    assert len(read_lanes(disk.root)) == 1


def test_lines_that_are_not_utf8_are_named(disk):
    clip = frames(disk, "", "0313/1")[0]
    disk.path("label_data_0313.json").write_bytes(label(clip).encode() + b'\n{"caf\xe9": 1}\n')
    refused(r"0313\.json is not UTF-8 \(byte 0xe9 in line 2\)", read_lanes, disk.root)


def test_a_corrected_copy_is_refused_until_one_file_is_gone(disk):
    clip = frames(disk, "", "0313/1")[0]
    for name in ("label_data_0313.json", "label_data_0313_fixed.json"):
        disk.text(name, label(clip))
    refused(r"0313\.json#1 and in label_data_0313_fixed\.json#1", read_lanes, disk.root)
    (disk.root / "label_data_0313.json").unlink()  # the remedy
    assert len(read_lanes(disk.root)) == 1


def test_frames_that_are_all_missing_are_refused(disk):
    disk.image("clips/0601/1/20.jpg")
    disk.text("label_data_0313.json", label("clips/0313/1/20.jpg"))
    refused(r"labels clips/0313/1/20\.jpg, but none .*put clips/ besi", read_lanes, disk.root)


def test_lane_masks_of_any_numbers(disk):
    for number, values in enumerate(([1, 2, 3, 4], [2, 255], [0])):
        disk.image(f"images/{number}.jpg")
        places = {(0, column): value for column, value in enumerate(values)}
        disk.mask(f"masks/{number}.png", places)
    index = read_source("lanes", disk.root)
    assert [np.unique(index.decode(index.root / t)).tolist() for t in index.table["target"]] == [
        [0, 1],
        [0, 1, 255],
        [0],
    ]
    said = "masks hold numbers up to 4: every number above 0 is read as lane and 255 as void"
    assert said in index.notes


def test_soft_edges_are_cut_in_the_middle_in_lane_masks(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 255, (0, 1): 130, (0, 2): 120, (0, 3): 40})
    assert read_lanes(disk.root).decode(disk.root / "masks/1.png").sum() == 2


def test_one_drive_is_cut_so_that_it_can_be_folded(disk):
    clips = frames(disk, "", *[f"0313/{number}" for number in range(12)])
    disk.text("label_data_0313.json", *map(label, clips))
    index = read_lanes(disk.root)
    assert index.table["group"].nunique() == 6
    assert any("grouped by at most 2 neighbouring clips" in note for note in index.notes)
