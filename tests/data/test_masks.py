from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.data.dataset import ImageDataset
from src.data.masks import (
    VOID,
    VoidReader,
    count_classes,
    image_size,
    mask_dataset,
    read_labelled,
    read_test_masks,
    split_rows,
)
from src.data.transforms import eval_transform
from tests.data.layout import refused


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """CamVid's layout: void is 11, the test split has no masks."""
    for folder, names in {"train": "abcdef", "val": "gh", "test": "ij"}.items():
        for number, name in enumerate(names):
            image = np.full((12, 16, 3), 40 * number, np.uint8)
            mask = np.zeros((12, 16), np.uint8)
            mask[:3], mask[3:6] = 11, 4
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image)
            if folder != "test":
                (tmp_path / f"{folder}annot").mkdir(exist_ok=True)
                cv2.imwrite(str(tmp_path / f"{folder}annot" / f"{name}.png"), mask)
    return tmp_path


def test_labelled_and_test_rows_are_apart(camvid: Path) -> None:
    assert read_labelled("auto", camvid).table["id"].tolist() == list("abcdefgh")
    assert read_test_masks("auto", camvid).table["id"].tolist() == list("ij")


def test_own_split_is_fold_0(camvid: Path) -> None:
    index = read_labelled("auto", camvid)
    split = split_rows(index, 0, 0, seed=1)
    assert (split.train.tolist(), split.valid.tolist()) == (list(range(6)), [6, 7])
    assert split_rows(index, None, 0, seed=1).train.tolist() == list(range(8))
    refused("--folds", split_rows, index, 1, 0, seed=1)


def test_a_folder_too_low_is_told_where_the_whole_lies(camvid: Path) -> None:
    refused(rf"pass {camvid} if this is a part of it", read_labelled, "auto", camvid / "train")


def test_folds_hold_each_row_out_once_and_keep_groups(camvid: Path) -> None:
    index = read_labelled("auto", camvid)
    index.table["group"] = ["x", "x", "y", "y", "", "", "", ""]
    splits = [split_rows(index, fold, 3, seed=1) for fold in range(3)]
    assert sorted(np.concatenate([s.valid for s in splits]).tolist()) == list(range(8))
    for split in splits:
        held = set(split.valid.tolist())
        assert {0, 1} <= held or not {0, 1} & held
        assert {2, 3} <= held or not {2, 3} & held
    assert len({s.hash for s in splits}) == 3
    assert splits[0].hash == split_rows(index, 0, 3, seed=1).hash


def test_slices_of_a_patient_share_a_fold_unless_told_otherwise(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / f"TCGA_{number}"
        folder.mkdir()
        for k in range(3):
            mask = np.zeros((8, 8), np.uint8)
            mask[:4] = 255
            cv2.imwrite(str(folder / f"TCGA_{number}_{k}.png"), mask + number)
            cv2.imwrite(str(folder / f"TCGA_{number}_{k}_mask.png"), mask)
    index = read_labelled("auto", tmp_path, by_name=True)
    assert "12 series of names" in index.notes[-1] and "TCGA_0/TCGA_0_0" in index.notes[-1]
    patients = np.array([name.split("/")[0] for name in index.table["id"]])
    for fold in range(3):
        split = split_rows(index, fold, 3, seed=0)
        assert not {*patients[split.train]} & {*patients[split.valid]}
        assert len(split.valid) == 12 and "grouped" in split.how
    apart = read_labelled("auto", tmp_path)
    assert not apart.table["group"].any() and apart.notes == index.notes[:-1]


def test_blocks_of_frames_are_cut_finer_and_true_groups_are_not(camvid: Path) -> None:
    index = read_labelled("auto", camvid)
    index.table["id"] = [f"{number:03d}" for number in range(8)]
    index.table["group"] = ["000"] * 8
    refused(r"more than there are groups \(1\)", split_rows, index, 0, 5, seed=1)
    index = replace(index, blocks=True)
    splits = [split_rows(index, fold, 5, seed=1) for fold in range(5)]
    assert sorted(np.concatenate([s.valid for s in splits]).tolist()) == list(range(8))
    assert all(len(s.valid) in (1, 2) for s in splits)
    assert "ungrouped, since larger blocks are fewer than folds" in splits[0].how
    assert "grouped by at most 4 neighbouring frames, " in split_rows(index, 0, 2, seed=1).how
    refused(
        r"--folds 9 is more than there are \w+ \(8\): lower it", split_rows, index, 0, 9, seed=1
    )


def test_few_images_get_fewer_folds_unless_their_number_is_given(camvid: Path) -> None:
    index = read_labelled("auto", camvid)
    index.table["split"] = ""
    index.table["group"] = ["a"] * 4 + ["b"] * 2 + ["c", "c"]
    held = [split_rows(index, fold, 0, seed=1).valid for fold in range(3)]
    assert sorted(np.concatenate(held).tolist()) == list(range(8))
    assert "fold 0 of 3" in split_rows(index, 0, 0, seed=1).how
    refused("folds are 0 to 2", split_rows, index, 3, 0, seed=1)
    index.table["group"] = ["a"] * 8
    refused(r"groups \(1\): at least two are needed", split_rows, index, 0, 0, seed=1)
    three = replace(index, table=index.table.iloc[:3].reset_index(drop=True), blocks=True)
    three.table["id"] = ["1", "2", "3"]
    assert len(split_rows(three, 0, 0, seed=1).valid) == 1
    assert len(split_rows(three, None, 0, seed=1).train) == 3


def test_void_is_255_whatever_the_data_call_it(camvid: Path) -> None:
    index = read_labelled("auto", camvid)
    mask = VoidReader(index)(str(camvid / "trainannot" / "a.png"))
    assert set(np.unique(mask)) == {0, 4, VOID}
    # of the 9 rows that are not void, 3 are class 4
    pixels, _ = count_classes(index, range(8))
    assert pixels[4] / pixels.sum() == pytest.approx(1 / 3)
    pixels, images = count_classes(index, [0, 1, 1])
    assert (pixels[0], pixels[4], pixels.sum()) == (3 * 96, 3 * 48, 3 * 144)
    assert (images[0], images[4], images.sum()) == (3, 3, 6)


def test_samples_have_one_size_and_their_mask(camvid: Path) -> None:
    index = read_labelled("auto", camvid)
    data = mask_dataset(index, [6, 7], eval_transform(), size=(24, 32))
    assert isinstance(data, ImageDataset) and len(data) == 2
    sample = data[(0, 1)]
    assert sample["image"].shape == (3, 24, 32) and sample["mask"].shape == (24, 32)
    assert (sample["mask"][:6] == VOID).all() and (sample["mask"][6:12] == 4).all()


def test_sizes_follow_the_rotation_of_the_camera(camvid: Path, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (20, 10)
    assert image_size(read_test_masks("auto", camvid).image_path(1)) == (12, 16)
