"""Samples of a run with their truth: training images to calibrate with, held-out ones to score.

The truth is a class number, 0 or 1 for each label, or a mask (H, W) with void as 255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src.data.folds import read_folds
from src.data.masks import VoidReader, read_labelled
from src.data.root import find_root
from src.ensemble.predictions import open_oof
from src.pipelines.segmentation.ensemble import Member, find_source
from src.pipelines.segmentation.report import load_counted
from src.runs import Output, Run
from src.script import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """Images of a run.

    Attributes:
        train: paths of images it was trained on.
        valid: paths of images it held out.
        truth: number of a held-out image → its truth.
    """

    train: Sequence[Path]
    valid: Sequence[Path]
    truth: Callable[[int], Array]


def thin(count: int, most: int) -> Array:
    """Return at most ``most`` of the numbers below ``count``, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def class_samples(run: Run, data_dir: str, num_train: int, num_valid: int) -> Samples:
    """Return samples of a classification run.

    Raises:
        UserError: its photographs, folds or OOF predictions are gone.
    """
    root = find_root(data_dir)
    folds = read_folds(Output(run.folder.parent.parent).folds)
    name = run.folder.name.removeprefix("fold")
    paths = dict(zip(folds.table["id"], folds.table["image"], strict=True))
    rows = folds.train_rows(int(name) if name.isdigit() else None)
    inner = rows[folds.fold[rows] >= 0]  # external images lie elsewhere
    train = [
        root / paths[id_] for id_ in folds.table["id"].iloc[inner[thin(len(inner), num_train)]]
    ]
    if not name.isdigit():
        return Samples(train, [], lambda _: np.array(0))
    oof = open_oof(run.oof)
    kept = thin(len(oof.ids), num_valid)
    targets = oof.targets[kept]
    return Samples(train, [root / paths[i] for i in oof.ids[kept].tolist()], lambda n: targets[n])


def mask_samples(member: Member, num_train: int, num_valid: int) -> Samples:
    """Return samples of a mask run.

    Raises:
        UserError: its images are gone, or are others by now.
    """
    source, root, options = find_source("", "", member.resolved)
    if not Path(root).is_dir():
        raise UserError(f"{root} is not there: restore the images that {member.run.folder} learned")
    index = read_labelled(source, root, **options)
    held = np.array([], int)
    if member.run.oof_counts.exists():
        counts, ids, _ = load_counted(member.run.folder)
        held = np.sort(counts.index)
        if held[-1] >= len(index) or set(index.table["id"].iloc[held]) != set(ids):
            raise UserError(
                f"{root}: not the images that {member.run.folder} held out; restore them"
            )
    inner = np.setdiff1d(np.arange(len(index)), held)
    inner, held = inner[thin(len(inner), num_train)], held[thin(len(held), num_valid)]
    read = VoidReader(index)

    def truth(number: int) -> Array:
        return read(str(index.root / str(index.table["target"].iat[int(held[number])])))

    return Samples([index.image_path(r) for r in inner], [index.image_path(r) for r in held], truth)
