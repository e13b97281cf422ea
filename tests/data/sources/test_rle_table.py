"""Run lengths in a table: ids, classes, the direction of counting, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from src.data.masks import VoidReader, read_labelled, read_test_masks
from src.data.sources.registry import detect_source
from src.data.sources.rle_table import read_rle_table
from tests.data.layout import refused

BOX = np.zeros((6, 8), bool)
BOX[1:4, 2:4] = True
DOWN = "14 3 20 3"  # column 2 is pixels 13 to 18
ALONG = "11 2 19 2 27 2"  # row 1 is pixels 9 to 16


def masks_of(index):
    table = index.table[["id", "target"]].itertuples(index=False)
    return {name: index.decode(index.root / target) for name, target in table}


def test_a_line_an_image(disk):
    disk.image("train_images/1.jpg", "train_images/2.jpg", "test_images/3.jpg")
    disk.text("train.csv", "ImageId,EncodedPixels", f"1.jpg,{DOWN}", "2.jpg,", "9.jpg,-1")
    disk.text("sample_submission.csv", "ImageId,EncodedPixels", "3.jpg,1 1")
    assert detect_source(disk.root) == "rle"
    index = read_labelled("auto", disk.root)
    masks = masks_of(index)
    assert masks.keys() == {"1.jpg", "2.jpg"} and (masks["1.jpg"] == BOX).all()
    assert not masks["2.jpg"].any() and index.classes == ("background", "foreground")
    assert any("images that are missing: 1 (9.jpg)" in note for note in index.notes)
    disk.image("train_images/4.jpg")
    notes = read_labelled("auto", disk.root).notes
    assert any("1 image of the train folder without line in train.csv" in note for note in notes)
    assert read_test_masks("auto", disk.root).table["image"].tolist() == ["test_images/3.jpg"]


@pytest.mark.parametrize(
    "lines",
    [("ImageId,ClassId,EncodedPixels", f"1.jpg,1,{DOWN}", "1.jpg,4,1 1"),
     ("ImageId_ClassId,EncodedPixels", f"1.jpg_1,{DOWN}", "1.jpg_4,1 1"),
     ("id,class,rle", f"1,1,{DOWN}", "1,4,1 1")],
)  # fmt: skip
def test_a_line_an_image_and_class(disk, lines):
    disk.image("train/1.jpg")
    disk.text("train.csv", *lines)
    index = read_labelled("auto", disk.root)
    assert index.classes == ("background", "class_1", "class_4")
    (mask,) = masks_of(index).values()
    assert (mask == 1).tolist() == BOX.tolist() and (mask == 2).sum() == mask[0, 0] // 2 == 1


def test_the_direction_is_that_in_which_masks_hang_together(disk):
    disk.image("train/1.jpg")
    disk.text("train.csv", "id,rle", f"1,{ALONG}")
    index = read_labelled("auto", disk.root)
    assert (masks_of(index)["1"] == BOX).all()
    assert any("counted along rows; if not, pass --source rle_columns" in n for n in index.notes)
    other = masks_of(read_labelled("rle_columns", disk.root))["1"]
    assert other.T.ravel().nonzero()[0].tolist() == [10, 11, 18, 19, 26, 27]
    disk.text("train.csv", "id,rle", f"1,{DOWN}")
    index = read_labelled("auto", disk.root)
    assert (masks_of(index)["1"] == BOX).all()
    assert any("down columns; if not, pass --source rle_rows" in note for note in index.notes)
    remedy = read_labelled("rle_rows", disk.root)
    other = masks_of(remedy)["1"]
    assert other.ravel().nonzero()[0].tolist() == [13, 14, 15, 19, 20, 21]
    assert VoidReader(remedy).describe() != VoidReader(index).describe()  # no cache of the others


def test_what_is_no_run_is_refused(disk):
    disk.image("train/1.jpg")
    for text in ("5", "1 a", "1,5", "1 23 4", "14 3 20", "9999999999999999999 1"):
        disk.text("train.csv", "id;rle", f"1;{text}")
        refused(r"line 2: .* is no list of runs", read_rle_table, disk.root)
    disk.text("train.csv", "id,rle", "1,48 2")
    refused(r"runs lie beyond the 8x6 pixels of train/1.jpg", read_rle_table, disk.root)
    disk.text("train.csv", "id,label", "1,2")
    refused("no table with a column EncodedPixels", read_rle_table, disk.root)


def test_starts_from_run_to_run(disk):
    disk.image("train/1.jpg", "train/2.jpg")
    # pixels 14 to 16 and 20 to 22 of 1 on: 13 are passed, 3 drawn, 3 passed, 3 drawn
    disk.text("train-rle.csv", "ImageId, EncodedPixels", "1, 13 3 3 3", "2, -1")
    index = read_labelled("auto", disk.root)
    masks = masks_of(index)
    assert (masks["1"] == BOX).all() and not masks["2"].any()
    assert any("as in SIIM-ACR" in note for note in index.notes)


def test_a_column_of_annotations_that_are_runs(disk):
    disk.image("train/1.jpg")
    disk.text("train.csv", "id,annotation,width", f"1,{DOWN},8")
    assert (masks_of(read_labelled("auto", disk.root))["1"] == BOX).all()
    disk.text("train.csv", "id,annotation,width", "1,cat,8")
    assert detect_source(disk.root) == "folders"


def test_ids_that_are_no_files_need_a_column_of_paths(disk):
    disk.image("train/case1/day2/slice_1_8_6.png")
    line = f"case1_day2_slice_1,stomach,{DOWN}"
    disk.text("train.csv", "id,class,segmentation", line)
    refused("none of its images is there, case1_day2_slice_1 for", read_labelled, "auto", disk.root)
    path = "train/case1/day2/slice_1_8_6.png"
    disk.text("train.csv", "id,class,segmentation,image", f"{line},{path}")
    index = read_labelled("auto", disk.root)
    assert index.classes == ("background", "stomach") and (masks_of(index)[path] == BOX).all()


@pytest.mark.parametrize("empty", ["nan", "NaN", "None", "null", "[]", "0 0", "1 0"])
def test_cells_that_mean_no_mask(disk, empty):
    disk.image("train/1.jpg", "train/2.jpg")
    disk.text("train.csv", "id;rle", f"1;[{DOWN.replace(' ', ', ')}]", f"2;{empty}")
    masks = masks_of(read_labelled("auto", disk.root))
    assert (masks["1"] == BOX).all() and not masks["2"].any()


def test_pixels_that_are_counted_from_0(disk):
    disk.image("train/1.jpg", "train/2.jpg")
    disk.text("train.csv", "id,rle", "1,13 3 19 3", "2,0 1")
    index = read_labelled("auto", disk.root)
    masks = masks_of(index)
    assert (masks["1"] == BOX).all() and masks["2"].sum() == masks["2"][0, 0] == 1
    assert any("pixels are counted from 0 on" in note for note in index.notes)


def test_masks_at_the_border_tell_where_counting_starts(disk):
    disk.image("train/1.jpg", "train/2.jpg")
    box = "18 3 24 3"  # rows 0 to 2 of columns 3 and 4, the first pixel being 0
    disk.text("train.csv", "id,rle", f"1,{box}", "2,14 3 20 3")
    index = read_labelled("auto", disk.root)
    masks = masks_of(index)
    assert np.argwhere(masks["1"]).tolist() == [[r, c] for r in range(3) for c in (3, 4)]
    assert any("counted from 0 on, as masks at the borders say" in note for note in index.notes)
    disk.text("train.csv", "id,rle", "1,19 3 25 3", "2,15 3 21 3")
    counted = read_labelled("auto", disk.root)
    assert (masks_of(counted)["1"] == masks["1"]).all() and "0 on" not in " ".join(counted.notes)
    assert VoidReader(counted).describe() != VoidReader(index).describe()  # no cache of the others
    disk.text("train.csv", "id,rle", "1,15 3 21 3", "2,21 3")  # one row off the lower border
    assert "0 on" not in " ".join(read_labelled("auto", disk.root).notes)


def test_of_square_images_the_colours_tell_the_direction(disk):
    pixels = np.full((24, 24, 3), 90, np.uint8)
    pixels[4:9, 6:20] = 250
    mask = pixels[..., 0] > 200
    for lines, count, how in (
        (mask, 8, "along rows, as the images' colours say"),
        (mask.T, 8, "down columns, as the images' colours say"),
        (mask.T, 7, "down columns, a guess, for the images are square"),
    ):
        for n in range(count):
            Image.fromarray(pixels).save(disk.path(f"train/{n}.png"))
        disk.text("train.csv", "id,rle", *(f"{n},{runs_of(lines)}" for n in range(count)))
        index = read_labelled("auto", disk.root)
        assert (masks_of(index)["1"] == mask).all()
        assert any(how in note for note in index.notes)


def test_far_colours_tell_no_direction(disk):
    ground = np.repeat(np.linspace(220, 30, 48), 48).reshape(48, 48)
    mask = np.zeros((48, 48), bool)
    mask[20:28, 2:10] = True  # at the left of a ground that is dark below
    for n in range(8):
        pixels = ground + np.random.default_rng(n).normal(0, 10, ground.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(disk.path(f"train/{n}.png"))
    disk.path("train/7.png").write_bytes(disk.path("train/7.png").read_bytes()[:-60])
    disk.text("train.csv", "id,rle", *(f"{n},{runs_of(mask.T)}" for n in range(8)))
    notes = " ".join(read_labelled("auto", disk.root).notes)
    assert "down columns, a guess, for the images are square" in notes


def runs_of(lines):
    at = np.flatnonzero(np.diff(np.pad(lines.ravel(), 1).astype(int)))
    return " ".join(f"{a + 1} {b - a}" for a, b in zip(at[::2], at[1::2], strict=True))


def test_images_of_another_size_than_the_table_says_are_refused(disk):
    disk.image("train/1.jpg")
    for sides in ("6,8", "8,6", ","):  # some name them the wrong way round, or not at all
        disk.text("train.csv", "id,encoding,img_height,img_width", f"1,{DOWN},{sides}")
        assert (masks_of(read_labelled("auto", disk.root))["1"] == BOX).all()
    disk.text("train.csv", "id,rle,height,width", f"1,{DOWN},3,2")  # of the box
    assert (masks_of(read_labelled("auto", disk.root))["1"] == BOX).all()
    disk.image("train/2.jpg")
    boxes = (f"1,{DOWN},5,5", f"2,{DOWN},3,2")  # the first could be a size
    disk.text("train.csv", "id,rle,height,width", *boxes)
    assert (masks_of(read_labelled("auto", disk.root))["1"] == BOX).all()
    disk.text("train.csv", "id,rle,height,width", f"1,{DOWN},1e999,6")
    refused("train.csv#1 is 6x1000000000", read_rle_table, disk.root)
    disk.text("train.csv", "id,rle,height,width", f"1,{DOWN},4,6.0")
    refused("train.csv#1 is 6x4 pixels but its image .* is 8x6", read_rle_table, disk.root)


@pytest.mark.parametrize("text", ["", "id", "id,rle"])
def test_a_sample_that_asks_for_nothing_is_no_hindrance(disk, text):
    disk.image("images/1.jpg")
    disk.text("train.csv", "id,rle", f"1,{DOWN}")
    disk.text("sample_submission.csv", text)
    assert (masks_of(read_labelled("auto", disk.root))["1"] == BOX).all()


@pytest.mark.parametrize("said", ["sample", "column"])
def test_images_to_predict_may_lie_among_the_others(disk, said):
    disk.image("images/1.jpg", "images/2.jpg", "images/3.jpg")
    if said == "sample":
        disk.text("train.csv", "ImageId,EncodedPixels", f"1.jpg,{DOWN}", "2.jpg,")
        disk.text("sample_submission.csv", "Image_Class,EncodedPixels", "3.jpg_1,", "3.jpg_2,")
    else:
        disk.text("labels.csv", "id,split,rle", f"1,train,{DOWN}", "2,valid,", "3,test,")
    disk.text("test.csv", "ImageId,EncodedPixels", "7.jpg,1 1")
    labelled = read_labelled("auto", disk.root).table
    assert labelled["image"].tolist() == ["images/1.jpg", "images/2.jpg"]
    assert labelled["split"].tolist() == ["train", "train" if said == "sample" else "valid"]
    test = read_test_masks("auto", disk.root).table
    assert test[["image", "target"]].values.tolist() == [["images/3.jpg", ""]]


def test_pixels_of_several_classes_are_said_to_be_of_the_later_one(disk):
    disk.image("train/1.jpg")
    disk.text("train.csv", "id,class,rle", f"1,a,{DOWN}", "1,a,14 1", "1,b,40 2")
    assert "further class" not in " ".join(read_labelled("auto", disk.root).notes)
    disk.text("train.csv", "id,class,rle", f"1,a,{DOWN}", "1,b,14 3")
    index = read_labelled("auto", disk.root)
    assert any("50.0% of the pixels that are drawn are of a further" in n for n in index.notes)
    assert [(masks_of(index)["1"] == label).sum() for label in (1, 2)] == [3, 3]
