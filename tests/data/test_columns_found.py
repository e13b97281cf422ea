"""Which column is the label and which the group, where no name says it."""

import pytest

from src.data.index import read_train
from tests.data.layout import lay, refused


def houses(root, *, num=24, sample="id,kitchen,bath\nx,0,0\n", header="image,room,house"):
    """Lay down photographs of two rooms of ``num / 4`` houses, each house twice in each room."""
    for number in range(num):
        lay(root, f"train/{number}.jpg")
    cells = [(number, ("bath", "kitchen")[number % 2], f"h{number // 4}") for number in range(num)]
    lines = "".join(f"{image}.jpg,{room},{house}\n" for image, room, house in cells)
    (root / "train.csv").write_text(f"{header}\n{lines}")
    if sample:
        (root / "sample_submission.csv").write_text(sample)
    return root


def test_the_label_is_what_the_sample_asks_for_and_the_group_what_is_named_like_a_subject(tmp_path):
    index = read_train(houses(tmp_path))
    assert index.classes == ("bath", "kitchen")
    assert index.table["group"].tolist()[:5] == ["h0"] * 4 + ["h1"]
    assert index.notes[0] == (
        "train.csv: image = image, label = room (as the sample submission asks), group = house"
    )


def test_without_a_sample_the_label_is_the_one_column_of_few_words(tmp_path):
    index = read_train(houses(tmp_path, sample=""))
    assert index.classes == ("bath", "kitchen") and index.table["group"].nunique() == 6
    assert "label = room (the one column of few different words)" in index.notes[0]


def test_the_sample_wins_over_a_name(tmp_path):
    index = read_train(houses(tmp_path, header="image,kind,label"))
    assert index.classes == ("bath", "kitchen")


@pytest.mark.parametrize("column", ["h", "made", "weight"])
def test_a_group_that_is_not_sure_is_offered_and_not_taken(tmp_path, column):
    index = read_train(houses(tmp_path, header=f"image,room,{column}"))
    assert set(index.table["group"]) == {""} and "group = none" in index.notes[0]
    assert f"column {column} has 6 values in 24 rows" in index.notes[1]
    again = read_train(tmp_path, group_column=column)
    assert again.table["group"].nunique() == 6


def test_a_subject_that_is_the_same_for_a_whole_class_is_no_group(tmp_path):
    for number in range(24):
        lay(tmp_path, f"train/{number}.jpg")
    lines = "".join(f"{n}.jpg,k{n % 6},s{n % 6 // 2 * 2}{n % 6}\n" for n in range(24))
    (tmp_path / "train.csv").write_text(f"image,label,session\n{lines}")
    index = read_train(tmp_path)
    assert set(index.table["group"]) == {""}


def test_kinds_of_classes_are_no_group(tmp_path):
    lay(tmp_path, *(f"train/{number}.jpg" for number in range(24)))
    lines = "".join(f"{n}.jpg,{n % 6},{n % 6 // 2}\n" for n in range(24))
    lay(tmp_path, train=f"name,class,group\n{lines}")  # Products-10K
    index = read_train(tmp_path)
    assert "group = none" in index.notes[0] and set(index.table["group"]) == {""}
    assert read_train(tmp_path, group_column="group").table["group"].nunique() == 3
    lines = "".join(f"{n}.jpg,{n % 2},p{n % 2}\n" for n in range(24))
    lay(tmp_path, train=f"name,class,patient_id\n{lines}")
    assert "column patient_id has 2 values in 24 rows: if" in " ".join(read_train(tmp_path).notes)


def test_of_nested_subjects_the_larger_is_the_group(tmp_path):
    for number in range(32):
        lay(tmp_path, f"train/{number}.jpg")
    lines = "".join(f"{n}.jpg,k{n % 2},l{n // 4},p{n // 8}\n" for n in range(32))
    (tmp_path / "train.csv").write_text(f"image,label,lesion_id,patient_code\n{lines}")
    index = read_train(tmp_path)
    assert index.table["group"].nunique() == 4 and "group = patient_code" in index.notes[0]


def test_what_cannot_be_told_is_listed(tmp_path):
    for number in range(12):
        lay(tmp_path, f"train/{number}.jpg")
    lines = "".join(f"{n}.jpg,{'ab'[n % 2]},{'xy'[n % 2]},{n}\n" for n in range(12))
    (tmp_path / "train.csv").write_text(f"image,mood,weather,size\n{lines}")
    remedy = r"--label_column, such as mood \(2 values\), weather \(2 values\)$"
    refused(remedy, read_train, tmp_path)
    assert read_train(tmp_path, label_column="mood").classes == ("a", "b")


def test_one_hot_columns_beside_others(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg",
        train="image,sex,MEL,NV,UNK\n1.jpg,1,1.0,0.0,0.0\n2.jpg,0,0.0,1.0,0.0\n",
        sample_submission="image,MEL,NV,UNK\nq,0,0,0\n")  # fmt: skip
    index = read_train(tmp_path)
    assert index.classes == ("MEL", "NV")
    assert any("no image is of class UNK: it is not trained" in note for note in index.notes)


def test_the_one_column_that_the_sample_asks_for_is_the_label(tmp_path):
    lay(tmp_path, "train/1.jpg", "train/2.jpg",
        train="image,species,label\n1.jpg,owl,x\n2.jpg,wren,y\n",
        sample_submission="image,species\nq,owl\n")  # fmt: skip
    assert read_train(tmp_path).classes == ("owl", "wren")


def test_numbers_in_the_sample_are_those_that_train_csv_gives_the_labels(tmp_path):
    lay(tmp_path, *(f"train/{number}.jpg" for number in range(6)),
        train="image,label,code,age,weight\n" + "".join(
            f"{n}.jpg,{('owl', 'tit', 'wren')[n % 3]},{(2, 0, 1)[n % 3]},{n // 2},{n % 3 + 0.5}\n"
            for n in range(6)
        ))  # fmt: skip
    for asked, label in (
        ("label\nq,0", "code"),
        ("target\nq,0", "code"),
        ("label\nq,owl", "label"),
    ):
        lay(tmp_path, sample_submission=f"image,{asked}\n")
        assert f"label = {label} " in read_train(tmp_path).notes[0]


@pytest.mark.parametrize("name", ["fold", "mode", "set"])
def test_what_the_sample_asks_for_is_no_column_of_splits(tmp_path, name):
    lay(tmp_path, *(f"train/{number}.jpg" for number in range(4)),
        train=f"image,{name},age\n0.jpg,train,5\n1.jpg,test,6\n2.jpg,train,7\n3.jpg,test,8\n",
        sample_submission=f"image,{name}\nq,train\n")  # fmt: skip
    assert read_train(tmp_path).classes == ("test", "train")


def test_a_name_that_labels_often_have_is_taken_where_it_is_the_only_one(tmp_path):
    for number in range(12):
        lay(tmp_path, f"train/{number}.jpg")
    lines = "".join(f"{n}.jpg,{'ab'[n % 2]},{'xyz'[n % 3]}\n" for n in range(12))
    (tmp_path / "train.csv").write_text(f"image,species,camera\n{lines}")
    index = read_train(tmp_path)
    assert index.classes == ("a", "b") and "label = species (by its name)" in index.notes[0]
    (tmp_path / "train.csv").write_text(f"image,species,breed\n{lines}")
    refused(r"such as species \(2 values\), breed \(3 values\)", read_train, tmp_path)


def test_subjects_in_the_files_names_are_groups(tmp_path):
    for person in range(1, 9):
        lay(
            tmp_path,
            f"train/ill/person{person}_virus_1.jpg",
            f"train/ill/person{person}_virus_2.jpg",
        )
    lay(tmp_path, *(f"train/well/IM-{n:04d}.jpg" for n in range(6)))
    index = read_train(tmp_path)
    groups = dict(zip(index.table["id"], index.table["group"], strict=True))
    assert (
        groups["train/ill/person3_virus_1.jpg"]
        == groups["train/ill/person3_virus_2.jpg"]
        == "person3"
    )
    assert groups["train/well/IM-0000.jpg"] == ""
    assert "file names tell of 8 subjects, such as person1: each is in one fold" in index.notes


def test_subjects_in_paths_of_a_table_are_groups_where_no_column_is(tmp_path):
    houses(tmp_path, header="image,room,nothing")
    for number in range(24):
        lay(tmp_path, f"train/House {number // 4}/{number}.jpg")
    lines = "".join(f"House {n // 4}/{n}.jpg,{('bath', 'kitchen')[n % 2]},{n}\n" for n in range(24))
    (tmp_path / "train.csv").write_text(f"image,room,number\n{lines}")
    assert read_train(tmp_path).table["group"].tolist()[:5] == ["house0"] * 4 + ["house1"]


def test_of_several_subjects_in_a_name_one_that_could_be_a_column_of_groups_is_taken(tmp_path):
    for n in range(40):
        lay(tmp_path, f"train/{n % 2}/camera{n % 3}_site{n // 4}_plot{n // 2}_{n}.jpg")
    assert set(read_train(tmp_path).table["group"]) == {f"site{n}" for n in range(10)}


@pytest.mark.parametrize("sides", [("left", "right"), ("OS", "OD"), ("L", "R")])
def test_both_sides_of_a_subject_are_a_group(tmp_path, sides):
    names = [f"{n // 2}_{sides[n % 2]}" for n in range(40)]
    lay(tmp_path, *(f"train/{name}.jpeg" for name in names))
    lines = "".join(f"{name},{n // 3 % 2}\n" for n, name in enumerate(names))
    (tmp_path / "trainLabels.csv").write_text(f"image,level\n{lines}")
    index = read_train(tmp_path)
    assert index.table["group"].tolist() == [f"train/{n // 2}" for n in range(40)]
    assert "file names tell of 20 subjects, such as train/0: each is in one fold" in index.notes


@pytest.mark.parametrize(
    "name",
    [
        "object{c}_{n}.jpg",  # the class itself
        "object{n}_{c}.jpg",  # each once
        "camera{h}_{n}.jpg",  # three values in forty
        "shot{q}_{n}.jpg",  # no subject
        "{n}_left.jpg",  # one side
    ],
)
def test_names_that_tell_of_no_subjects_make_no_groups(tmp_path, name):
    for n in range(40):
        lay(tmp_path, f"train/{n % 2}/" + name.format(c=n % 2, n=n, h=n % 3, q=n // 4))
    assert not read_train(tmp_path).table["group"].any()


def test_series_of_names_without_a_subject_are_offered_as_groups_and_not_taken(tmp_path):
    for n in range(40):
        lay(tmp_path, f"train/{'ab'[n % 2]}/SOB-{n // 4:02d}AB-{n % 4}.jpg")
    index = read_train(tmp_path)
    assert not index.table["group"].any()
    assert "20 series of names differ in their last number alone" in index.notes[-1]
