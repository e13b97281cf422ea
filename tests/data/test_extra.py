"""External images: in the training rows of every fold, in no held-out rows, copies left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

from src.data.folds import EXTRA, QUARANTINED, load_folds, make_folds, save_folds
from src.data.index import Index, add_extra, read_train
from tests.data.layout import refused


def make_data(root: Path, classes: dict[str, int], seed: int) -> Path:
    """Write class folders of files with contents of their own."""
    rng = np.random.default_rng(seed)
    for name, count in classes.items():
        (root / "train" / name).mkdir(parents=True)
        for row in range(count):
            (root / "train" / name / f"{row}.jpg").write_bytes(rng.bytes(50))
    return root


@pytest.fixture
def index(tmp_path: Path) -> Index:
    make_data(tmp_path / "more", {"cat": 3, "dog": 2, "cow": 4}, 1)
    return read_train(make_data(tmp_path / "data", {"cat": 6, "dog": 6}, 0))


def test_external_images_are_trained_on_and_never_held_out(tmp_path, index) -> None:
    both = add_extra(index, tmp_path / "more")
    assert len(both) == 12 + 5 and both.classes == ("cat", "dog")
    assert any("5 extra images are trained on in every fold" in note for note in both.notes)
    assert any("but for copies of training images" in note for note in both.notes)
    assert "extra: 4 images are of classes that the data have not: left out" in both.notes
    folds = make_folds(both.table, both.root, num_folds=3, seed=0)
    own = make_folds(index.table, index.root, num_folds=3, seed=0)
    np.testing.assert_array_equal(folds.fold[:12], own.fold)
    assert (folds.fold[12:] == EXTRA).all()
    for fold in range(3):
        assert (
            set(range(12, 17)) <= set(folds.train_rows(fold)) and len(folds.valid_rows(fold)) == 4
        )
    assert set(range(12, 17)) <= set(folds.train_rows(None))
    path = tmp_path / "folds.csv"
    save_folds(folds, path)
    again = load_folds(path, both.table, both.root)
    np.testing.assert_array_equal(again.fold, folds.fold)
    assert "extra/train/cat/0.jpg" in path.read_text(encoding="utf-8")
    refused(r"other data: 5 removed \(first extra/", load_folds, path, index.table, index.root)


def test_a_copy_of_a_training_image_is_not_trained_on_where_that_is_held_out(
    tmp_path, index
) -> None:
    both = add_extra(index, tmp_path / "more")
    folds = make_folds(both.table, both.root, num_folds=3, seed=0, linked=[(0, 13), (14, 15)])
    assert folds.fold[13] == QUARANTINED and (folds.fold[[12, 14, 15, 16]] == EXTRA).all()
    assert "1 extra image left out: copies of training images" in folds.notes


@pytest.mark.parametrize("form", ["train/cat", "cat", "table"])
def test_images_of_one_class_are_enough(tmp_path, index, form: str) -> None:
    more = make_data(tmp_path / "one", {"cat": 3}, 1)
    if form == "cat":
        more = more / "train"
    if form == "table":
        lines = [f"train/cat/{row}.jpg,cat\n" for row in range(3)]
        (more / "train.csv").write_text("image,label\n" + "".join(lines))
    both = add_extra(index, more)
    assert len(both) == 12 + 3 and both.columns["target"][12:] == ["cat"] * 3
    refused("only one class", read_train, tmp_path / "one")


@pytest.mark.parametrize("folder", ["images", "train/images"])
def test_classes_in_the_names_of_files_of_a_lone_folder(tmp_path, index, folder: str) -> None:
    place = tmp_path / "named" / folder
    place.mkdir(parents=True)
    for name in ("cat.0", "cat.1", "dog.0", "dog.1"):
        (place / f"{name}.jpg").write_bytes(name.encode())
    both = add_extra(index, tmp_path / "named")
    assert both.columns["target"][12:] == ["cat"] * 2 + ["dog"] * 2


def test_the_name_of_a_lone_folder_counts_where_it_is_a_class(tmp_path, index) -> None:
    place = tmp_path / "named" / "cat"
    place.mkdir(parents=True)
    for name in ("IMG_0", "IMG_1", "DSC_0", "DSC_1"):
        (place / f"{name}.jpg").write_bytes(name.encode())
    assert add_extra(index, tmp_path / "named").columns["target"][12:] == ["cat"] * 4


def test_what_is_refused(tmp_path, index) -> None:
    refused("is the data folder itself", add_extra, index, tmp_path / "data")
    refused("is missing", add_extra, index, tmp_path / "nothing")
    make_data(tmp_path / "other", {"tree": 2, "bush": 2}, 2)
    refused(
        r"no image is of a class of the data \(bush, tree there, cat",
        add_extra,
        index,
        tmp_path / "other",
    )


class Drive(PureWindowsPath):
    """A folder of Windows, which is there."""

    def resolve(self) -> Drive:
        return self


def test_an_extra_image_on_another_drive_keeps_its_path(index, monkeypatch) -> None:
    """``--allow_outside``: what lies outside the extra folder has a whole path."""
    extra = replace(read_train(index.root), root=Drive("D:/more"))
    images = ["C:/else/1.jpg", *extra.columns["image"][1:]]
    extra = replace(extra, columns={**extra.columns, "image": images})
    monkeypatch.setattr("src.data.index._read_extra", lambda *_: extra)
    found = add_extra(index, "more").columns["image"][12:]
    assert found[:2] == ["C:/else/1.jpg", "D:/more/train/cat/1.jpg"]
