from src.data.sources.frames import (
    cut_finer,
    find_series,
    group_clips,
    group_neighbours,
    group_rows,
    split_number,
)
from src.data.sources.masks import Row


def test_the_last_number_counts():
    assert split_number("0016E5_07959") == ("0016E5_", 7959)
    assert split_number("7_7b") == ("7_", 7)
    assert split_number("road") == ("road", -1)


def test_runs_end_where_the_number_jumps():
    groups = group_neighbours(["b_2", "a_1", "a_2", "a_10", "b_3", "x"])
    assert groups == {
        "a_1": "a_1",
        "a_2": "a_1",
        "a_10": "a_10",
        "b_2": "b_2",
        "b_3": "b_2",
        "x": "x",
    }
    assert len(set(group_neighbours(["a_1", "a_2", "a_10"], max_gap=8).values())) == 1


def test_long_runs_are_cut_into_equal_blocks():
    groups = group_neighbours([f"f{i}" for i in range(101)], block=50)
    sizes = {g: list(groups.values()).count(g) for g in groups.values()}
    assert sizes == {"f0": 33, "f33": 34, "f67": 34}


def cut(names, least):
    groups = group_neighbours(names)
    return cut_finer(names, [groups[name] for name in names], least)


def test_too_few_blocks_are_cut_as_finely_as_needed():
    names = [f"{n:03d}" for n in range(100)]
    groups, block = cut(names, 5)
    assert block == 17 and len(set(groups)) == 6  # two blocks of 50, each in parts of 16 or 17
    assert [names.index(group) for group in dict.fromkeys(groups)] == [0, 16, 33, 50, 66, 83]
    assert cut(names, 2) == ([*["000"] * 50, *["050"] * 50], 0)
    assert cut(["1", "2", "3"], 3) == (["1", "2", "3"], 1)
    assert cut(["1", "2", "3"], 4) == (["1", "1", "1"], 0)


def test_named_sequences_stay_whole():
    names = [f"{drive}_{n}" for drive in "ab" for n in range(9)]
    assert cut(names, 3) == ([*["a_0"] * 9, *["b_0"] * 9], 0)
    names += [f"c_{n}" for n in range(80)]  # cut in two already
    groups, block = cut(names, 6)
    assert block == 20 and len(set(groups)) == 6 and len(set(groups[:18])) == 2


def test_clips_are_neighbours_in_natural_order():
    groups = group_clips(["d1/9", "d1/10", "d1/2", "d2/1"], block=2)
    assert groups == {"d1/2": "d1/2", "d1/9": "d1/9", "d1/10": "d1/9", "d2/1": "d2/1"}


def test_what_exports_write_after_the_number_is_no_number():
    names = ["frame_0001_jpg.rf.0a1b2c", "frame_0002_jpg.rf.ffee99", "frame_0900_png.rf.123456"]
    groups = group_neighbours(names)
    assert groups[names[0]] == groups[names[1]] != groups[names[2]]
    city = [f"berlin_000000_{n:06d}_leftImg8bit" for n in (18, 19)]
    assert len(set(group_neighbours(city).values())) == 1


def test_equal_names_of_two_splits_are_no_neighbours():
    rows = [Row(name, "", "", "", split) for split in ("train", "valid") for name in ("1", "2")]
    assert [row.group for row in group_rows(rows)] == ["train/1"] * 2 + ["valid/1"] * 2
    rows = [Row(name, "", "", "", split) for split, name in (("train", "1"), ("valid", "2"))]
    assert [row.group for row in group_rows(rows)] == ["1", "1"]


def test_slices_of_ten_patients_are_series_and_years_or_one_long_drive_are_none():
    patients = [f"case_{n:02d}/case_{n:02d}_{k}" for n in range(10) for k in (1, 2)]
    assert find_series(patients) == [name[:-1] for name in patients]
    assert find_series([*patients, "case_99/case_99_1", "x"])[-2:] == ["", ""]  # alone
    assert not any(find_series(patients[:-2]))  # nine
    assert not any(find_series([f"{year}_{k:06d}" for year in range(2007, 2013) for k in range(9)]))
    assert not any(find_series([f"{n:04d}" for n in range(40)]))
    assert not any(find_series([*patients, *(f"drive1_{n}" for n in range(6))]))  # 6 of 26
    assert any(find_series([*patients, *(f"drive1_{n}" for n in range(5))]))  # 5 of 25
