"""Tables and folders as other tools export them: read, or refused and the remedy followed."""

import pytest

from src.data.index import add_extra, find_root, read_test, read_train
from src.data.sample import read_sample
from tests.data.layout import lay, refused, rows

TEN = [f"train/{n}.jpg" for n in range(10)]


def table(root, header, line, name="train"):
    lay(root, *TEN, **{name: header + "\n" + "".join(f"{line(n)}\n" for n in range(10))})
    return root


def named(root, word, **options):
    return [note for note in read_train(root, **options).notes if word in note]


# Cells and files


@pytest.mark.parametrize("place", ["https://h.org/p/{}?size=1", "gs://b/p/{}", "/data/upload/{}"])
def test_addresses_are_found_by_the_names_of_files(tmp_path, place):
    table(tmp_path, "url,label", lambda n: f"{place.format(f'{n}.jpg')},{n % 2}")
    assert [image for (image,) in rows(read_train(tmp_path), "image")] == TEN
    if "://" in place:
        lay(tmp_path, train=f"url,label\n{place.format('77.jpg')},0\n")
        refused(r"is an address.*download the images there", read_train, tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train/ISIC_{:07}.png", "test/ISIC_{:07}.png"), ("train/{}_thumb.png", "test/{}_thumb.png"),
     ("images/train_{}.png", "images/test_{}.png"), ("train/train{}a.png", "test/test{}a.png")],
)  # fmt: skip
def test_ids_without_what_all_names_have(tmp_path, train, test):
    lay(tmp_path, *(train.format(n) for n in range(12)), *(test.format(n) for n in range(3)))
    lay(tmp_path, train="id,label\n" + "".join(f"{n},{n % 2}\n" for n in range(12)))
    lay(tmp_path, test="id\n2\n0\n")
    index = read_train(tmp_path)
    assert [image for (image,) in rows(index, "image")] == [train.format(n) for n in range(12)]
    assert any("'0' is taken for" in note for note in index.notes)
    assert rows(read_test(tmp_path), "image") == [(test.format(2),), (test.format(0),)]


def test_a_column_that_counts_is_not_the_image(tmp_path):
    table(tmp_path, "no,picture_name,label", lambda n: f"{n},{9 - n},{n % 2}")
    assert rows(read_train(tmp_path), "image")[0] == ("train/9.jpg",)


def test_names_in_full_come_before_numbers_of_files(tmp_path):
    lay(tmp_path, *(f"train/img_{n}.jpg" for n in range(10)))
    lay(
        tmp_path, train="id,scan,label\n" + "".join(f"{n},img_{9 - n},{n % 2}\n" for n in range(10))
    )
    assert rows(read_train(tmp_path), "image")[0] == ("train/img_9.jpg",)


@pytest.mark.parametrize("cell", ["1.00E+05", '"1,001"'])
def test_ids_that_a_spreadsheet_rewrote(tmp_path, cell):
    lay(tmp_path, *TEN, train=f"image_id,label\n{cell},a\n")
    refused("spreadsheet has rewritten the ids", read_train, tmp_path)


def test_a_cell_longer_than_any_name(tmp_path):
    table(tmp_path, "image,x", lambda n: f"{n} {'12 ' * 90},{n / 7}")
    refused(r"hold the pixels|not in", read_train, tmp_path)


def test_images_that_are_several_or_packed_are_said(tmp_path):
    lay(tmp_path, *(f"train/p{n}-{k}.jpg" for n in range(5) for k in ("blue", "red")))
    lay(tmp_path, train="age,pet,speed\n" + "".join(f"{n},p{n},{n % 2}\n" for n in range(5)))
    refused(r"pet 'p0': there are p0-blue\.jpg, p0-red\.jpg for it", read_train, tmp_path)
    lay(tmp_path / "more", "train-image.hdf5", train="isic_id,target\nI_1,0\nI_2,1\n")
    refused(r"if the images are in train-image\.hdf5, write them as", read_train, tmp_path / "more")


# Folders


@pytest.mark.parametrize(
    "file",
    ["train.bson", "train-images-idx3-ubyte", "x/data_batch_1", "a.npz", "train.tfrec", "x/a.h5"],
)
def test_many_images_in_one_file(tmp_path, file):
    lay(tmp_path, file, names="id,name\n1,a\n")
    refused(f"write the images of {file} below .*train/ and the labels", find_root, tmp_path)


def test_class_folders_far_down_and_lists_of_test_images(tmp_path):
    lay(tmp_path, "food/images/pie/1.jpg", "food/images/ramen/1.jpg", "food/meta/test.txt", "a.jpg")
    refused(
        r"folders food/images/pie, ramen are .*\(those that food/meta/test\.txt",
        find_root,
        tmp_path,
    )
    (tmp_path / "food/images").rename(tmp_path / "train")  # followed
    assert read_train(find_root(tmp_path)).classes == ("pie", "ramen")


def test_a_table_is_moved_with_its_ending(tmp_path):
    lay(tmp_path, "train/1.png", "train/2.png")
    lines = '{"file_name": "train/1.png", "label": 0}\n{"file_name": "train/2.png", "label": 1}\n'
    (tmp_path / "metadata.jsonl").write_text(lines)
    refused(r"metadata\.jsonl has the labels, move it to .*train\.jsonl", read_train, tmp_path)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "train.jsonl")  # followed
    assert read_train(tmp_path).classes == ("0", "1")


def test_splits_inside_classes(tmp_path):
    lay(tmp_path, *(f"{c}/{s}/{c}{s}.jpg" for c in ("cat", "dog") for s in ("train", "test")))
    refused(r"lie in the folders of the classes \(cat, dog\): move the", find_root, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [(["train/train/1.jpg"], r"one class, 'train'.*lay the images of each class"),
     (["train/images/1.jpg", "train/masks/1.png"], r"images and masks .*train_lane\.py learns")],
)  # fmt: skip
def test_folders_that_are_no_classes(tmp_path, files, message):
    lay(tmp_path, *files)
    refused(message, read_train, tmp_path)


def test_a_table_inside_the_validation_folder(tmp_path):
    one = f"p_jpg.rf.{1:032x}.jpg", f"p_jpg.rf.{2:032x}.jpg", f"q_jpg.rf.{3:032x}.jpg"
    lay(tmp_path, *(f"train/{name}" for name in one), "valid/r.jpg")
    text = "filename, cat, dog\n" + "".join(
        f"{n}, {k % 2}, {1 - k % 2}\n" for k, n in enumerate(one)
    )
    (tmp_path / "train/_classes.csv").write_text(text)
    (tmp_path / "valid/_classes.csv").write_text("filename, cat, dog\nr.jpg, 1, 0\n")
    index = read_train(tmp_path)
    assert index.table["group"].tolist() == ["train/p_jpg"] * 2 + [""]  # altered copies
    assert named(tmp_path, "valid/ is not used")
    lay(tmp_path, train=text + "valid/r.jpg, 1, 0\n")  # followed
    assert len(read_train(tmp_path)) == 4 and not named(tmp_path, "valid/ is not used")


# Lines


def test_lines_that_name_an_image_again(tmp_path):
    lay(tmp_path, *TEN, train="id,x,Target\n1,3,0\n2,1,1\n2,5,1\n3,4,0\n")
    assert rows(read_train(tmp_path), "image", "target") == [
        ("train/1.jpg", "0"), ("train/2.jpg", "1"), ("train/3.jpg", "0"),
    ]  # fmt: skip
    assert named(tmp_path, "1 line of an image again: joined")
    lay(tmp_path, train="id,label\n1,a\n2,a\n2,b\n3,b\n")
    refused(r"train/2\.jpg with different labels \(a, b\).*f1_samples", read_train, tmp_path)
    index = read_train(tmp_path, several=True)  # followed
    assert index.table["target"].tolist() == ["a", "a|b", "b"] and index.several
    assert "label = label, one label a line" in index.notes[0]
    polar = "id,label\n1,polar bear\n2,polar bear\n2,seal, grey\n3,seal, grey\n"
    lay(tmp_path, train=polar.replace("seal, grey", '"seal, grey"'))
    index = read_train(tmp_path, several=True)  # blanks and commas are of the names
    assert index.table["target"].tolist() == ["polar bear", "polar bear|seal, grey", "seal, grey"]
    lay(tmp_path, train="id,label\n1,a\n2,a b\n2,a b\n3,b c\n")  # twice the same
    assert read_train(tmp_path, several=True).table["target"].tolist() == ["a", "a|b", "b|c"]
    lay(tmp_path, train="id,label\n1,a\n2,a b\n2,c\n3,b\n")  # each stands alone elsewhere
    assert read_train(tmp_path, several=True).table["target"].tolist() == ["a", "a|b|c", "b"]
    lay(tmp_path, train="id,label,Confidence\n1,a,1\n1,b,0\n2,b,1\n")
    refused(r"may say no \(Confidence is 0\)", read_train, tmp_path, several=True)


@pytest.mark.parametrize(
    ("name", "cells", "kept", "word"),
    [("is_test", "0001", 8, "is_test is test"), ("isTrain", ["True", "False"], 5, "is test"),
     ("split", ["tr", "te", "va"], 7, "split is valid"), ("split", ["train", "dev"], 10, "valid"),
     ("split", "012", 10, "split is not used"), ("fold", "01234", 10, "fold is not used"),
     ("kfold", ["f0", "f1", "f2", "f3"], 10, "kfold is not used")],
)  # fmt: skip
def test_columns_of_splits_and_folds(tmp_path, name, cells, kept, word):
    table(
        tmp_path, f"id,{name},result", lambda n: f"{n},{cells[n % len(cells)]},{'xy'[n // 3 % 2]}"
    )
    index = read_train(tmp_path)
    assert len(index) == kept and set(index.classes) <= {"x", "y"} and named(tmp_path, word)
    assert set(index.table["group"]) == {""}


def test_a_split_that_is_the_label_stays(tmp_path):
    table(tmp_path, "id,is_train", lambda n: f"{n},{n % 2}")
    assert read_train(tmp_path).classes == ("0", "1") and len(read_train(tmp_path)) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [(lambda n: f"{n},0.7,0.3" if n % 2 else f"{n},0.2,0.8", "hold shares of the classes"),
     (lambda n: f"{n},{('', '1.0', '-1.0')[n % 3]},{('1', '')[n % 2]}", "hold '' beside 0 and 1")],
)  # fmt: skip
@pytest.mark.parametrize("sample", [True, False])
def test_columns_of_classes_that_say_more_than_yes_and_no(tmp_path, line, message, sample):
    table(tmp_path, "id,rust,scab", line)
    if sample:
        lay(tmp_path, sample_submission="id,rust,scab\n99,0,0\n")
    refused(message, read_train, tmp_path)


def test_columns_of_ones_beside_other_columns(tmp_path):
    hot = lambda n: ",".join(str(int(n % 3 == k)) for k in range(3))  # noqa: E731
    table(tmp_path, "id,age,a,b,c", lambda n: f"{n},{20 + n},{hot(n)}")
    assert read_train(tmp_path).classes == ("a", "b", "c")
    table(tmp_path, "id,sex,a,b", lambda n: f"{n},{'mf'[n % 2]},{n % 2},{int(n < 7)}")
    refused(r"such as sex.*if a, b are labels.* pass --metric mean_auc", read_train, tmp_path)
    assert read_train(tmp_path, several=True).classes == ("a", "b")  # followed


def test_cells_of_labels_in_other_forms(tmp_path):
    table(tmp_path, "id,tags", lambda n: f"{n},{('x+y', 'x', 'y')[n % 3]}")
    assert named(tmp_path, "made of other labels, such as 'x+y'")
    assert read_train(tmp_path, several=True).classes == ("x", "y")  # followed
    table(tmp_path, "id,tags", lambda n: f"{n},{('14 6', '13', '6 13')[n % 3]}")
    lay(tmp_path, sample_submission="id,tags\n99,0 1 2\n")
    assert read_train(tmp_path).classes == ("13", "14", "6")
    table(tmp_path, "id,tags", lambda n: f"{n},{{'{'xy'[n % 2]}': 1}}")
    refused("cells of tags are dictionaries", read_train, tmp_path)


def test_other_columns_are_no_labels(tmp_path):
    table(
        tmp_path,
        "id,smoker,old,result",
        lambda n: f"{n},{('', '1')[n % 2]},{('', '0', '1')[n % 3]},{'xy'[n % 2]}",
    )
    assert read_train(tmp_path).classes == ("x", "y")
    table(tmp_path, "id;grade", lambda n: f"{n};{n % 3},0")
    lay(tmp_path, sample_submission="id;grade\n99;0,0\n")
    assert not read_train(tmp_path).several
    table(tmp_path, "id,folds", lambda n: f"{n},{n % 3}")
    assert read_train(tmp_path).classes == ("0", "1", "2")


# What stands where a table should


@pytest.mark.parametrize(
    ("text", "message"),
    [("version https://git-lfs.github.com/spec/v1\noid 1\n", "Git LFS pointer: run git lfs pull"),
     ("<!DOCTYPE html><html></html>\n", "is a web page: download it again"),
     ("TRAIN,gs://b/1.jpg,a\nTEST,gs://b/2.jpg,b\n", "such as 'split,image,label'"),
     ("1.jpg\t0\n2.jpg\t1\n", r"such as 'image\\tlabel'"),
     ("id,label\n1,a\n2,b,c\n3,a\n", "a cell that holds ',' needs quotation marks"),
     ("id,prob,prob\n,a,b\n1,0,1\n", "leave one line of names"),
     ("id,label\n1,\n2,a\n3,\n", "for 1 and 1 more: add it, or remove the lines without")],
)  # fmt: skip
def test_tables_that_are_none_yet(tmp_path, text, message):
    lay(tmp_path, *TEN, train=text)
    refused(message, read_train, tmp_path)


def test_single_quotation_marks(tmp_path):
    table(tmp_path, "'image','label'", lambda n: f"'{n}.jpg','{'ab'[n % 2]}'")
    assert read_train(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [("id,a,b\n", "has no rows: restore it"), ("id\n1\n", "add them, or remove the file"),
     ("id,first,second\n1,a,b\n2,b,a\n", "make it id,first, with a list")],
)  # fmt: skip
def test_samples_that_ask_for_nothing_that_is_written(tmp_path, text, message):
    lay(tmp_path, sample_submission=text)
    refused(message, read_sample, tmp_path)
    lay(tmp_path, sample_submission="id,a,b\n1,True,False\n")
    assert read_sample(tmp_path)[0] is not None


# External images


@pytest.mark.parametrize("form", ["classes", "names", "table", "bare"])
def test_external_images_without_a_train_folder(tmp_path, form):
    index = read_train(
        table(tmp_path / "data", "id,label", lambda n: f"{n},{['cat', 'dog'][n % 2]}")
    )
    more = tmp_path / "more"
    names = {"classes": ["cat/1.jpg", "dog/2.jpg"], "names": ["cat.1.jpg", "cat.2.jpg", "dog.1.jpg",
             "dog.2.jpg"]}.get(form, ["1.jpg", "2.jpg"])  # fmt: skip
    lay(more, *names, **({"notes": "file,label\n1.jpg,cat\n2.jpg,dog\n"} if len(form) < 6 else {}))
    if form == "names":
        (more / "notes.csv").unlink()
    added = add_extra(index, more / "notes.csv" if form == "table" else more).table.iloc[10:]
    assert added["image"].tolist() == [(more / name).as_posix() for name in names]
    assert [name[:3] for name in added["target"]] == ["cat", "dog"] if len(names) == 2 else True
