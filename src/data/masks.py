"""Splits and datasets of (image, mask) samples: rows to train on, to hold out, to predict.

Training, tuning and thresholds see :func:`read_labelled` alone, which has no test row in it. The
test split is reachable through :func:`read_test_masks`, for inference.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.cache import open_cache
from src.data.canonical import ImageSource, MaskSource, describe_reader
from src.data.dataset import ImageDataset
from src.data.decode import VOID
from src.data.folds import assign_folds, file_marks
from src.data.sources.frames import cut_finer, find_series
from src.data.sources.masks import (
    MaskIndex,
    check_any_labels,
    image_header,
    note_inverted,
    note_pages,
    note_turned,
)
from src.data.sources.places import describe, read_place
from src.data.sources.registry import read_source
from src.data.transforms import Transform
from src.files import describe_file
from src.script import UserError

DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class MaskSplit:
    """Rows (n,) int64 of the table to train on and to hold out, and a hash of who is where."""

    train: np.ndarray
    valid: np.ndarray
    how: str
    hash: str


@dataclass(frozen=True)
class VoidReader:
    """Read a mask's labels with void as ``VOID``: path → (H, W)."""

    index: MaskIndex

    def __call__(self, path: Path | str) -> np.ndarray:
        """Read one mask."""
        mask = np.require(self.index.decode(Path(path)), requirements="W")  # tensors want it so
        void = self.index.ignore_index
        return mask if void in (None, VOID) else np.where(mask == void, VOID, mask)

    def describe(self) -> str:
        """Say what the labels depend on besides the files, for a cache."""
        index = self.index
        order = " rows" if getattr(index.decode, "rows", False) else ""  # of run lengths
        order += "" if getattr(index.decode, "first", 1) else " from 0"
        return f"{describe_reader(index.decode)} {index.classes} {index.ignore_index}{order}"


def read_labelled(
    name: str, root: Path | str, *, by_name: bool = False, **options: object
) -> MaskIndex:
    """Read a data set without its test split and without rows that lack a mask.

    ``name`` is the source's, or ``auto``; ``options`` are its own. With ``by_name`` images whose
    names form series are groups, where the source knows none.

    Raises:
        UserError: nothing is left, or what the source refuses.
    """
    index = _read(name, root, options)
    table = index.table
    kept = table[(table["split"] != "test") & (table["target"] != "")].reset_index(drop=True)
    if kept.empty:
        folder = Path(root).absolute()
        place = read_place([folder.name])
        below = place.split or place.kind
        whole = f"pass {folder.parent} if this is a part of it; " if below else ""
        raise UserError(
            f"{root} has no labelled images outside its test split: found {describe(folder)}; "
            f"{whole}a mask lies in masks/ and has its image's stem, as .png or .npy; other "
            "annotations are exported as COCO JSON (docs/layouts.md)"
        )
    index = replace(index, table=kept)
    check_any_labels(index)
    index = note_inverted(index)
    return note_pages(note_turned(_group_by_name(index) if by_name else index))


def _group_by_name(index: MaskIndex) -> MaskIndex:
    ids = index.table["id"].tolist()
    series = find_series(ids)
    if index.table["group"].any() or not any(series):
        return index
    first = next(row for row, name in enumerate(series) if name)
    note = (
        f"{len({*series} - {''})} series of names that differ in their last number alone, such as "
        f"{ids[first]}: those of one share a fold; --group_by_name false parts them"
    )
    table = index.table.assign(group=series)
    return replace(index, table=table, notes=(*index.notes, note))


def read_test_masks(name: str, root: Path | str, **options: object) -> MaskIndex:
    """Read the test split alone, with masks where the data set hands them out.

    Raises:
        UserError: there is none.
    """
    index = _read(name, root, options).take("test")
    if not len(index):
        raise UserError(
            f"{root} has no test split: put images to predict in test/images/, or in a folder "
            "without masks; --split valid predicts what the run held out"
        )
    return note_pages(note_inverted(index))


def split_rows(index: MaskIndex, fold: int | None, num_folds: int, seed: int) -> MaskSplit:
    """Settle who is held out: a pure function of ids, groups, splits and the arguments.

    Blocks of neighbouring frames that are fewer than folds are cut finer; ``how`` says so. ``fold``
    None trains on every row. ``num_folds`` 0 takes the data set's own valid split as fold 0; where
    it has none, five folds or as many as there are groups.

    Raises:
        UserError: no such fold, or more folds than groups.
    """
    table = index.table
    own = (table["split"] == "valid").to_numpy()
    every = np.arange(len(table))
    if fold is None:
        valid, how = every[:0], "all rows, none held out"
    elif num_folds == 0 and own.any() and not own.all():
        if fold:
            raise UserError(f"--fold {fold}: the data's own split is fold 0; pass --folds K too")
        valid, how = every[own], "the data's own valid split"
    else:
        wanted = num_folds or min(DEFAULT_FOLDS, max(2, len(table)))
        groups, block = table["group"].tolist(), 0
        if index.blocks:
            groups, block = cut_finer(table["id"].tolist(), groups, min(wanted, len(table)))
        num_units = len({group for group in groups if group}) + groups.count("")
        num_folds = num_folds or min(wanted, max(2, num_units))
        if not 0 <= fold < num_folds:
            raise UserError(f"--fold {fold}: folds are 0 to {num_folds - 1}")
        folds = assign_folds([""] * len(table), num_folds, seed, groups)
        how = f"fold {fold} of {num_folds}, {_describe(groups, block)}"
        valid = every[folds == fold]
    train = np.setdiff1d(every, valid)
    text = "\n".join(
        f"{name}\0{held}" for name, held in zip(table["id"], np.isin(every, valid), strict=True)
    )
    return MaskSplit(train, valid, how, hashlib.sha256(text.encode()).hexdigest()[:12])


def hash_content(index: MaskIndex) -> str:
    """Return 12 hex digits that name the classes, and images and masks by their content."""
    digest, known = hashlib.sha256("\n".join(index.classes).encode()), {"": ""}
    marks = file_marks(index.table, index.root)
    for target, mark in zip(index.table["target"].tolist(), marks, strict=True):
        # annotation.json#17 is a part of annotation.json
        file = target if (index.root / target).exists() else target.rpartition("#")[0]
        if file not in known:
            known[file] = describe_file(index.root / file)["crc32"]
        digest.update(f"\0{target.removeprefix(file)} {known[file]} {mark}".encode())
    return digest.hexdigest()[:12]


def _describe(groups: list[str], block: int) -> str:
    if not block:
        return "grouped" if any(groups) else "ungrouped"
    what = "ungrouped" if block == 1 else f"grouped by at most {block} neighbouring frames"
    return f"{what}, since larger blocks are fewer than folds"


def _read(name: str, root: Path | str, options: dict[str, object]) -> MaskIndex:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of what it skips in a file
        return read_source(name, root, **options)


def mask_dataset(
    index: MaskIndex,
    rows: Sequence[int] | np.ndarray,
    transform: Transform,
    *,
    size: tuple[int, int] | None,
    labelled: bool = True,
    seed: int = 0,
    cache: str = "auto",
    folder: Path | None = None,
    num_workers: int = 0,
    num_processes: int = 1,
) -> ImageDataset:
    """Build the dataset of ``rows``, renumbered from 0.

    Everything is resized to ``size`` (height, width) first; None keeps native sizes, uncached. The
    last four options are those of :func:`open_cache`.
    """
    table = index.table
    images, masks = table["image"].tolist(), table["target"].tolist()
    source = ImageSource(index.root, images, size)
    if labelled:
        source = MaskSource(index.root, images, masks, size=size, read_mask=VoidReader(index))
    pixels = open_cache(
        source, cache, rows=rows, folder=folder, num_workers=num_workers,
        num_processes=num_processes,
    )  # fmt: skip
    return ImageDataset(pixels, None, transform, seed=seed)


def image_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of an image as it will be decoded, EXIF rotation applied.

    Raises:
        UserError: no image.
    """
    width, height, _ = image_header(path)
    if not width:
        raise UserError(f"{path} cannot be read as an image: restore it")
    return height, width


def count_classes(
    index: MaskIndex, rows: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of each class, and the images that hold it: two arrays (K,) int64."""
    read = VoidReader(index)
    pixels = np.zeros(index.num_classes, np.int64)
    images = np.zeros(index.num_classes, np.int64)
    for row in np.asarray(rows):
        mask = read(index.mask_path(int(row)))
        found = np.bincount(mask.ravel(), minlength=256)[: index.num_classes]
        pixels += found
        images += found > 0
    return pixels, images
