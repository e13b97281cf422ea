import numpy as np
import pytest
import torch
from PIL import Image

from src.data.decode import decode_mask, write_picture
from src.data.sources.masks import Row, build_index
from src.data.sources.rle_table import RunsDecoder
from src.files import write_json
from src.metrics.segmentation import SegmentationMeter
from src.pipelines.pictures import draw_overlay, make_gallery, make_palette
from src.pipelines.segmentation.report import (
    MaskFolder,
    decode_rle,
    encode_rle,
    print_comparison,
    true_mask,
    write_index_png,
    write_rle_csv,
)
from src.script import UserError

MASK = np.array([[0, 1, 1], [0, 1, 0]])


def test_run_lengths_by_hand():
    assert encode_rle(MASK == 1) == "3 3"  # down the columns: 0 0 | 1 1 | 1 0
    assert encode_rle(MASK == 0) == "1 2 6 1"
    assert encode_rle(np.zeros((2, 3), bool)) == ""
    assert np.array_equal(decode_rle("3 3", 2, 3), MASK == 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_come_back(share):
    mask = np.random.default_rng(0).random((13, 7)) < share
    assert np.array_equal(decode_rle(encode_rle(mask), 13, 7), mask)


@pytest.mark.parametrize("text", ["3", "3 x", "0 2", "5 3", "1 3 2 1", "1 0"])
def test_damaged_run_lengths_are_refused(text):
    with pytest.raises(UserError, match="run lengths"):
        decode_rle(text, 2, 3)


def test_csv_by_hand(tmp_path):
    masks = [("a/1", MASK), ("b", np.full((2, 3), 2))]
    assert write_rle_csv(tmp_path / "x.csv", masks, labels=(1, 2)) == 4
    lines = (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["id,label,rle", "a/1,1,3 3", "a/1,2,", "b,1,", "b,2,1 6"]


def test_index_png_keeps_labels(tmp_path):
    mask = np.array([[0, 7], [20, 255]])
    write_index_png(tmp_path / "plain.png", mask)
    assert Image.open(tmp_path / "plain.png").mode == "L"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "plain.png")), mask)
    with pytest.raises(AssertionError):
        write_index_png(tmp_path / "z.png", mask + 1)


def test_palette_is_that_of_voc():
    palette = make_palette()
    expected = {
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
    }
    assert {label: tuple(palette[label].tolist()) for label in expected} == expected
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_overlay_tints_foreground_and_outlines_truth():
    image = np.full((6, 6, 3), 100, np.uint8)
    mask = np.zeros((6, 6), int)
    mask[0, 0], mask[0, 1] = 1, 255
    drawn = draw_overlay(image, mask)
    assert drawn[0, 0].tolist() == [114, 50, 50]
    assert drawn[0, 1].tolist() == drawn[3, 3].tolist() == [100, 100, 100]
    target = np.zeros((6, 6), int)
    target[:, 3:] = 1
    outlined = draw_overlay(image, mask, target)
    assert (outlined[:, 2:4] == 255).all() and (outlined[:, 4:] == 100).all()


def test_gallery_lays_out_rows(tmp_path):
    tiles = [np.full((10, 20, 3), 10 * n, np.uint8) for n in range(5)]
    sheet = make_gallery(tiles, [*"abcd", "차 0.1"], columns=2, width=40)
    assert sheet.shape == (3 * (20 + 20), 80, 3)
    assert sheet[39, 79].tolist() == [10, 10, 10] and sheet[119, 0].tolist() == [40, 40, 40]
    assert sheet[:20].any()  # the caption
    write_picture(tmp_path / "sheet.png", sheet)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet)


@pytest.mark.parametrize("other", ["b/A.jpg", "b/a.jpg"])
def test_masks_of_equal_names_are_named_by_their_ids(tmp_path, other):
    """``A.png`` and ``a.png`` are one file on macOS and Windows."""
    rows = [Row(name, name, "", "") for name in ("a/a.jpg", other)]
    folder = MaskFolder(tmp_path)
    folder.start(build_index(tmp_path, rows, ("x", "y"), decode_mask), np.arange(2))
    assert len({str(folder.mask(row)).casefold() for row in range(2)}) == 2


def test_masks_of_images_that_are_gone_are_said(tmp_path, capsys):
    rows = [Row(name, f"{name}.jpg", "", "") for name in ("차", "b", "c")]
    index = build_index(tmp_path, rows, ("x", "y"), decode_mask)
    folder = MaskFolder(tmp_path)
    folder.start(index, np.arange(3))
    for row in range(3):
        write_index_png(folder.mask(row), np.zeros((2, 2)))
    folder.start(index, np.arange(3))
    assert not capsys.readouterr().out
    folder.start(index, np.arange(2))
    assert "holds 1 mask of other images, such as c.png" in capsys.readouterr().out


def test_what_was_made_of_earlier_masks_does_not_outlive_them(tmp_path):
    """A run that is killed later must not leave the run lengths and pictures of other masks."""
    folder = MaskFolder(tmp_path)
    index = build_index(tmp_path, [Row("b", "b.jpg", "", "")], ("x", "y"), decode_mask)
    made = [tmp_path / name for name in ("masks.csv", "scores.json", "overlays/b.png")]
    made[2].parent.mkdir()
    for path in made:
        path.touch()
    folder.start(index, np.arange(1))
    assert not any(path.exists() for path in made)


@pytest.mark.parametrize(
    ("rows", "line", "how"), [(False, "3 3", "down the columns"), (True, "2 2 5 1", "along the ro")]
)
def test_run_lengths_are_counted_as_those_of_the_data(tmp_path, rows, line, how):
    decode = RunsDecoder(tmp_path, {}, rows=rows)
    folder = MaskFolder(tmp_path)
    index = build_index(tmp_path, [Row("b", "b.jpg", "", "")], ("background", "y"), decode)
    folder.start(index, np.arange(1))
    write_index_png(folder.mask(0), MASK == 1)
    assert f"1 line of run lengths ({how}" in folder.write_run_lengths()
    assert folder.run_lengths.read_text().splitlines()[1] == f"b,1,{line}"


def test_a_test_image_keeps_its_id_though_train_has_the_same(tmp_path):
    rows = [Row("b", "train/b.jpg", "", "", "train"), Row("b", "test/b.jpg", "", "", "test")]
    index = build_index(tmp_path, rows, ("background", "y"), decode_mask).take("test")
    folder = MaskFolder(tmp_path)
    folder.start(index, np.arange(1))
    write_index_png(folder.mask(0), MASK == 1)
    folder.write_run_lengths()
    assert folder.run_lengths.read_text().splitlines()[1] == "b,1,3 3"


@pytest.mark.parametrize(("target", "why"), [("", "are not here"), ("b.png", "1 image of 2 with")])
def test_what_lacks_masks_is_told_instead_of_scores(tmp_path, capsys, target, why):
    rows = [Row("b", "b.jpg", target, ""), Row("c", "c.jpg", "", "")]
    folder = MaskFolder(tmp_path)
    folder.start(build_index(tmp_path, rows, ("x", "y"), decode_mask), np.arange(2))
    folder.score("")
    assert why in capsys.readouterr().out


def test_a_true_mask_of_another_size_is_refused(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "1.jpg")
    Image.new("L", (8, 5)).save(tmp_path / "1.png")
    index = build_index(tmp_path, [Row("1", "1.jpg", "1.png")], ("a", "b"), decode_mask)
    with pytest.raises(UserError, match=r"1\.png is 8x5 pixels but its image .*1\.jpg is 8x6"):
        true_mask(index, 0)


def scored(root, masks, first_row):
    """A folder of scored masks {id: labels}, in the order of the rows."""
    meter = SegmentationMeter(2, None, boundary_px=0, background=0)
    true = torch.tensor([[0, 1, 1, 0]]).repeat(len(masks), 1, 1)
    rows = list(range(first_row, first_row + len(masks)))
    meter.update(torch.tensor([[mask] for mask in masks.values()]), {"mask": true, "index": rows})
    root.mkdir()
    meter.counts().save(MaskFolder(root).counts)
    write_json(MaskFolder(root).scores, {"ids": list(masks), "groups": [""] * len(masks)})
    return root


def test_images_are_compared_by_their_ids(tmp_path, capsys):
    masks = {name: [0, name < "d", 1, 0] for name in "abcdef"}  # half of them half right
    first = scored(tmp_path / "first", masks, 0)
    # the same masks after three images were added and the others sorted anew
    second = scored(tmp_path / "second", {name: masks[name] for name in "fedcba"}, 3)
    print_comparison(first, second)
    out = capsys.readouterr().out
    assert "foreground: 0.7500 -> 0.7500, difference +0.0000 [+0.0000, +0.0000] (95%, n = 6)" in out
    fewer = scored(tmp_path / "fewer", {name: masks[name] for name in "abcde"}, 0)
    with pytest.raises(UserError, match="different images"):
        print_comparison(first, fewer)
