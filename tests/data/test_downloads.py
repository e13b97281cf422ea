"""Contests and data sets as downloaded: read, or refused with a remedy that is followed."""

import pytest

from src.data.index import find_root, read_test, read_train
from src.data.sample import read_sample
from src.data.sources.registry import detect_source
from tests.data.layout import lay, pairs, photos, refused, rows

TEN = [f"{number}.jpg" for number in range(10)]


# What names say


@pytest.mark.parametrize(
    ("train", "test"),
    [("entrenamiento", "prueba"), ("treino", "teste"), ("训练集", "测试集"), ("訓練", "テスト"),
     ("trn", "tst"), ("Training", "Testing"), ("학습", "시험")],
)  # fmt: skip
def test_splits_are_known_in_several_languages(tmp_path, train, test):
    lay(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{test}/1.jpg")
    assert pairs(tmp_path) == [(f"{train}/a/1.jpg", "a"), (f"{train}/b/1.jpg", "b")]
    assert rows(read_test(tmp_path), "image") == [(f"{test}/1.jpg",)]


@pytest.mark.parametrize("place", ["train", "train/train"])
def test_files_named_by_their_classes(tmp_path, place):
    photos(tmp_path, place, "cat.0.jpg", "cat.1.jpg", "dog (1).jpg", "dog (12).jpg")
    index = read_train(tmp_path)
    assert [name for _, name in pairs(tmp_path)] == ["cat", "cat", "dog", "dog"]
    assert "files' names say the classes: cat (2), dog (2)" in index.notes[0]


def test_folders_of_masks_beside_images_named_by_drives_are_pointed_out(tmp_path):
    names = [f"{drive}_{n:04d}" for drive in ("seqA", "seqB") for n in range(2)]
    photos(tmp_path, "train", *(f"{name}.jpg" for name in names))
    assert not any("masks?" in note for note in read_train(tmp_path).notes)
    photos(tmp_path, "trainannot", *(f"{name}.png" for name in names))
    assert any(
        "trainannot: are these masks? train_lane.py" in n for n in read_train(tmp_path).notes
    )


@pytest.mark.parametrize("name", ["eel.jpg", "eel_1.jpg", "7.jpg"])
def test_files_of_other_names_say_none(tmp_path, name):
    photos(tmp_path, "train", "cat.0.jpg", "cat.1.jpg", "dog.1.jpg", "dog.2.jpg", name)
    refused("no images in class folders", read_train, tmp_path)


def test_what_a_folder_of_classes_leaves_out_is_said(tmp_path):
    lay(tmp_path, "train/dog/pug/1.jpg", "train/dog/husky/1.jpg", "train/cat/siam/1.jpg")
    lay(tmp_path, "pred/1.jpg", drivers="subject,image\np1,1.jpg\n")
    notes = read_train(tmp_path).notes
    assert any("(cat/siam, dog/husky, dog/pug, …) are taken together" in note for note in notes)
    assert "folders of images that are not used: pred" in notes
    assert any("drivers.csv is not used" in note for note in notes)


# Tables beside folders that lie deeper, and under other names


def test_a_sample_above_the_folders_is_the_sample(tmp_path):
    lay(tmp_path, "imgs/train/c0/1.jpg", "imgs/train/c1/2.jpg", "imgs/test/3.jpg")
    lay(tmp_path, sample_submission="img,c1,c0\n3.jpg,0,0\n")
    root = find_root(tmp_path)
    assert root == tmp_path
    assert pairs(root) == [("imgs/train/c0/1.jpg", "c0"), ("imgs/train/c1/2.jpg", "c1")]
    assert rows(read_test(root), "id", "image") == [("3.jpg", "imgs/test/3.jpg")]


@pytest.mark.parametrize(
    ("train", "sample"),
    [("train_v2", "sample_submission_v2"), ("stage_2_train", "stage_2_sample_submission"),
     ("Train-Labels", "SampleSubmissionFormat")],
)  # fmt: skip
def test_tables_of_longer_names(tmp_path, train, sample):
    photos(tmp_path, "train-jpg", "a.jpg", "b.jpg")
    photos(tmp_path, "test-jpg", "c.jpg")
    lay(tmp_path, **{train: "image,tag\na,x\nb,y\n", sample: "image,x,y\nc,0,0\n"})
    assert pairs(tmp_path) == [("train-jpg/a.jpg", "x"), ("train-jpg/b.jpg", "y")]
    assert rows(read_test(tmp_path), "id", "image") == [("c", "test-jpg/c.jpg")]


@pytest.mark.parametrize("ending", ["csv.zip", "xlsx", "txt"])
def test_a_sample_that_is_packed_or_no_csv_is_said(tmp_path, ending):
    name = f"sample_submission.{ending}"
    lay(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", name)
    assert any(f"{name} is not used" in note for note in read_test(tmp_path).notes)
    (tmp_path / name).unlink()  # followed
    lay(tmp_path, sample_submission="id,a,b\n1,0,0\n")
    assert read_test(tmp_path).notes == () and read_sample(tmp_path)[0] is not None


def test_lines_of_json(tmp_path):
    photos(tmp_path, "train", "1.png", "2.png", "3.png")
    lines = ['{"file_name": "1.png", "label": 0}', "", '{"file_name": "2.png", "label": 1}']
    path = tmp_path / "train/metadata.jsonl"
    path.write_text("\n".join([*lines, '{"file_name": "3.png", "label": 1, "x": [1, 2]}']))
    assert pairs(tmp_path) == [("train/1.png", "0"), ("train/2.png", "1"), ("train/3.png", "1")]
    path.write_text('{"file_name": \n')
    refused("jsonl, line 1: no JSON object", read_train, tmp_path)


# Columns


def test_the_column_of_images_is_the_one_whose_cells_are_files(tmp_path):
    photos(tmp_path, "train", *TEN)
    lines = "".join(f"{n},x{n % 3},{n % 2}\n" for n in range(10))
    lay(tmp_path, train="id_code,kind,diagnosis\n" + lines)
    assert [image for image, _ in pairs(tmp_path)] == [f"train/{name}" for name in TEN]
    lines = "".join(f"{n + 90},{n},{n % 2}\n" for n in range(10))  # an id that is no file
    lay(tmp_path, train="id,scan,label\n" + lines)
    assert [image for image, _ in pairs(tmp_path)] == [f"train/{name}" for name in TEN]


def test_a_label_called_id(tmp_path):
    photos(tmp_path, "train", *TEN)
    photos(tmp_path, "test", "t.jpg")
    lay(tmp_path, sample_submission="Image,Id\nt.jpg,w_1 w_2\n")
    lay(tmp_path, train="Image,Id\n" + "".join(f"{n}.jpg,w_{n % 2}\n" for n in range(10)))
    assert read_train(tmp_path).classes == ("w_0", "w_1")


def test_the_label_is_what_the_samples_cells_are_made_of(tmp_path):
    photos(tmp_path, "train", *TEN)
    lines = "".join(f"{n}.jpg,{'ab'[n % 2]},w{n % 5}\n" for n in range(10))
    lay(tmp_path, train="image,species,individual_id\n" + lines)
    lay(tmp_path, sample_submission="image,predictions\nt.jpg,w1 w3 new\n")
    assert read_train(tmp_path).classes == ("w0", "w1", "w2", "w3", "w4")


def test_candidates_for_the_label_are_those_that_may_be_one(tmp_path):
    photos(tmp_path, "train", *TEN)
    lines = "".join(f"{n}.jpg,7,{n % 2},{n % 3},{n / 8}\n" for n in range(10))
    lay(tmp_path, train="image,width,sign,shape,area\n" + lines)
    index = read_train(tmp_path)
    assert index.classes == ("0", "1")  # by its name
    lay(tmp_path, train="image,width,a,b,area\n" + lines)
    refused(r"such as a \(2 values\), b \(3 values\)$", read_train, tmp_path)
    assert read_train(tmp_path, label_column="b").classes == ("0", "1", "2")


def test_ones_and_minus_ones(tmp_path):
    photos(tmp_path, "train", *TEN)
    lines = "".join(f"{n}.jpg,{(-1, 1)[n % 2]},{(-1, 1)[n % 3 == 0]}\n" for n in range(10))
    lay(tmp_path, train="image,male,smiling\n" + lines)
    index = read_train(tmp_path)
    assert index.several and index.table["target"].tolist()[:4] == [
        "smiling", "male", "", "male|smiling",
    ]  # fmt: skip


def test_rows_of_the_test_split_are_not_trained_on(tmp_path):
    photos(tmp_path, "images", *TEN)
    splits = ["train", "train", "val", "Test"]
    body = [f"images/{n}.jpg,{'ab'[n % 2]},{splits[n % 4]}\n" for n in range(10)]
    lay(tmp_path, train="path,label,split\n" + "".join(body))
    index = read_train(tmp_path)
    assert [image for image, _ in pairs(tmp_path)] == [
        f"images/{n}.jpg" for n in range(10) if n % 4 < 3
    ]
    assert any("2 rows whose split is test" in note for note in index.notes)
    lay(tmp_path, test="path,label,split\n" + body[3] + body[7])  # followed
    assert rows(read_test(tmp_path), "image") == [("images/3.jpg",), ("images/7.jpg",)]


def test_a_line_for_each_image_and_class(tmp_path):
    photos(tmp_path, "stage_2_train", "ID_a.png", "ID_b.png")
    photos(tmp_path, "stage_2_test", "ID_c.png")
    lines = "ID_a_any,1\nID_a_epidural,1\nID_b_any,0\nID_b_epidural,0\n"
    lay(tmp_path, stage_2_train="ID,Label\n" + lines)
    lay(tmp_path, stage_2_sample_submission="ID,Label\nID_c_any,0\nID_c_epidural,0\n")
    assert pairs(tmp_path) == [
        ("stage_2_train/ID_a.png", "any|epidural"), ("stage_2_train/ID_b.png", ""),
    ]  # fmt: skip
    assert rows(read_test(tmp_path), "id") == [("ID_c",)]


# Cells that are no files


def test_numbers_whatever_their_zeros(tmp_path):
    photos(tmp_path, "train", "0001.jpg", "0002.jpg", "10.jpg")
    lay(tmp_path, train="id,label\n1,a\n2.0,b\n10,b\n")
    index = read_train(tmp_path)
    assert rows(index, "image") == [("train/0001.jpg",), ("train/0002.jpg",), ("train/10.jpg",)]
    assert any("'1' is taken for train/0001.jpg" in note for note in index.notes)
    photos(tmp_path, "train", "01.jpg")  # now 1 may be either
    refused(r"names 2 images .* first '1'.*like train/0001.jpg", read_train, tmp_path)


def test_what_may_bring_the_images_back_is_said(tmp_path):
    lay(tmp_path, "train_images.zip", "other.zip", train="image,label\n1.jpg,a\n2.jpg,b\n")
    refused(r"unpack train_images\.zip there", read_train, tmp_path)
    (tmp_path / "train_images.zip").unlink()
    (tmp_path / "other.zip").unlink()
    photos(tmp_path, "train", "1.jpg_red.png", "1.jpg_blue.png")
    refused(r"there are 1\.jpg_blue\.png, 1\.jpg_red\.png for it", read_train, tmp_path)


def test_a_folder_above_ours_in_the_paths(tmp_path):
    photos(tmp_path, "dataset/train", "1.jpg", "2.jpg")
    lay(
        tmp_path / "dataset",
        train="path;label\ndataset\\train\\1.jpg;a\nsets/dataset/train/2.jpg;b\n",
    )
    assert [image for image, _ in pairs(tmp_path / "dataset")] == ["train/1.jpg", "train/2.jpg"]


def test_samples_of_two_stages_are_named(tmp_path):
    lay(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test_stg1/3.jpg", "test_stg2/4.jpg")
    lay(tmp_path, sample_submission_stg1="id,a,b\n3.jpg,0,0\n", sample_submission_stg2="id,a,b\n")
    said = r"sample_submission_stg1\.csv, sample_submission_stg2\.csv are not used: if one is the"
    refused(said, read_test, tmp_path)
    assert "folders of images that are not used: test_stg1, test_stg2" in read_train(tmp_path).notes
    (tmp_path / "sample_submission_stg1.csv").rename(tmp_path / "sample_submission.csv")
    assert rows(read_test(tmp_path), "image") == [("test_stg1/3.jpg",)]  # followed
    assert not any("folders of images" in note for note in read_train(tmp_path).notes)


def test_rows_of_files_of_a_system_are_left_out(tmp_path):
    photos(tmp_path, "train", "1.jpg", "2.jpg")
    lay(tmp_path, train="image,label\n.DS_Store,\n1.jpg,a\nC:\\x\\Thumbs.db,\n2.jpg,b\n")
    assert pairs(tmp_path) == [("train/1.jpg", "a"), ("train/2.jpg", "b")]
    said = "train.csv: 2 rows of files of the system (.DS_Store): left out"
    assert said in read_train(tmp_path).notes


def test_tables_that_are_not_read_are_said(tmp_path):
    photos(tmp_path, "train", "1.jpg", "2.jpg", "3.jpg")
    photos(tmp_path, "test", "4.jpg", "5.jpg")
    lay(tmp_path, train="id,wide,high\n1,7,a\n2,9,b\n3,8,c\n", extra="id,label\n1,a\n2,b\n3,b\n")
    refused(r"if it is in extra\.csv, join that to train\.csv", read_train, tmp_path)
    lay(tmp_path, train="id,wide,label\n1,7,a\n2,9,b\n3,8,b\n")  # followed
    assert any("extra.csv is not used" in note for note in read_train(tmp_path).notes)
    lay(tmp_path, sample_submission="id,a,b\n4,0,0\n")
    assert read_test(tmp_path).notes == (
        "1 image of the test folder has no line in sample_submission.csv: not predicted",
    )


def test_pixels_in_the_table(tmp_path):
    names = ",".join(f"pixel{n}" for n in range(64))
    lay(tmp_path, train=f"label,{names}\n" + f"1{',0' * 64}\n" * 3)
    refused("hold the pixels themselves", read_train, tmp_path)
    lay(tmp_path, train="emotion,pixels\n" + f"0,{'7 ' * 64}\n" * 3)
    refused("hold the pixels themselves", read_train, tmp_path)
    lay(tmp_path, train=",".join(f"long_name_{n}" for n in range(40)) + "\n" + "a," * 39 + "b\n")
    refused(r"long_name_11, … \(40 in all\)", read_train, tmp_path)


def test_run_lengths_are_no_classes(tmp_path):
    photos(tmp_path, "train", "1.jpg", "2.jpg")
    lay(tmp_path, train="ImageId,ClassId,EncodedPixels\n1.jpg,1,1 2\n2.jpg,2,3 4\n")
    refused(r"EncodedPixels holds the run lengths.*train_lane\.py", read_train, tmp_path)
    assert read_train(tmp_path, label_column="ClassId").classes == ("1", "2")
    assert detect_source(tmp_path) == "rle"


def test_several_images_for_one_line_of_the_submission(tmp_path):
    photos(tmp_path, "test", "1.png", "2.png")
    photos(tmp_path, "test", "3.png")
    lay(tmp_path, test="image_id,side\n1,x_R\n2,x_L\n3,x_R\n")
    lay(tmp_path, sample_submission="side,p\nx_L,0\nx_R,0\n")
    test = read_test(tmp_path)
    assert rows(test, "id") == [("test/2.png",), ("test/1.png",), ("test/3.png",)]
    assert test.lines == ("x_L", "x_R", "x_R") and test.line_ids == ["x_L", "x_R"]
    photos(tmp_path, "train", "1.png", "2.png", "3.png")
    lay(tmp_path, train="image_id,side,ill\n1,y_L,0\n2,y_L,0\n3,z_L,1\n")
    assert read_train(tmp_path).columns["group"] == ["y_L", "y_L", "z_L"], "a line, a fold"
    lay(tmp_path, test="image_id,side\n1,x_R\n2,x_L\n1,x_R\n")
    refused("has id 'x_R' 2 times", read_test, tmp_path)
    lay(tmp_path, sample_submission="image_id,p\n1,0\n2,0\n3,0\n")
    lay(tmp_path, test="image_id,side\n1,x_R\n2,x_L\n3,x_R\n")
    assert rows(read_test(tmp_path), "id") == [("1",), ("2",), ("3",)], "a line an image is asked"


def test_a_test_table_whose_first_column_is_no_id(tmp_path):
    photos(tmp_path, "Test", "1.png", "2.png")
    lay(tmp_path, Test="Width,ClassId,Path\n30,1,Test/1.png\n30,0,Test/2.png\n")
    assert rows(read_test(tmp_path), "id") == [("Test/1.png",), ("Test/2.png",)]


# What is no data set


@pytest.mark.parametrize(
    ("file", "message"),
    [("data/train-00000-of-00001.parquet", "write the images of data/train-00000"),
     ("train.p", r"images of train\.p below .* as train\.csv \(docs/forms\.md shows how\), else"),
     ("plant-pathology.zip", r"found \./ \(1 \.zip\).*; unpack plant-pathology\.zip there"),
     ("metadata/train_annotations.json", r"write the labels of metadata/train_ann.*\.json as"),
     ("flowers/rose/1.jpg", r"folders flowers/daisy, rose are classes, move them into .*train"),
     ("notes/readme.md", r"found flowers/daisy/ \(1 \.jpg\), notes/ \(1 \.md\)")],
)  # fmt: skip
def test_what_was_found_instead_is_said(tmp_path, file, message):
    lay(tmp_path, file, "flowers/daisy/1.jpg")
    refused(message, find_root, tmp_path)
    if "rose" in file:  # followed
        (tmp_path / "flowers").rename(tmp_path / "train")
        assert read_train(find_root(tmp_path)).classes == ("daisy", "rose")
