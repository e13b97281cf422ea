"""Labels in JSON: COCO annotations of whole images, records, file → label; Parquet."""

import json

import pandas as pd
import pytest

from src.data.csv_io import read_csv
from src.data.index import find_root, read_test, read_train
from src.data.metadata import read_metadata
from src.data.root import find_annotations, read_head
from src.data.sources.registry import detect_source
from tests.data.layout import lay, pairs, photos, refused, rows

NAMES = {10: "Acer, red", 4021: "Quercus alba"}
BIG = 98765432109876543210123


def coco(images, labels=None, **more):
    """Return COCO's content: images are id → file; labels pairs of image and category."""
    content = {"info": {}, "images": [{"id": i, "file_name": f} for i, f in images.items()]}
    if labels is not None:
        content["annotations"] = [
            {"id": 900 + n, "image_id": image, "category_id": k} | more
            for n, (image, k) in enumerate(labels)
        ]
        content["categories"] = [{"id": k, "name": name} for k, name in NAMES.items()]
    return content


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def contest(root, *, ids=(1, 2, 3), test=(7, 8), sample="id,predicted\n7,10\n8,10\n", **more):
    photos(root, "train", "a.jpg", "b.jpg", "c.jpg")
    photos(root, "test", "a.jpg", "b.jpg")
    images = dict(zip(ids, ("train/a.jpg", "train/b.jpg", "train/c.jpg"), strict=True))
    labels = list(zip(ids, (10, 4021, 10), strict=True))
    write(root / "train.json", coco(images, labels, **more))
    write(root / "test.json", coco(dict(zip(test, ("test/a.jpg", "test/b.jpg"), strict=True))))
    return lay(root, sample_submission=sample)


THREE = [("train/a.jpg", "10"), ("train/b.jpg", "4021"), ("train/c.jpg", "10")]


@pytest.mark.parametrize("ids", [(1, 2, 3), ("x", "y", "z"), (BIG, BIG + 1, 7), (1.0, 2.0, 3.0)])
def test_coco_annotations_are_the_table(tmp_path, ids):
    index = read_train(find_root(contest(tmp_path, ids=ids)))
    assert rows(index, "image", "target") == THREE
    first = str(int(ids[0])) if isinstance(ids[0], float) else str(ids[0])
    assert index.columns["id"][0] == first
    assert rows(read_test(tmp_path), "id", "image") == [("7", "test/a.jpg"), ("8", "test/b.jpg")]
    assert detect_source(tmp_path) == "folders"  # check_data.py looks for classes, not for masks


@pytest.mark.parametrize(
    ("train", "test"),
    [("train2018", "test2018"), ("metadata/x2020_train_annotations", "metadata/x2020_test_info"),
     ("train/metadata", "test/metadata"), ("annotations/train", "annotations/test")],
)  # fmt: skip
def test_names_and_places(tmp_path, train, test):
    contest(tmp_path)
    for old, new in (("train", train), ("test", test)):
        (tmp_path / f"{new}.json").parent.mkdir(exist_ok=True)
        (tmp_path / f"{old}.json").rename(tmp_path / f"{new}.json")
    assert pairs(find_root(tmp_path)) == THREE and len(read_test(tmp_path)) == 2
    path = tmp_path / f"{train}.json"
    if "metadata" not in train:  # images in a folder that names no one split
        (tmp_path / "train").rename(tmp_path / "train_val2018")
        path.write_text(path.read_text().replace("train/", "train_val2018/"))
        assert [label for _, label in pairs(find_root(tmp_path))] == ["10", "4021", "10"]


@pytest.mark.parametrize(
    ("sample", "labels"),
    [("id,predicted\n7,0\n8,0\n", {"10", "4021"}), ("id,10,4021\n7,0,0\n8,0,0\n", {"10", "4021"}),
     ("id,name\n7,Quercus alba\n8,Quercus alba\n", {*NAMES.values()}),
     ('id,Quercus alba,"Acer, red"\n7,0,0\n8,0,0\n', {*NAMES.values()})],
)  # fmt: skip
def test_labels_are_what_the_sample_asks_for(tmp_path, sample, labels):
    assert set(read_train(contest(tmp_path, sample=sample)).classes) == labels


def test_categories_without_names(tmp_path):
    content = json.loads((contest(tmp_path) / "train.json").read_text())
    write(tmp_path / "train.json", content | {"categories": [{"id": 10}, {"id": 4021}]})
    assert pairs(tmp_path) == THREE
    refused("no column 'category_name'", read_train, tmp_path, label_column="category_name")


def test_columns_of_the_images_are_groups_and_metadata(tmp_path):
    names = [f"{n}.jpg" for n in range(24)]
    photos(tmp_path, "train", *names)
    photos(tmp_path, "test", "t.jpg", "u.jpg")
    content = coco({n: f"train/{n}.jpg" for n in range(24)}, [(n, 10 + n % 2) for n in range(24)])
    for n, image in enumerate(content["images"]):
        image |= {"location": n // 4, "seq_id": f"s{n // 2}", "hour": n % 7}
    write(tmp_path / "train.json", content)
    content = coco({50: "test/t.jpg", 51: "test/u.jpg"})
    content["images"] = [image | {"hour": 3, "location": 90} for image in content["images"]]
    write(tmp_path / "test.json", content)
    train = read_train(tmp_path)
    assert train.columns["group"][:5] == ["0"] * 4 + ["1"]
    assert read_metadata(train, read_test(tmp_path)).numbers == ("hour",)


def test_names_of_the_classes_are_not_offered_as_groups(tmp_path):
    files = {n: f"train/{n}.jpg" for n in range(60)}
    lay(tmp_path, *files.values())
    content = coco(files, [(n, n % 30) for n in range(60)])
    content["categories"] = [{"id": k, "name": f"kind {k}"} for k in range(30)]
    write(tmp_path / "train.json", content)
    assert len(read_train(tmp_path).notes) == 1


def test_annotations_that_are_copies_contradict_or_lack_their_image(tmp_path):
    path = contest(tmp_path) / "train.json"
    content = json.loads(path.read_text())
    also = {"id": 990, "image_id": 1, "category_id": 10}
    content["annotations"] += [also, also | {"image_id": 77}]
    write(path, content)
    index = read_train(tmp_path)
    assert rows(index, "id", "image") == [("1", "train/a.jpg"), ("2", "train/b.jpg"),
                                          ("3", "train/c.jpg")]  # fmt: skip
    assert any("1 annotation is of images that it does not list (first '77')" in note
               for note in index.notes)  # fmt: skip
    content["annotations"][-1] = also | {"category_id": 4021}
    write(path, content)
    refused(r"lines of train/a.jpg with different labels.*--metric f1", read_train, tmp_path)
    index = read_train(tmp_path, several=True)  # followed
    assert index.several and index.columns["target"] == ["10|4021", "4021", "10"]
    content["annotations"] = [also | {"image_id": 77}]
    write(path, content)
    refused(r"no annotation is of an image .* '77', ids like '1'", read_train, tmp_path)


def test_two_images_with_one_id(tmp_path):
    contest(tmp_path, ids=(1, 2, 3), test=(7, 8))
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"].append(content["images"][0])  # the same twice
    write(tmp_path / "train.json", content)
    assert pairs(tmp_path) == THREE
    content["images"][-1] = {"id": 1, "file_name": "train/c.jpg"}
    write(tmp_path / "train.json", content)
    refused("images share ids with others, first '1': give each", read_train, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda text: text[:-40], "train.json is not JSON .*: restore the file"),
     (lambda text: text.replace('"id": 1, ', ""), "its images have no id: restore"),
     (lambda text: text.replace('"image_id"', '"x"'), "its annotations have no image_id"),
     (lambda text: text.replace('"annotations": [', '"annotations": [3, '), "annotations: 3 is no"),
     (lambda text: text.replace('"images": [', '"images": [null, '), "images: None is no JSON"),
     (lambda text: json.dumps(json.loads(text) | {"images": 5}), "images: 5 is no JSON object"),
     (lambda text: json.dumps(json.loads(text) | {"annotations": {"a": 1}}), "annotations: {'a'"),
     (lambda text: json.dumps(json.loads(text) | {"categories": True}), "categories: True is no"),
     (lambda text: text.replace('"id": 4021', '"id": 10'), "category '10' has several names"),
     (lambda text: text.replace("train/a.jpg", "train/z.jpg"), "names 1 image not in"),
     (lambda text: text.replace('"category_id": 4021', '"x": 1'), "no label in column category_")],
)  # fmt: skip
def test_damage_is_named(tmp_path, change, message):
    path = contest(tmp_path) / "train.json"
    path.write_text(change(path.read_text()))
    refused(message, read_train, tmp_path)


def test_boxes_and_masks_are_refused_unless_a_label_is_named(tmp_path):
    contest(tmp_path, bbox=[0, 0, 4, 4])
    refused(r"boxes of objects .* pass --label_column category_id", read_train, tmp_path)
    assert detect_source(tmp_path) == "coco"
    index = read_train(tmp_path, label_column="category_id")  # followed
    assert rows(index, "image", "target") == THREE
    contest(tmp_path, segmentation=[[0, 0, 4, 0, 4, 4]])
    refused(r"segmentation holds masks of objects .*train_lane.py", read_train, tmp_path)
    contest(tmp_path, segmentation=[])
    assert pairs(tmp_path) == THREE


def test_folders_of_classes_yield_to_annotations_of_whole_images_alone(tmp_path):
    photos(tmp_path, "train/05_oak", "a.jpg", "b.jpg")
    photos(tmp_path, "train/06_elm", "c.jpg")
    names = {1: "train/05_oak/a.jpg", 2: "train/05_oak/b.jpg", 3: "train/06_elm/c.jpg"}
    labels = [(1, 10), (2, 4021), (3, 10)]
    write(tmp_path / "train.json", coco(names, labels, bbox=[0, 0, 1, 1]))
    assert read_train(tmp_path).classes == ("05_oak", "06_elm")
    write(tmp_path / "train.json", dict.fromkeys(names.values(), "x"))
    assert read_train(tmp_path).classes == ("05_oak", "06_elm")
    write(tmp_path / "train.json", coco(names, labels))
    assert read_train(tmp_path).classes == ("10", "4021")


def test_validation_annotations_are_trained_on_too(tmp_path):
    contest(tmp_path)
    photos(tmp_path, "val", "a.jpg", "d.jpg")
    write(tmp_path / "val.json", coco({4: "a.jpg", 5: "d.jpg"}))
    index = read_train(tmp_path)
    assert "val.json is not used: it has no category_id" in index.notes and len(index) == 3
    write(tmp_path / "val.json", coco({4: "a.jpg", 5: "d.jpg"}, [(4, 4021), (5, 10)]))
    index = read_train(tmp_path)
    assert rows(index, "image", "target") == [*THREE, ("val/a.jpg", "4021"), ("val/d.jpg", "10")]
    assert any("2 lines of val.json are trained on too" in note for note in index.notes)


# Other JSON


@pytest.mark.parametrize(
    "content",
    [{"a.jpg": 10, "b.jpg": 4021, "c.jpg": 10},
     {"a.jpg": {"label": 10, "x": 1}, "b.jpg": {"label": 4021}, "c.jpg": {"label": 10}},
     [{"image": "a.jpg", "label": 10}, {"image": "b.jpg", "label": 4021},
      {"image": "c.jpg", "label": 10}],
     '{"image": "a.jpg", "label": 10}\n{"image": "b.jpg", "label": 4021}\n'
     '{"image": "c.jpg", "label": 10}\n',
     {"image": {"0": "a.jpg", "1": "b.jpg", "2": "c.jpg"}, "label": {"0": 10, "1": 4021, "2": 10}},
     {"image": ["a.jpg", "b.jpg", "c.jpg"], "label": [10, 4021, 10]},
     {"annotations": [{"image": "a.jpg", "label": 10}, {"image": "b.jpg", "label": 4021},
                      {"image": "c.jpg", "label": 10}]},
     {"images": [{"image": "a.jpg", "label": 10}, {"image": "b.jpg", "label": 4021},
                 {"image": "c.jpg", "label": 10}]}],
)  # fmt: skip
@pytest.mark.parametrize("name", ["train", "labels", "train_labels", "train/metadata"])
def test_other_forms(tmp_path, content, name):
    photos(tmp_path, "train", "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / f"{name}.json", content)
    assert pairs(find_root(tmp_path)) == THREE


def test_lists_in_json_are_several_labels(tmp_path):
    photos(tmp_path, "train", "a.jpg", "b.jpg")
    write(tmp_path / "train.json", {"a.jpg": ["x", "y"], "b.jpg": ["y"]})
    index = read_train(tmp_path)
    assert index.several and index.columns["target"] == ["x|y", "y"]
    content = {"images": [{"imageId": "1", "url": "a.jpg"}, {"imageId": "2", "url": "b.jpg"}]}
    content["annotations"] = [{"imageId": "1", "labelId": ["95", "66"]},
                              {"imageId": "2", "labelId": ["66"]}]  # fmt: skip
    write(tmp_path / "train.json", content)
    assert read_train(tmp_path).columns["target"] == ["66|95", "66"]


def test_images_are_called_by_their_ids_and_not_by_addresses(tmp_path):
    photos(tmp_path, "train", "1.jpg", "2.jpg", "3.jpg")
    content = {"images": [{"id": n, "url": f"https://x.org/{n}_z.jpg"} for n in (1, 2, 3)]}
    content["annotations"] = [{"image_id": n, "label_id": n % 2} for n in (1, 2, 3)]
    write(tmp_path / "train.json", content)
    assert pairs(tmp_path)[0] == ("train/1.jpg", "1")
    photos(tmp_path, "train", "1_z.jpg", "2_z.jpg", "3_z.jpg")
    assert pairs(tmp_path)[0] == ("train/1_z.jpg", "1")
    for name in ("1.jpg", "1_z.jpg"):
        (tmp_path / "train" / name).unlink()
    refused(r"is an address.*download|names 1 images that are not", read_train, tmp_path)


def test_ids_for_names_where_the_file_is_named_train(tmp_path):
    photos(tmp_path, "train", "01.jpg", "02.jpg")
    (tmp_path / "train.json").write_text(json.dumps({"01": "x", "02": "y"}), encoding="utf-16")
    assert pairs(find_root(tmp_path)) == [("train/01.jpg", "x"), ("train/02.jpg", "y")]


def test_the_sample_may_name_test_images_by_their_files(tmp_path):
    sample = "Id,predicted\n1,10\n0,10\n"  # an id that is another's name, as well
    contest(tmp_path, sample=sample)
    photos(tmp_path, "test", "0.jpg", "1.jpg")
    write(tmp_path / "test.json", coco({0: "test/1.jpg", 1: "test/0.jpg"}))
    assert rows(read_test(tmp_path), "id", "image") == [("1", "test/0.jpg"), ("0", "test/1.jpg")]
    for name in "01":
        (tmp_path / f"test/{name}.jpg").unlink()
    for names in ("a.jpg", "b.jpg"), ("a", "b"), ("test/b.jpg", "test/a.jpg"):
        sample = "".join(f"{name},10\n" for name in names)
        index = read_test(contest(tmp_path, sample=f"id,predicted\n{sample}"))
        assert index.columns["id"] == [*names]
        assert {*index.columns["image"]} == {"test/a.jpg", "test/b.jpg"}


def test_pixels_in_json_are_said(tmp_path):
    write(tmp_path / "train.json", [{"id": "x", "band": [0.5] * 70, "label": k} for k in (0, 1)])
    refused(
        r"train.json seems to hold the pixels themselves: write", read_train, find_root(tmp_path)
    )


def test_coco_captions_and_boxes_beside_are_passed_over(tmp_path):
    contest(tmp_path)
    content = json.loads((tmp_path / "train.json").read_text())
    for name in ("captions_train2017", "train_2017_bboxes", "train_mini"):
        write(tmp_path / f"{name}.json", content | {"annotations": []})
    assert pairs(tmp_path) == THREE


@pytest.mark.parametrize(
    "content", [{"0": "cat"}, {"classes": ["cat"]}, "{", "[1]", [{"id": 0, "name": "cat"}]]
)
def test_json_of_another_kind_is_no_table(tmp_path, content):
    photos(tmp_path, "train", "cat.0.jpg", "cat.1.jpg", "dog.0.jpg", "dog.1.jpg")
    write(tmp_path / "labels.json", content)
    assert read_train(find_root(tmp_path)).classes == ("cat", "dog")


def test_annotations_of_one_image_each_are_not_all_opened(tmp_path, monkeypatch):
    contest(tmp_path)
    for number in range(200):
        write(tmp_path / f"annotations/{number:04d}.json", {"version": "5.0", "shapes": []})
    opened = []
    monkeypatch.setattr(
        "src.data.root.read_head", lambda *args: opened.append(1) or read_head(*args)
    )
    assert find_annotations(tmp_path, "train") == tmp_path / "train.json"
    assert len(opened) < 50


def test_a_folder_in_a_tables_place_is_named(tmp_path):
    """Some programs unpack train.json.zip to train.json/train.json."""
    contest(tmp_path)
    for name in ("train.json", "test.json", "sample_submission.csv"):
        (tmp_path / name).rename(tmp_path / "one")
        (tmp_path / name).mkdir()
        (tmp_path / "one").rename(tmp_path / name / name)
    refused(r"if the table lies in the folder train.json, put it in", read_train, tmp_path)
    refused(r"sample_submission.csv is a folder: if the table lies in", read_test, tmp_path)
    (tmp_path / "sample_submission.csv").rename(tmp_path / "away")
    (tmp_path / "test").rename(tmp_path / "photos")
    refused(r"if the table lies in the folder test.json, put it in", read_test, tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "test.json").rename(tmp_path / "annotations/test.json")
    refused(r"in the folder annotations/test.json, put it in", read_test, tmp_path)


def test_extra_images_listed_in_json(tmp_path):
    from src.data.index import add_extra

    contest(tmp_path / "own")
    photos(tmp_path / "more", "x", "1.jpg", "2.jpg")
    write(tmp_path / "more/list.json", {"1.jpg": "10", "2.jpg": "4021"})
    index = add_extra(read_train(tmp_path / "own"), tmp_path / "more/list.json")
    assert index.columns["target"] == ["10", "4021", "10", "10", "4021"]


# Parquet


def test_parquet_is_read_or_asks_for_its_package(tmp_path, monkeypatch):
    photos(tmp_path, "train", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")

    def absent(path):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", absent)
    refused(
        "needs the package pyarrow: pip install pyarrow, or save", read_train, find_root(tmp_path)
    )
    table = pd.DataFrame({"image": ["a.jpg", "b.jpg", "c.jpg"], "label": [10, 4021, 10]})
    monkeypatch.setattr(pd, "read_parquet", lambda _: table)
    assert pairs(find_root(tmp_path)) == THREE
    odd = table.assign(group=[1.0, None, 2.0], house_id=[7.0, None, 8.0], tags=[["x", "y"]] * 3)
    monkeypatch.setattr(pd, "read_parquet", lambda _: odd.assign(day=pd.Timestamp("2020-01-02")))
    cells = read_csv(tmp_path / "train.parquet").iloc[1].tolist()
    assert cells == ["b.jpg", "4021", "", "", '["x", "y"]', "2020-01-02 00:00:00"]
    monkeypatch.setattr(pd, "read_parquet", lambda _: table.assign(image=b"photo"))
    refused(
        "holds the images themselves: write them as files", read_csv, tmp_path / "train.parquet"
    )
    for name in "abc":
        (tmp_path / f"train/{name}.jpg").unlink()
    refused(r"write the images of train.parquet below", read_train, tmp_path)
