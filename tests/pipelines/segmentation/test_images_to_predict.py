"""Which images a finished mask run predicts: brackets in paths, other places, own photographs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infer_segmentation
from src.data.masks import read_labelled, split_rows
from src.mask_config import InferSegmentationConfig
from src.pipelines.segmentation.ensemble import find_runs
from src.script import UserError


def picture(path: Path, value: int = 90, *, mask: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 8) if mask else (6, 8, 3), value, np.uint8)
    Image.fromarray(pixels).save(path)


def images_of(trained: dict[str, Any], **options: Any) -> tuple[Any, np.ndarray]:
    """Find the images of one run, which knows two classes, as the script does."""
    known: dict[str, Any] = {"classes": ["background", "scratch"], "options": {}}
    member: Any = SimpleNamespace(resolved=known | trained)
    return infer_segmentation.read_images(InferSegmentationConfig(**options), [member])


def test_runs_in_a_folder_with_brackets(tmp_path: Path) -> None:
    for fold in "01":
        run = tmp_path / "[A] cars" / "out" / f"fold{fold}"
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
    assert [r.folder for r in find_runs([str(run)])] == [run]
    assert len(find_runs([str(tmp_path / "[A] cars" / "out" / "fold*")])) == 2
    assert len(find_runs([str(tmp_path / "*" / "out" / "fold[01]")])) == 2
    with pytest.raises(UserError, match="no run there"):
        find_runs([str(tmp_path / "[B] cars" / "out" / "fold*")])


@pytest.mark.parametrize("source", ["coco", "folders", "auto", "lanes", "voc", "micro/CFD"])
@pytest.mark.parametrize("folder", ["images", ".", "my holiday/day 1", "photos"])
def test_own_photographs_in_any_folder(tmp_path: Path, source: str, folder: str) -> None:
    picture(tmp_path / "own" / folder / "b.jpg")
    picture(tmp_path / "own" / folder / "a.JPG")
    index, rows = images_of(
        {"source": source, "data_dir": str(tmp_path)}, data_dir=str(tmp_path / "own")
    )
    assert [Path(name).name for name in index.table["image"]] == ["a.JPG", "b.jpg"]
    assert index.classes == ("background", "scratch") and rows.tolist() == [0, 1]
    index, _ = images_of(
        {"source": source, "data_dir": str(tmp_path)},
        data_dir=str(tmp_path / "own"), source="folders",
    )  # fmt: skip
    assert len(index) == 2


def test_own_photographs_with_masks_say_what_to_do(tmp_path: Path) -> None:
    trained = {"source": "coco", "data_dir": "elsewhere"}
    own = tmp_path / "own"
    picture(own / "images" / "a.jpg")
    picture(own / "masks" / "a.png", 1, mask=True)
    with pytest.raises(UserError, match=r"no test split: put images to predict in test/images/"):
        images_of(trained, data_dir=str(own), source="folders")
    for kind, file in (("images", "a.jpg"), ("masks", "a.png")):  # the remedy
        (own / "test" / kind).mkdir(parents=True)
        (own / kind / file).rename(own / "test" / kind / file)
        (own / kind).rmdir()
    with pytest.raises(UserError, match=r"if they mean the same, .*classes\.txt.*--source folders"):
        images_of(trained, data_dir=str(own), source="folders")
    (own / "classes.txt").write_text("background\nscratch\n")  # its remedy
    index, _ = images_of(trained, data_dir=str(own), source="folders")
    assert index.table["target"].tolist() == ["test/masks/a.png"]


@pytest.mark.parametrize("source", ["auto", "folders"])
def test_masks_without_one_of_the_labels_are_read_in_the_classes_of_the_run(
    tmp_path: Path, source: str
) -> None:
    """Of a folder of one's own train_micro.py keeps that it was looked up."""
    picture(tmp_path / "own" / "test" / "images" / "a.jpg")
    picture(tmp_path / "own" / "test" / "masks" / "a.png", 1, mask=True)
    names = ["background", "class_1", "class_2"]
    index, _ = images_of(
        {"source": source, "data_dir": str(tmp_path), "classes": names},
        data_dir=str(tmp_path / "own"),
    )
    assert list(index.classes) == names and index.table["target"].tolist() == ["test/masks/a.png"]


@pytest.mark.parametrize("given", ["micro", "micro/CFD"])
@pytest.mark.parametrize("trained", ["micro", "micro/CFD"])
def test_the_folder_of_a_set_and_of_all_sets_mean_the_set(
    tmp_path: Path, given: str, trained: str
) -> None:
    sets = tmp_path / "micro"
    picture(sets / "CFD" / "train" / "images" / "a.jpg")
    picture(sets / "CFD" / "train" / "masks" / "a.png", 1, mask=True)
    picture(sets / "CFD" / "test" / "images" / "b.jpg")
    source = "micro/CFD" if trained == "micro" else "folders"
    names = ["background", "crack" if trained == "micro" else "foreground"]
    index, rows = images_of(
        {"source": source, "data_dir": str(tmp_path / trained), "classes": names},
        data_dir=str(tmp_path / given),
    )
    assert index.table["id"].iloc[rows].tolist() == ["b"]


@pytest.mark.parametrize("by_name", [True, False, None])
def test_the_held_out_images_of_slices_are_those_of_the_run(
    tmp_path: Path, by_name: bool | None
) -> None:
    for patient in range(10):
        for k in (1, 2):
            picture(tmp_path / "images" / f"p{patient}_{k}.png")
            mask = np.array([[0, 1], [1, 0]], np.uint8).repeat(3, 0).repeat(4, 1)
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / "masks" / f"p{patient}_{k}.png")
    index = read_labelled("folders", tmp_path, by_name=bool(by_name))
    split = split_rows(index, 0, 5, 0)
    options = {"fold": "0", "folds": 5, "fold_seed": 0}
    options |= {} if by_name is None else {"group_by_name": by_name}  # a run of before the option
    resolved = {"classes": list(index.classes), "options": {}, "split_hash": split.hash}
    resolved |= {"source": "folders", "data_dir": str(tmp_path)}
    member: Any = SimpleNamespace(resolved=resolved, options=options, run=None)
    config = InferSegmentationConfig(split="valid")
    assert infer_segmentation.read_images(config, [member])[1].tolist() == split.valid.tolist()


@pytest.mark.parametrize("name", ["classes.txt", "class_dict.csv"])
def test_labels_that_the_folder_names_in_another_order_are_refused(
    tmp_path: Path, name: str
) -> None:
    """They were read in the run's order, and the scores were those of other classes."""
    picture(tmp_path / "test" / "images" / "a.png")
    picture(tmp_path / "test" / "masks" / "a.png", 1, mask=True)
    trained = {"classes": ["background", "car", "dog"], "source": "folders", "data_dir": "gone"}
    lines = {"classes.txt": "{}\n", "class_dict.csv": "{},{n},0,0\n"}[name]
    for order, refused in (
        (["background", "car", "dog"], False),
        (["background", "dog", "car"], True),
    ):
        text = "".join(lines.format(label, n=9 * n) for n, label in enumerate(order))
        (tmp_path / name).write_text(text, encoding="utf-8")
        if refused:
            with pytest.raises(UserError, match="has the classes background, dog, car, the runs"):
                images_of(trained, data_dir=str(tmp_path))
        else:
            assert images_of(trained, data_dir=str(tmp_path))[0].classes == tuple(order)
