"""Contests whose lines are no single images, or ask for something else than a class."""

import pytest

from src.data.index import read_test, read_train
from src.data.sample import read_sample
from src.pipelines.classification.prepare import read_form
from tests.data.layout import lay, refused, rows

PETS = ["train_images/p1-1.jpg", "train_images/p2-1.jpg", "train_images/p2-2.jpg"]


def test_several_photographs_of_some_lines(tmp_path):
    lay(tmp_path, *PETS, train="Type,PetID,Speed\n1,p1,0\n2,p2,1\n")
    assert read_train(tmp_path, label_column="Speed").columns["group"] == ["p1", "p2", "p2"]
    lay(tmp_path, train="Type,PetID,label\n1,p1,0\n2,p2,1\n1,p9,1\n")
    refused("1 image not in .*, first 'p9': restore them, or remove their", read_train, tmp_path)


def test_clips_in_the_sample(tmp_path):
    lay(tmp_path, "test/c1/1.jpg", "test/c1/2.jpg", sample_submission="clip,label\nc1,\n")
    assert read_test(tmp_path).lines == ("c1", "c1")


def test_numbered_photographs_of_an_id(tmp_path):
    lay(tmp_path, "train/86e-1.jpg", "train/86e-2.jpg", "train/a7-1.jpg", "test/b-1.jpg")
    lay(tmp_path, "test/b-2.jpg", "test/c-1.jpg", sample_submission="PetID,Speed\nc,0\nb,0\n")
    lay(tmp_path, train="PetID,Speed\n86e,1\na7,0\n", test="PetID,Age\nb,3\nc,5\n")
    train, test = read_train(tmp_path, label_column="Speed"), read_test(tmp_path)
    assert rows(train, "image", "target", "group") == [
        ("train/86e-1.jpg", "1", "86e"), ("train/86e-2.jpg", "1", "86e"),
        ("train/a7-1.jpg", "0", "a7"),
    ]  # fmt: skip
    assert test.columns["image"] == ["test/c-1.jpg", "test/b-1.jpg", "test/b-2.jpg"]
    assert test.lines == ("c", "b", "b")


def test_masks_of_a_case_are_no_images_of_its_line(tmp_path):
    pairs = [f"{split}/{kind}/7_{n}.png" for split in ("train", "test") for n in "12"
             for kind in ("images", "masks")]  # fmt: skip
    lay(tmp_path, *pairs, sample_submission="case,ill\n7,0\n")
    assert read_test(tmp_path).columns["image"] == ["test/images/7_1.png", "test/images/7_2.png"]


@pytest.mark.parametrize(("before", "behind"), [("", ""), ("", "/"), ("data/here/", "/")])
def test_folders_of_lines_in_folders_of_subjects(tmp_path, before, behind):
    lay(tmp_path, *(f"{split}/p{p}/s{s}/{n}.jpg" for split in ("train", "test") for p in "12"
                    for s in "12" for n in "12"))  # fmt: skip
    cells = [f"{before}p{p}/s{s}{behind}" for p in "12" for s in "12"]
    lines = "".join(f"{cell},{label}\n" for cell, label in zip(cells, "abba", strict=True))
    lay(tmp_path, train=f"study,label\n{lines}", sample_submission=f"study,label\n{lines}")
    train, test = read_train(tmp_path), read_test(tmp_path)
    assert rows(train, "image", "target")[4:6] == [
        ("train/p2/s1/1.jpg", "b"), ("train/p2/s1/2.jpg", "b")
    ]  # fmt: skip
    assert len(train) == 8 and test.lines == tuple(cell for cell in cells for _ in "12")
    assert test.columns["image"][2:4] == ["test/p1/s2/1.jpg", "test/p1/s2/2.jpg"]


def test_folders_and_images_of_the_same_numbers(tmp_path):
    lay(tmp_path, *(f"test/{case}/{n}.png" for case in "123" for n in "123"))
    lay(tmp_path, sample_submission="case,ill\n2,0\n1,0\n3,0\n")
    images = read_test(tmp_path).columns["image"]
    assert images == [f"test/{case}/{n}.png" for case in "213" for n in "123"]
    lay(tmp_path, "test/9.png", sample_submission="case,ill\n9,0\n2,0\n1,0\n3,0\n")
    assert read_test(tmp_path).columns["image"] == ["test/9.png", *images]


def test_channels_of_an_image_are_no_further_images(tmp_path):
    lay(tmp_path, "test/7_red.png", "test/7_green.png", sample_submission="id,a\n7,0\n")
    refused("7_green.png, 7_red.png for it", read_test, tmp_path)


def test_ids_of_several_images_whatever_their_case(tmp_path):
    lay(tmp_path, "test/1.jpg", "test/2.jpg", sample_submission="ObservationId,label\n88,0\n")
    lay(tmp_path, test="ObservationID,filename\n88,1.jpg\n88,2.jpg\n")
    assert read_test(tmp_path).lines == ("88", "88")


def test_tables_of_the_test_are_named_where_ids_are_no_images(tmp_path):
    lay(tmp_path, "7.jpg", sample_submission="ObservationId,label\n88,0\n")
    lay(tmp_path, x_test_metadata="ObservationId,file\n88,7.jpg\n")
    refused(r"if x_test_metadata\.csv says the test images, move it to", read_test, tmp_path)


def test_lines_that_the_sample_does_not_ask_for(tmp_path):
    lay(tmp_path, "test/1.jpg", "test/2.jpg", test="id\n1\n2\n", sample_submission="id,a\n1,0\n")
    said = "not to be predicted from test.csv; where the sample .* give it a line for each"
    refused(said, read_test, tmp_path)


def test_ids_that_only_the_sample_has(tmp_path):
    lay(tmp_path, "test/a.jpg", "test/b.jpg", test="path\na.jpg\nb.jpg\n")
    lay(tmp_path, sample_submission="number,label\n1,\n2,\n")
    refused("add the sample's column of ids to test.csv", read_test, tmp_path)
    lay(tmp_path, test="path,number\nb.jpg,2\na.jpg,1\n")  # followed
    assert rows(read_test(tmp_path), "id", "image") == [("1", "test/a.jpg"), ("2", "test/b.jpg")]


def test_lines_without_images_may_be_removed(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg", train="id,label\n1,a\n2,b\n3,a\n")
    refused("first '3': restore them, or remove their lines", read_train, tmp_path)


@pytest.mark.parametrize("cell", ["1.0 0 0 50 50", "14 1 0 0 1 1", "U+003F 1 1 U+FF2F 2 2"])
def test_boxes_are_no_label(tmp_path, cell):
    lay(tmp_path, sample_submission=f"id,PredictionString\n7,{cell}\n")
    refused("boxes or masks of objects", read_sample, tmp_path)


@pytest.mark.parametrize("cell", ["1 2 3 4 5", "0 0 0 0 0", "red red blue green tan"])
def test_lists_of_classes_are_no_boxes(tmp_path, cell):
    lay(tmp_path, sample_submission=f"id,label\n7,{cell}\n")
    assert read_sample(tmp_path)[0].iat[0, 1] == cell


def test_weights_of_the_rows_are_no_class(tmp_path):
    lay(tmp_path, *(f"{n}.jpg" for n in range(6)))
    for weights in ("111111", "121212"):
        lines = [f"{n},{n % 3 // 2},{n % 3 % 2},{int(n % 3 == 0)}" for n in range(6)]
        lines = [f"{line},{float(w) / 2 if '2' in weights else w}"
                 for line, w in zip(lines, weights, strict=True)]  # fmt: skip
        index = read_train(lay(tmp_path, train="\n".join(["image,a,b,c,weight", *lines])))
        assert index.classes == ("a", "b", "c") and not index.several


def test_numbers_in_the_sample_are_grades_in_the_order_given(tmp_path):
    lay(tmp_path, sample_submission="id,label\n7,0\n8,0\n")
    classes, order = ("mild", "none", "severe"), ("none", "mild", "severe")
    form = read_form(tmp_path, classes, metric="qwk", ordinal=order, ids=["7", "8"])
    assert form.names == ("1", "0", "2") and "in the order of --ordinal" in form.notes[0]


def test_labels_are_counted_by_images_not_by_lines(tmp_path):
    lay(tmp_path, "1.jpg", "2.jpg", train="id,label\n1,a\n1,b\n1,c\n2,a\n")
    index = read_train(tmp_path, several=True)
    assert any("3 labels, 2.00 an image" in note for note in index.notes)


def test_rows_of_zeros_may_be_a_class(tmp_path):
    lay(tmp_path, *(f"{n}.jpg" for n in range(4)), train="id,a,b\n0,1,0\n1,0,1\n2,0,0\n3,0,1\n")
    index = read_train(tmp_path)
    assert index.several
    assert any("no line says 1 twice: if each image has one class" in n for n in index.notes)
    lay(tmp_path, train="id,a,b,none\n0,1,0,0\n1,0,1,0\n2,0,0,1\n3,0,1,0\n")  # followed
    assert read_train(tmp_path).classes == ("a", "b", "none")


def test_a_label_called_id_behind_the_images(tmp_path):
    lay(tmp_path, "test/1.jpg", "test/2.jpg", sample_submission="fname,id\n1.jpg,w\n2.jpg,w\n")
    assert rows(read_test(tmp_path), "id") == [("1.jpg",), ("2.jpg",)]


def test_a_sample_inside_the_folder_of_the_test(tmp_path):
    lay(
        tmp_path,
        *(f"{s}_images/p{n}-{k}.jpg" for s in ("train", "test") for n in "12345" for k in "12"),
    )
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    speeds = [f"p{n},{'xy'[int(n) % 2]},{int(n) % 2}" for n in "12345"]
    lay(tmp_path / "train", train="\n".join(["PetID,Breed,Speed", *speeds]))
    lay(
        tmp_path / "test", sample_submission="PetID,Speed\n" + "".join(f"p{n},0\n" for n in "12345")
    )
    index = read_train(tmp_path)
    assert index.columns["target"] == [*"1100110011"] and len(read_test(tmp_path).lines) == 10
    assert not any("pass --group_column PetID" in note for note in index.notes)


def test_ids_that_a_data_frame_wrote_as_decimals(tmp_path):
    lay(tmp_path, "test/007.jpg", "test/070.jpg", sample_submission="id,a\n70.0,0\n7.0,0\n")
    lay(tmp_path, test="id\n7\n70\n")
    test = read_test(tmp_path)
    assert rows(test, "id", "image") == [("70.0", "test/070.jpg"), ("7.0", "test/007.jpg")]


def test_pairs_of_images_are_refused(tmp_path):
    lay(tmp_path, "test/f1.jpg", "test/f2.jpg", sample_submission="pair,same\nf1.jpg-f2.jpg,0\n")
    refused(
        "'f1.jpg-f2.jpg': it names several images, and a line here is of one", read_test, tmp_path
    )


def test_a_second_id_in_the_sample_is_not_taken_for_the_label(tmp_path):
    lay(tmp_path, sample_submission="image,patient,label\n1,p1,cat\n2,p2,cat\n")
    refused("make it image,label, with a list", read_sample, tmp_path)


def test_folders_without_a_line_of_names(tmp_path):
    lay(tmp_path, *(f"data/p{p}/s1/{n}.png" for p in "12" for n in "12"))
    lay(tmp_path, train="a/data/p1/s1/,0\na/data/p2/s1/,1\n")  # MURA
    refused("write one above it, such as 'image,label'", read_train, tmp_path)
