from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from scripts import make_road_scenes as script
from src.data.road_conditions import CONDITIONS, draw_conditions
from src.data.road_scenes import render_frame, write_scenes
from src.data.sources.lanes import read_lanes
from src.script import UserError
from tests.data.layout import refused


def test_a_frame_is_a_pure_function_of_its_numbers():
    first, again = render_frame(1, 2, 3, (96, 128)), render_frame(1, 2, 3, (96, 128))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert first[0].shape == (96, 128, 3) and first[1].shape == (96, 128)
    assert first[0].dtype == first[1].dtype == np.uint8
    assert not np.array_equal(first[0], render_frame(1, 3, 3, (96, 128))[0])
    assert not np.array_equal(first[0], render_frame(2, 2, 3, (96, 128))[0])


def test_neighbouring_frames_show_nearly_the_same():
    near, far = [], []
    for scene in range(6):
        here = render_frame(0, scene, 0, (96, 96))[1].astype(bool)
        for other, found in ((render_frame(0, scene, 1, (96, 96)), near),
                             (render_frame(0, scene + 50, 1, (96, 96)), far)):  # fmt: skip
            there = other[1].astype(bool)
            found.append((here & there).sum() / max(1, (here | there).sum()))
    assert np.mean(near) > 0.6 > 0.4 > np.mean(far)


def test_lanes_are_thin_lie_on_the_road_and_mostly_show():
    contrast = []
    for scene in range(12):
        image, mask = render_frame(0, scene, 0, (192, 192), conditions=())
        lane = mask.astype(bool)
        assert 0.001 < lane.mean() < 0.12
        assert not lane[: int(192 * 0.3)].any()  # the horizon is never higher
        beside = np.roll(lane, 14, axis=1) & ~lane
        contrast.append(float(image[lane].mean()) - float(image[beside].mean()))
    assert np.mean(np.array(contrast) > 0) > 0.7


def test_written_scenes_are_read_as_lanes_whole_scenes_in_test(tmp_path):
    options = {"num_scenes": 5, "num_frames": 2, "size": (48, 64)}
    write_scenes(tmp_path / "roads", **options)
    index = read_lanes(tmp_path / "roads")
    table = index.table
    assert table["split"].value_counts().to_dict() == {"train": 8, "test": 2}
    assert table.groupby("group")["split"].nunique().max() == 1
    assert table["group"].nunique() == 5
    row = table.iloc[3]
    expected = render_frame(0, 1, 1, (48, 64))[1]
    assert row["id"] == "scene001_001"
    assert np.array_equal(index.decode(index.root / row["target"]), expected)
    stamp = (tmp_path / "roads/train.txt").stat().st_mtime_ns
    write_scenes(tmp_path / "roads", **options)
    assert (tmp_path / "roads/train.txt").stat().st_mtime_ns == stamp
    write_scenes(tmp_path / "roads", **options, conditions=["traffic"], share=1)
    assert (tmp_path / "roads/train.txt").stat().st_mtime_ns != stamp
    expected = render_frame(0, 1, 1, (48, 64), ["traffic"], 1)[1]
    assert np.array_equal(index.decode(index.root / row["target"]), expected)


def test_the_script_writes_the_set_that_was_asked_for(tmp_path):
    dest = tmp_path / "roads"
    flags = ["--num_scenes", "5", "--num_frames", "1", "--size", "32", "48", "--seed", "3"]
    assert script.main([str(dest), *flags, "--conditions", "tilt", "--share", "1"]) == 0
    index = read_lanes(dest)
    assert len(index.table) == 5
    expected = render_frame(3, 0, 0, (32, 48), ["tilt"], 1)[1]
    assert np.array_equal(index.decode(index.mask_path(0)), expected)


def test_scenes_of_two_sets_are_taken_for_neither(tmp_path, monkeypatch):
    first, second = ({"num_scenes": n, "num_frames": 1, "size": (32, 48)} for n in (2, 3))
    write_scenes(tmp_path, **first, seed=0)
    expected = (tmp_path / "images/scene000_000.jpg").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("src.data.road_scenes.write_text", Mock(side_effect=KeyboardInterrupt))
        write_scenes(tmp_path, **second, seed=1)
    write_scenes(tmp_path, **first, seed=0)
    assert (tmp_path / "images/scene000_000.jpg").read_bytes() == expected


@pytest.mark.parametrize("name", ["images/scene001_000.jpg", "masks/scene000_000.png", "train.txt"])
@pytest.mark.parametrize("harm", ["gone", "empty", "bit", "link"])
def test_scenes_that_were_damaged_are_drawn_again(tmp_path, name, harm):
    options = {"num_scenes": 2, "num_frames": 1, "size": (32, 48)}
    write_scenes(tmp_path, **options)
    path = tmp_path / name
    expected = path.read_bytes()
    path.unlink()
    if harm == "link":
        path.symlink_to("nowhere")
    elif harm != "gone":
        flipped = bytes([expected[0], expected[1] ^ 1, *expected[2:]])
        path.write_bytes(flipped if harm == "bit" else b"")
    write_scenes(tmp_path, **options)
    assert path.read_bytes() == expected
    assert not path.is_symlink()


ABSURD = ("-1", "0", "1000000000", "nan", "inf", "x", "²", "9" * 5000)


@pytest.mark.parametrize("flag", ["num_scenes", "num_frames", "size", "share"])
def test_absurd_numbers_are_refused_and_nothing_written(tmp_path, flag):
    for text in ABSURD:
        if (flag, text) != ("share", "0"):
            values = [text, "32"] if flag == "size" else [text]
            with pytest.raises((SystemExit, UserError), match=f"2|--{flag}"):
                script.main([str(tmp_path / "roads"), f"--{flag}", *values])
    assert not (tmp_path / "roads").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "train.txt").write_text("mine")
    refused("not of this program", script.main, [str(tmp_path)])
    assert (tmp_path / "train.txt").read_text() == "mine"


SIZE = (96, 128)


def pair(condition, scene, frame=0):
    """A frame without any condition, and with one."""
    plain = render_frame(0, scene, frame, SIZE, conditions=())
    return plain, render_frame(0, scene, frame, SIZE, [condition], 1)


@pytest.mark.parametrize("condition", ["night", "rain", "wear", "trees", "jpeg"])
def test_light_weather_and_wear_change_pixels_and_no_label(condition):
    for scene in range(4):
        (image, mask), (hard, labels) = pair(condition, scene, frame=1)
        assert np.array_equal(mask, labels)
        changed = (image != hard).any(-1)
        if condition == "wear":  # the paint alone
            assert (
                changed.sum() > 0
                and changed[~cv2.dilate(mask, np.ones((5, 5))).astype(bool)].mean() < 0.02
            )
        else:
            assert changed.mean() > 0.05
        if condition == "night":
            assert hard.mean() < 0.6 * image.mean()


def test_other_cars_hide_the_lines_behind_them_also_in_the_mask():
    hidden = 0
    for scene in range(8):
        (image, mask), (hard, labels) = pair("traffic", scene)
        assert not (labels & ~mask & 1).any(), "a car adds no line"
        gone = (mask == 1) & (labels == 0)
        assert (image != hard).any(-1)[gone].mean() > 0.95 if gone.any() else True
        hidden += gone.sum()
        # what is left shows the same pixels as before
        kept = (labels == 1) & ~(image != hard).any(-1)
        assert kept.sum() > 0.5 * labels.sum()
    assert hidden > 50


def test_a_tilted_camera_turns_the_mask_with_the_image():
    found = []
    for scene in range(6):
        (_, mask), (_, labels) = pair("tilt", scene)
        best = max(
            _overlap(cv2.warpAffine(mask, _turn(angle, shift), SIZE[::-1]), labels)
            for angle in np.arange(-7, 7.1, 0.5)
            for shift in range(-9, 7)
        )
        found.append((best, _overlap(mask, labels)))
    best, still = np.array(found).T
    assert np.mean(best) > 0.5 > 0.3 > np.mean(still)


def _turn(angle, shift):
    matrix = cv2.getRotationMatrix2D((SIZE[1] / 2, SIZE[0] * 0.375), angle, 1)
    matrix[1, 2] += shift
    return matrix


def _overlap(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def test_conditions_are_drawn_from_the_seed_each_by_itself():
    drawn = [set(draw_conditions(5, scene)) for scene in range(400)]
    for name in CONDITIONS:
        assert 60 < sum(name in found for found in drawn) < 140, name  # a quarter
    assert drawn[:50] == [set(draw_conditions(5, scene)) for scene in range(50)]
    assert drawn[:50] != [set(draw_conditions(6, scene)) for scene in range(50)]
    without = [
        set(draw_conditions(5, n, [c for c in CONDITIONS if c != "night"])) for n in range(50)
    ]
    assert without == [found - {"night"} for found in drawn[:50]]
    assert not draw_conditions(5, 0, (), 1)
