"""Layouts of past contests that were once read wrongly in silence, or refused beside the point."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import FoldConfig
from src.data.finder import ImageFinder
from src.data.index import add_extra, read_test, read_train
from src.data.sample import read_sample
from src.pipelines.classification.prepare import check_test, read_form, read_index
from src.script import UserError
from tests.data.layout import NAMES, lay, pairs, put, refused, rows, table

# Columns that say the split


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [("is_training_image", "1", "0"), ("in_test_set", "False", "True"), ("train", "True", "False"),
     ("type", "train", "test"), ("purpose", "Training", "Testing")],
)  # fmt: skip
def test_rows_of_the_test_are_not_trained_on_whatever_the_column_is_called(tmp_path, name, yes, no):
    lay(tmp_path, *NAMES)
    says = [yes if place % 4 else no for place in range(12)]
    text = table(NAMES, "abc" * 4, says, head=f"image,label,{name}")
    index = read_train(lay(tmp_path, train=text))
    assert len(index) == 9 and not {"0.jpg", "4.jpg"} & {*index.table["image"]}
    assert any(f"3 rows whose {name} is test" in note for note in index.notes)


@pytest.mark.parametrize(
    ("head", "columns", "wanted"),
    [("image,car,train", (["1", "0"] * 6, ["0", "1"] * 6), {"car", "train"}),
     ("image,age,covid_test", ([*"123456789876"], ["0", "1"] * 6), {"0", "1"}),
     ("image,label,path", ("ab" * 6, ["train/1.png", "test/1.png"] * 6), {"a", "b"})],
)  # fmt: skip
def test_other_columns_say_no_split(tmp_path, head, columns, wanted):
    lay(tmp_path, *NAMES, train=table(NAMES, *columns, head=head))
    label = "covid_test" if "covid" in head else None
    index = read_train(tmp_path, image_column="image", label_column=label)
    assert len(index) == 12 and {*index.classes} == wanted


# Labels that lie elsewhere, or in another form


@pytest.mark.parametrize("cell", ["[{}]", "({})", "{}"])
def test_cells_of_a_0_or_1_for_each_class_are_refused(tmp_path, cell):
    cells = [f'"{cell.format(hot)}"' for hot in ["1, 0, 0", "0, 1, 1"] * 6]
    lay(tmp_path, *NAMES, train=table(NAMES, cells))
    refused(r"cells of label hold a 0 or 1 for each of 3 classes", read_train, tmp_path)


def test_lists_of_the_labels_0_and_1_are_lists(tmp_path):
    lay(tmp_path, *NAMES, train=table(NAMES, ["[0]", "[1]", '"[0, 1]"'] * 4))
    assert read_train(tmp_path).classes == ("0", "1")


def test_a_column_is_no_label_where_a_table_of_labels_lies_beside(tmp_path):
    ids = [name[:-4] for name in NAMES]
    lay(tmp_path, *NAMES, train=table(ids, ["north", "south"] * 6, head="id,site"))
    assert read_train(tmp_path).classes == ("north", "south")
    lay(tmp_path, labels="number,name\n0,north\n1,south\n")  # of the classes
    assert read_train(tmp_path).classes == ("north", "south")
    lay(tmp_path, train_labels=table(ids, "abc" * 4, head="id,species"))
    refused(r"if it is in labels.csv, train_labels.csv, join that", read_train, tmp_path)
    assert read_train(tmp_path, label_column="site").classes == ("north", "south")


@pytest.mark.parametrize("folder", ["part{}", "{}/0"])
def test_folders_in_which_the_labels_differ_are_no_classes(tmp_path, folder):
    images = [f"train/{folder.format(place % 2)}/im{place}.jpg" for place in range(12)]
    stems = [f"im{place}" for place in range(12)]
    lay(tmp_path, *images, labels=table(stems, "abc" * 4, head="id,label"))
    assert dict(pairs(tmp_path)) == dict(zip(images, "abc" * 4, strict=True))


@pytest.mark.parametrize(
    "text",
    [table(NAMES, "ab" * 6), "id,label\na,0\nb,1\n", "image,width\n0.jpg,7\n", "a,b\n1\n2,3,4\n"],
)  # fmt: skip
def test_class_folders_stay_classes_beside_other_tables(tmp_path, text):
    lay(tmp_path, *(f"train/{'ab'[place % 2]}/{place}.jpg" for place in range(12)), labels=text)
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and any("is not used" in note for note in index.notes)


def test_folders_of_cases_are_no_classes_but_share_a_label_a_fold_and_a_line(tmp_path):
    cases = [f"{place:05d}" for place in range(6)]
    lay(tmp_path, *(f"train/{case}/FLAIR/Image-{n}.png" for case in cases for n in (1, 2)))
    lay(tmp_path, train_labels=table(cases, "010101", head="case,MGMT"))
    lay(tmp_path, sample_submission="case,MGMT\n00009,0.5\n")
    lay(tmp_path, *(f"test/00009/FLAIR/Image-{n}.png" for n in (2, 10)))
    train, test = read_train(tmp_path), read_test(tmp_path)
    assert rows(train, "image", "target", "group")[1:3] == [
        ("train/00000/FLAIR/Image-2.png", "0", "00000"),
        ("train/00001/FLAIR/Image-1.png", "1", "00001"),
    ]
    assert "case names folders: 12 images are trained on" in " ".join(train.notes)
    assert test.lines == ("00009",) * 2 and test.line_ids == ["00009"]
    assert "2 images share 1 line of the submission" in " ".join(test.notes)
    lay(tmp_path, sample_submission="case,MGMT\n00009,0.5\n00009,0.5\n")
    refused("has id '00009' 2 times", read_test, tmp_path)
    lay(tmp_path, sample_submission="case,MGMT\n00009,0.5\n00077,0.5\n")
    refused("names 1 image not in .* first '00077'", read_test, tmp_path)


def test_a_column_of_classes_named_as_folders_is_none_of_lines(tmp_path):
    lay(tmp_path, *(f"train/{name}/{n}.jpg" for name in "ab" for n in (1, 2)))
    lay(tmp_path, train="image,label\na/1.jpg,a\nb/1.jpg,b\na/2.jpg,a\nb/2.jpg,b\n")
    lay(tmp_path, sample_submission="label,p\n7,0\n")
    train = read_train(tmp_path)
    assert len(train) == 4 and {*train.columns["group"]} == {"a", "b"}, train.notes


# Masks among the images


def draw(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / path)


def photographs(root, *paths):
    for seed, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / path)


@pytest.mark.parametrize(
    ("image", "mask"),
    [("a (1).png", "a (1)_mask.png"), ("a (1).png", "a (1)_mask_1.png"),
     ("images/1.png", "masks/1.png"), ("images/1.png", "masks/1_mask.png")],
)  # fmt: skip
def test_masks_in_class_folders_and_test_folders_are_no_images(tmp_path, image, mask):
    kept = [f"train/{name}/{image}" for name in ("ill", "mask")]
    photographs(tmp_path, *kept, f"test/{image}")
    draw(tmp_path, *(f"train/{name}/{mask}" for name in ("ill", "mask")), f"test/{mask}")
    index = read_train(tmp_path)
    assert rows(index, "image") == [(path,) for path in kept]
    assert any("2 files named as masks of images there" in note for note in index.notes)
    assert rows(read_test(tmp_path), "image") == [(f"test/{image}",)]


def test_photographs_of_masks_are_images(tmp_path):
    paths = ["train/masked/1.png", "train/masked/1_mask.png", "train/bare/1.png"]
    photographs(tmp_path, *paths)
    index = read_train(tmp_path)
    assert len(index) == 3 and any("taken for images" in note for note in index.notes)


def test_folders_of_images_and_of_two_kinds_of_masks_are_no_classes(tmp_path):
    lay(tmp_path, *(f"a_train/{name}/1.png" for name in ("class_id", "images", "masks")))
    lay(tmp_path, *(f"a_val/{name}/2.png" for name in ("class_id", "images", "masks")))
    refused("holds images and masks", read_train, tmp_path)


# Tables and ids


def test_a_table_inside_the_test_folder_says_the_ids(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/x/7.jpg", "test/x/8.jpg")
    (tmp_path / "test/test.csv").write_text("id,image\nT1,8.jpg\nT2,7.jpg\n")
    test = read_test(tmp_path)
    assert rows(test, "id", "image") == [("T1", "test/x/8.jpg"), ("T2", "test/x/7.jpg")]


def test_short_names_of_the_sample(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/7.jpg", "test/8.jpg")
    lay(tmp_path, sample="img,b,a\n8.jpg,0,0\n7.jpg,0,0\n")
    assert any(
        "sample.csv is not used: if it is the sample" in n for n in read_test(tmp_path).notes
    )
    (tmp_path / "sample.csv").rename(tmp_path / "sample_sub.csv")
    assert rows(read_test(tmp_path), "id") == [("8.jpg",), ("7.jpg",)]


@pytest.mark.parametrize(("mark", "said"), [(";", "';'"), ("\t", r"'\t'"), (",", "")])
def test_a_sample_with_other_marks_than_commas_is_said(tmp_path, mark, said):
    lay(tmp_path, sample_submission=f"id{mark}a{mark}b\n7.jpg{mark}0{mark}0\n")
    notes = read_sample(tmp_path)[1]
    assert len(notes) == bool(said) and all(f"has {said} between" in note for note in notes)
    form = read_form(tmp_path, ["a", "b"], metric="log_loss", ordinal=(), ids=["7.jpg"])
    assert (form.mark, form.named) == (mark, True)


@pytest.mark.parametrize("mark", [",", "\t"])
@pytest.mark.parametrize("ids", [["t1.jpg", "t2.jpg"], ["0007", "0008"], ["7", "8"]])
def test_a_sample_without_names_of_columns(tmp_path, ids, mark):
    """SIGNATE's sample_submit.csv: the submission has none either."""
    lay(tmp_path, *(f"test/{Path(key).stem}.jpg" for key in ids))
    (tmp_path / "sample_submit.csv").write_text("".join(f"{key}{mark}0\n" for key in ids))
    assert rows(read_test(tmp_path), "id") == [(key,) for key in ids]
    form = read_form(tmp_path, ["0", "1"], metric="accuracy", ordinal=(), ids=ids)
    assert (form.mark, form.named, form.kind) == (mark, False, "labels")


def test_ids_of_image_files_may_stand_last_in_the_sample(tmp_path):
    lay(tmp_path, sample_submission="a,b,picture\n0,0,7.jpg\n0,0,8.jpg\n")
    assert [*read_sample(tmp_path)[0]] == ["picture", "a", "b"]


def test_names_of_the_originals_yield_to_ids_that_are_files(tmp_path):
    lay(tmp_path, *(f"im{name}" for name in NAMES))
    stems = [f"im{name[:-4]}" for name in NAMES]
    away = [f"DSC{place}.JPG" for place in range(12)]
    text = table(stems, away, "abc" * 4, head="id,original_name,label")
    assert read_train(lay(tmp_path, train=text)).columns["image"][0] == "im0.jpg"
    lay(
        tmp_path,
        *NAMES,
        train=table([n[:-4] for n in NAMES], away, "abc" * 4, head="n,image,label"),
    )
    refused("names 12 images not in", read_train, tmp_path)  # a count of rows is no name


def test_paths_from_the_folder_of_a_notebook(tmp_path):
    cells = [f"../input/comp/train/{name}" for name in NAMES]
    lay(tmp_path, *(f"train/{name}" for name in NAMES), train=table(cells, "abc" * 4))
    assert [image for image, _ in pairs(tmp_path)] == [f"train/{name}" for name in NAMES]
    for cell in ("..", "../..", "../gone/99.jpg"):
        with pytest.raises(UserError, match="leaves the data folder"):
            ImageFinder(tmp_path, split="train").find(cell)


def test_quotation_marks_after_blanks(tmp_path):
    text = '"image" , "label" \n' + "".join(f'"{name}" , "a, {name[0]}" \n' for name in NAMES)
    index = read_train(lay(tmp_path, *NAMES, train=text))
    assert rows(index, "image", "target")[2] == ("2.jpg", "a, 2")


def test_images_of_both_splits_are_said(tmp_path):
    lay(tmp_path, *NAMES, train=table(NAMES, "abc" * 4), test="image\n3.jpg\n4.jpg\n")
    config = FoldConfig(data_dir=str(tmp_path))
    lines = check_test(config, read_index(config))
    assert "note: 2 test images are trained on too, first 3.jpg: leave them out there" in lines


@pytest.mark.parametrize("form", ["v{}/{:04}.jpg", "v{}/frame_{}.jpg", "v{}_{:03}.jpg"])
def test_two_columns_name_an_image(tmp_path, form):
    frames = [(video, frame) for video in range(4) for frame in range(3)]
    wanted = [f"train/{form.format(*pair)}" for pair in frames]
    cells = [f"frame_{f}.jpg" if "frame" in form else str(f) for _, f in frames]
    videos = [f"v{video}" for video, _ in frames]
    lay(tmp_path, *wanted, train=table(videos, cells, "abc" * 4, head="video,frame,label"))
    index = read_train(tmp_path)
    assert index.columns["image"] == wanted and index.columns["group"] == videos


def test_names_of_files_that_repeat_lie_in_folders_of_their_labels(tmp_path):
    paths = [f"train/{'ab'[place % 2]}/{place // 2}.jpg" for place in range(12)]
    names = [path.rpartition("/")[2] for path in paths]
    lay(tmp_path, *paths, train=table(names, "ab" * 6, head="filename,label"))
    assert pairs(tmp_path) == [(path, path[6]) for path in paths]
    assert not any("--group_column" in note for note in read_train(tmp_path).notes)


def test_names_of_test_images_inside_their_folder(tmp_path):
    lay(tmp_path, "test/rois/a.jpg", "test/rois/b.jpg", sample_submission="id,label\n0,x\n1,x\n")
    (tmp_path / "test/annotations.csv").write_text("id,path\n0,rois/b.jpg\n1,rois/a.jpg\n")
    found = rows(read_test(tmp_path), "id", "image")
    assert found == [("0", "test/rois/b.jpg"), ("1", "test/rois/a.jpg")]


@pytest.mark.parametrize("bare", ["images/bare", "images/nobody"])
def test_bare_names_of_images_in_a_class_called_mask(tmp_path, bare):
    paths = [f"{('images/mask', bare)[place % 2]}/{place}.jpg" for place in range(12)]
    lay(tmp_path, *paths, train=table(NAMES, ["worn", "none"] * 6))
    assert [image for image, _ in pairs(tmp_path)] == paths


def test_a_mask_stands_for_no_image_that_is_missing(tmp_path):
    lay(tmp_path, *(f"images/{name}" for name in NAMES[1:]), *(f"masks/{name}" for name in NAMES))
    lay(tmp_path, train=table(NAMES, "abc" * 4))
    refused("names 1 image not in", read_train, tmp_path)


def test_what_follows_all_names_may_be_left_out_alone(tmp_path):
    """UNIFESP's 1.2.826.1-c.dcm: the ids have the beginning that all names have."""
    ids = [f"1.2.826.{place}" for place in range(12)]
    lay(tmp_path, *(f"train/{key}-c.jpg" for key in ids), train=table(ids, "ab" * 6, head="u,y"))
    index = read_train(tmp_path, image_column="u")
    assert index.columns["image"] == [f"train/{key}-c.jpg" for key in ids]


# Lists, folders and numbers beside the images


def test_images_that_a_list_says_are_for_the_test(tmp_path):
    lay(tmp_path, "images/1.png", "images/2.png", "images/3.png", train="id,label\n1,a\n2,b\n3,a\n")
    (tmp_path / "test_readme.txt").write_text("1 download\n2 unpack\nnot here\nnor there\n")
    (tmp_path / "test_list.txt").write_text("3.png\n")
    (tmp_path / "test_notes.txt").write_text("1 of the images\nis\nblurred\n")
    index = read_train(tmp_path)
    assert index.table["id"].tolist() == ["1", "2"]
    assert "1 rows that test_list.txt names are not trained on" in index.notes[1]
    lay(tmp_path, "test/3.png")  # another 3
    assert len(read_train(tmp_path)) == 3


@pytest.mark.parametrize("sample", ["id,dog,cat,car\n1,0,0,0\n", "id,label\n1,cat\n"])
def test_classes_further_down_that_the_sample_asks_for(tmp_path, sample):
    lay(tmp_path, "train/pets/cat/1.jpg", "train/pets/dog/2.jpg", "train/road/car/3.jpg")
    assert read_train(tmp_path).classes == ("pets", "road")
    lay(tmp_path, sample_submission=sample)
    index = read_train(tmp_path)
    assert index.classes == ("car", "cat", "dog") and "as the sample asks" in index.notes[0]
    lay(tmp_path, sample_submission="id,label\n1,road\n")
    assert read_train(tmp_path).classes == ("pets", "road")


def test_blanks_around_names_of_the_sample_stay(tmp_path):
    lay(tmp_path, "test/1.jpg", sample_submission=" cat , id, dog\n0,1,0\n")
    form = read_form(tmp_path, ("cat", "dog"), metric="log_loss", ordinal=(), ids=["1"])
    assert form.header == (" id", " cat ", " dog") and form.columns.names == ("cat", "dog")


def test_a_folder_for_each_image_is_no_class(tmp_path):
    lay(tmp_path, *(f"train/{case}/{case}.jpg" for case in range(20)))
    lay(tmp_path / "of", "train/0/1.jpg", "train/1/1.jpg")
    refused(
        "each of its 20 folders has one image, first train/0/0.jpg: where", read_train, tmp_path
    )
    add_extra(read_train(tmp_path / "of"), tmp_path / "train")  # pictures of known classes
    lay(tmp_path, "train/0/more.jpg")
    assert len(read_train(tmp_path).classes) == 20
    lay(tmp_path / "words", *(f"train/{'x' * case}/1.jpg" for case in range(1, 25)))
    assert len(read_train(tmp_path / "words").classes) == 24


def test_class_folders_that_are_there_again(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    for name in "ab":
        shutil.copytree(tmp_path / "train" / name, tmp_path / "train/cells" / name)
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and "train/cells/ holds copies of" in index.notes[0]
    (tmp_path / "train/cells/a/1.jpg").write_bytes(b"something else")  # halves that are there
    assert read_train(tmp_path).classes == ("a", "b", "cells")


def test_numbers_of_splits_are_no_labels(tmp_path):
    lay(tmp_path, "1.jpg", "2.jpg", train="image,a,b,partition\n1.jpg,1,-1,0\n2.jpg,-1,1,2\n")
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and "partition is not used" in " ".join(index.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [("map.csv", "class_id,name\n1,dog\n0,cow\n2,cat\n"), ("m.json", '{"dog":1,"cow":0,"cat":2}'),
     ("to_name.json", '{"0": "cow", "1": "dog", "2": "cat"}'), ("classes.txt", "cow\ndog\ncat\n"),
     ("n.json", '["cow", "dog", "cat"]'), ("obj.names", "0 cow\n1: dog\n2 cat\n")],
)  # fmt: skip
def test_numbers_of_classes_in_a_file_beside(tmp_path, name, text):
    lay(tmp_path, "test/1.jpg", sample_submission="id,label\n1,0\n")

    def names():
        form = read_form(tmp_path, ("cat", "cow", "dog"), metric="accuracy", ordinal=(), ids=["1"])
        return form.names

    (tmp_path / "counts.csv").write_text("name,images\ncow,20\ncat,10\ndog,0\n")
    assert names() == ("0", "1", "2")
    (tmp_path / name).write_text(text)
    assert names() == ("2", "0", "1")
    lay(tmp_path, sample_submission="id,label\n1,3\n")
    assert names() == ("3", "1", "2")


def test_numbers_in_names_win_over_places_in_a_list(tmp_path):
    lay(tmp_path, sample_submission="id,label\n1,1\n")
    (tmp_path / "classes.txt").write_text("class_1\nclass_10\nclass_2\n")
    (tmp_path / "deep.json").write_text("[" * 9**5)
    classes = ("class_1", "class_2", "class_10")
    form = read_form(tmp_path, classes, metric="accuracy", ordinal=(), ids=["1"])
    assert form.names == ("1", "2", "10")


def test_folders_that_but_begin_like_a_split(tmp_path):
    lay(tmp_path, "images/Testudo/1.jpg", "images/Valeriana/2.jpg", "images/Trainor/3.jpg")
    lay(tmp_path, "testImages/1.jpg", train="id,label\n1,a\n2,b\n3,a\n")
    lay(tmp_path, sample_submission="id,label\n1,a\n")
    assert read_train(tmp_path).columns["image"][0] == "images/Testudo/1.jpg"
    assert read_test(tmp_path).columns["image"] == ["testImages/1.jpg"]


@pytest.mark.parametrize(
    ("cells", "comma"), [("0,5;0,5", True), ("0.5;0.5", False), ("0;0", False)]
)
def test_decimal_commas_of_the_sample(tmp_path, cells, comma):
    lay(tmp_path, "test/1.jpg", sample_submission=f"id;cat;dog\n1;{cells}\n")
    form = read_form(tmp_path, ("cat", "dog"), metric="log_loss", ordinal=(), ids=["1"])
    assert (form.mark, form.comma) == (";", comma)


@pytest.mark.parametrize("end", ["frames", "hq", "ingimages", "A"])
def test_folders_whose_names_begin_with_both_splits(tmp_path, end):
    lay(tmp_path, *(f"{split}{end}/{n}.jpg" for split in ("train", "test") for n in (1, 2)))
    lay(tmp_path, train="id,label\n1,a\n2,b\n", test="id\n1\n2\n")
    assert read_train(tmp_path).columns["image"] == [f"train{end}/1.jpg", f"train{end}/2.jpg"]
    assert read_test(tmp_path).columns["image"] == [f"test{end}/1.jpg", f"test{end}/2.jpg"]
