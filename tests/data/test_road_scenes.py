import importlib.util
from pathlib import Path

import numpy as np

from src.data.road_scenes import render_frame, write_scenes
from src.data.sources.lanes import read_lanes


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
        image, mask = render_frame(0, scene, 0, (192, 192))
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
    assert np.array_equal(index.read_mask(row["target"], (48, 64)), expected)
    stamp = (tmp_path / "roads/train.txt").stat().st_mtime_ns
    write_scenes(tmp_path / "roads", **options)
    assert (tmp_path / "roads/train.txt").stat().st_mtime_ns == stamp


def test_the_script_writes_the_set_that_was_asked_for(tmp_path):
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_road_scenes.py"
    spec = importlib.util.spec_from_file_location("make_road_scenes", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    dest = tmp_path / "roads"
    flags = ["--num_scenes", "5", "--num_frames", "1", "--size", "32", "48", "--seed", "3"]
    assert script.main([str(dest), *flags]) == 0
    index = read_lanes(dest)
    assert len(index.table) == 5
    expected = render_frame(3, 0, 0, (32, 48))[1]
    assert np.array_equal(index.read_mask(index.table["target"].iloc[0], (32, 48)), expected)
