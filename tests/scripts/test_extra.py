"""External images through the three scripts: trained on, in no OOF file, in no submission."""

from __future__ import annotations

import csv
import shutil

import cv2
import numpy as np

from src.ensemble.predictions import open_oof
from tests.scripts.conftest import Place


def test_external_images_train_every_fold_and_validate_none(fresh: Place) -> None:
    more = fresh.data.parent / "more"
    rng = np.random.default_rng(7)
    for name in ("evening", "noon", "midnight"):
        folder = more / "train" / name
        folder.mkdir(parents=True)
        for row in range(4):
            image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"new{row}.png"), image)
    copied = sorted((fresh.data / "train" / "noon").iterdir())[0]
    shutil.copy(copied, more / "train" / "noon" / "again.png")
    own = len(list((fresh.data / "train").rglob("*.png")))
    flags = ("--extra_train", str(more), "--fold", "all", "--epochs", "1")
    trained = fresh.train(*flags)
    assert trained.status == 0, trained.err
    assert "9 extra images are trained on in every fold, and held out in none" in trained.out
    assert "4 images are of classes that the data have not: left out" in trained.out
    assert "1 extra image left out: copies of training images" in trained.out
    assert f"32 px, {own // 2 + 8} images, 2 classes" in trained.out
    found = [open_oof(path) for path in sorted(fresh.run.parent.glob("fold*/oof.npz"))]
    ids = [name for file in found for name in file.ids.tolist()]
    assert len(ids) == own and not any(name.startswith("extra/") for name in ids)
    with (fresh.output / "folds.csv").open(encoding="utf-8", newline="") as file:
        folds = {row["id"]: row["fold"] for row in csv.DictReader(file)}
    tagged = [fold for name, fold in folds.items() if "extra/" in name]
    assert sorted(tagged) == ["-1"] + ["-2"] * 8 or sorted(tagged) == ["'-1"] + ["'-2"] * 8
    for answer in (fresh.optimize(), fresh.infer()):
        assert answer.status == 0, answer.err
    assert fresh.train("--fold", "all", "--epochs", "1").is_one_line("removed (first extra/")
