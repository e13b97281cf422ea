"""Index of a classification data set: one table of ids, image paths, class names and groups.

Two layouts are told apart by what lies there:

1. ``train/<class>/**`` with ``test.csv`` (id, path), ``test/``, ``sample_submission.csv``;
2. ``train.csv`` (or ``train_labels.csv``, ``labels.csv`` where ``train/`` has no class folders)
   with an image path, a label (or a column of 0 and 1 for each class) and optionally a group.

In both, test images may be a bare ``test/`` folder. File names are matched in any case, class
names are compared in NFC, ids are text.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import nfc
from src.data.columns import (
    GROUP_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    check_labels,
    find_label,
    image_column,
    pick_column,
    read_labels,
)
from src.data.csv_io import read_csv, refuse_duplicates
from src.data.files import (
    EXTENSIONS,
    LABEL_TABLES,
    ImageFinder,
    Scanner,
    find_entry,
    find_root,
    name_classes,
)
from src.data.sample import compare_ids, find_sample, read_sample, read_sample_submission
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["COLUMNS", "Index", "find_root", "read_sample_submission", "read_test", "read_train"]


def read_train(
    root: Path | str,
    *,
    allow_outside: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Index:
    """Index the training images; the columns, if given, are those of ``train.csv``.

    In the folder layout an image's id is its path (in NFC), in the CSV layout the id column or,
    without one, the path.

    Raises:
        UserError: neither layout, no classes, duplicate ids, images that are not there.
    """
    root = Path(root)
    folder = find_entry(root, "train", "training")
    path = find_entry(root, "train.csv") or _find_label_table(root, folder)
    if path is not None:
        wanted = (image_column, label_column, group_column)
        return _read_train_csv(root, path, wanted, allow_outside)
    if image_column or label_column or group_column:
        raise UserError(f"no train.csv in {root} to take columns from: drop the column flags")
    if folder is None or not folder.is_dir():
        raise UserError(
            f"no train/ and no train.csv in {root}: {name_classes(root)}unpack the data, or "
            "--data_dir"
        )
    return _read_train_folders(root, folder.name)


def read_test(root: Path | str, *, allow_outside: bool = False) -> Index:
    """Index the test images in the order of sample_submission, else test.csv, else by name.

    Without ``test.csv`` the images of ``test/`` are matched to the sample's ids by file name, and
    without a sample the file names (without extension, where that stays unique) are the ids.

    Raises:
        UserError: nothing to test, duplicate ids, missing images, ids unlike the sample's.
    """
    root = Path(root)
    sample, notes = read_sample(root)
    sample_ids = None if sample is None else sample.iloc[:, 0].tolist()
    path = find_entry(root, "test.csv")
    folder = find_entry(root, "test", "testing")
    if path is not None:
        sample_name = None if sample is None else str(sample.columns[0])
        ids, cells = _read_test_csv(path, sample_name)
        source = str(path)
    elif sample_ids is not None:
        ids, cells, source = sample_ids, sample_ids, f"{find_sample(root)}"
    elif folder is not None and folder.is_dir():
        return _read_test_folder(root, folder.name)
    else:
        raise UserError(f"no test.csv and no test/ in {root}: unpack the data, or --data_dir")
    refuse_duplicates(ids, source)
    if sample_ids is not None and path is not None:
        compare_ids(ids, sample_ids, path)
        cell_of = dict(zip(ids, cells, strict=True))
        ids, cells = sample_ids, [cell_of[key] for key in sample_ids]
    finder = ImageFinder(
        root, split="test", folder=folder.name if folder else "", allow_outside=allow_outside
    )
    images = find_images(finder, cells, source)
    return Index(root, make_table(ids, images, split="test"), notes=tuple(notes + finder.notes))


def _find_label_table(root: Path, train: Path | None) -> Path | None:
    """Return a table such as train_labels.csv, unless ``train`` says the classes by folders."""
    path = find_entry(root, *LABEL_TABLES)
    if path is None or train is None or not train.is_dir():
        return path
    return None if len(Scanner(root).images_by_folder(train.name)) > 1 else path


def _read_train_folders(root: Path, train: str) -> Index:
    scanner = Scanner(root)
    images: list[str] = []
    targets: list[str] = []
    notes: list[str] = []
    folders = scanner.images_by_folder(train)
    for folder, found in folders.items():
        if not found:
            notes.append(f"class folder {train}/{folder} has no images: no such class is trained")
        images += found
        targets += [nfc(folder)] * len(found)
    twins = Counter(map(nfc, folders))
    notes += [
        f"class {name} lies in {count} folders that differ in Unicode form only: merged"
        for name, count in twins.items()
        if count > 1
    ]
    if not images:
        raise UserError(
            f"no images in class folders below {root / train}: expected {train}/<class>/*.jpg"
        )
    loose = _loose_images(root / train)
    unused = find_entry(root, "val", "valid", "validation", *LABEL_TABLES)
    if unused:
        notes.append(
            f"{unused.name} is not used: the folds are made from the class folders of {train}/; "
            "move images there to train on them"
        )
    if loose:
        notes.append(f"{len(loose)} images directly in {train}/ have no class: left out")
    order = sorted(range(len(images)), key=lambda row: (nfc(images[row]), images[row]))
    images = [images[row] for row in order]
    targets = [targets[row] for row in order]
    ids = [nfc(image) for image in images]
    if len(set(ids)) < len(ids):  # twins with files of the same name keep their own spelling
        count = Counter(ids)
        ids = [key if count[key] == 1 else image for key, image in zip(ids, images, strict=True)]
    notes += check_labels(targets, root / train)
    table = make_table(ids, images, targets, split="train")
    return Index(root, table, find_classes(targets, root / train), tuple(notes + scanner.notes))


def _loose_images(folder: Path) -> list[str]:
    return [
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and path.name[0] != "." and path.is_file()
    ]


def _read_train_csv(
    root: Path, path: Path, wanted: Sequence[str | None], allow_outside: bool
) -> Index:
    table = read_csv(path)
    if not len(table):
        raise UserError(f"{path} has no rows: restore the file")
    image = image_column(table, wanted[0], path)
    group = pick_column(table, wanted[2], GROUP_NAMES, path, "--group_column")
    known = pick_column(table, wanted[1], LABEL_NAMES, path, "--label_column")
    others = table.drop(columns=[name for name in (known, group) if name])
    key = pick_column(others, None, ID_NAMES, path, "")
    labels = find_label(table, wanted[1], (image, group, key), path)
    label = labels[0] if len(labels) == 1 else f"the one of {', '.join(labels)} that is 1"
    folder = find_entry(root, "train", "training")
    finder = ImageFinder(
        root, split="train", folder=folder.name if folder else "", allow_outside=allow_outside
    )
    images = find_images(finder, table[image].tolist(), str(path))
    notes = [f"{path.name}: image = {image}, label = {label}, group = {group or 'none'}"]
    if key not in (None, image) and table[key].duplicated().any():
        notes.append(f"{path.name}: {key} repeats, so images are known by their paths")
        key = None
    ids = [nfc(name) for name in images] if key is None else table[key].tolist()
    refuse_duplicates(ids, str(path))
    targets, merged = read_labels(table, labels)
    if "" in targets:
        raise UserError(
            f"{path} has no label in column {label} for {ids[targets.index('')]}: add it"
        )
    notes += merged + check_labels(targets, path)
    groups = [""] * len(ids) if group is None else table[group].str.strip().tolist()
    rows = make_table(ids, images, targets, groups, split="train")
    return Index(root, rows, find_classes(targets, path), tuple(notes + finder.notes))


def _read_test_csv(path: Path, sample_name: str | None) -> tuple[list[str], list[str]]:
    table = read_csv(path)
    if not len(table):
        raise UserError(f"{path} has no rows: restore the file")
    image = image_column(table, None, path)
    key = sample_name if sample_name in table.columns else None
    key = key or pick_column(table, None, ID_NAMES, path, "") or str(table.columns[0])
    return table[key].tolist(), table[image].tolist()


def _read_test_folder(root: Path, test: str) -> Index:
    scanner = Scanner(root)
    images = sorted(scanner.images(test), key=lambda path: (nfc(path), path))
    if not images:
        raise UserError(f"no images in {root / test}: restore them")
    forms: tuple[Callable[[str], str], ...] = (
        lambda path: posixpath.splitext(posixpath.basename(path))[0],
        posixpath.basename,
        lambda path: path,
    )
    for form in forms:
        ids = [nfc(form(image)) for image in images]
        if len(set(ids)) == len(ids):
            break
    else:
        ids = images
    return Index(root, make_table(ids, images, split="test"), notes=tuple(scanner.notes))


COLUMNS = ("id", "image", "target", "group", "split")


@dataclass(frozen=True)
class Index:
    """The images of one split.

    ``table`` has the text columns ``id`` (unique), ``image`` (POSIX path relative to ``root``, or
    absolute outside it), ``target`` (class name in NFC, "" unknown), ``group`` ("" none) and
    ``split``. ``classes`` are the sorted class names; ``notes`` what deserves saying aloud.
    """

    root: Path
    table: pd.DataFrame
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)


def find_images(finder: ImageFinder, cells: Sequence[str], source: str) -> list[str]:
    """Return the images that the ``cells`` of ``source`` mean, as paths relative to the root.

    Raises:
        UserError: some are not there, or fit several files.
    """
    images = [finder.find(cell) for cell in cells]
    missing = [cell for cell, image in zip(cells, images, strict=True) if image is None]
    if missing:
        raise UserError(
            f"{source} names {len(missing)} images that are not in {finder.place}, first "
            f"{missing[0]!r}: restore them"
        )
    return [image for image in images if image is not None]


def find_classes(targets: Sequence[str], where: Path) -> tuple[str, ...]:
    """Return the class names, sorted.

    Raises:
        UserError: there is only one.
    """
    classes = tuple(sorted(set(targets)))
    if len(classes) < 2:
        raise UserError(f"{where} has only one class, {classes[0]!r}: at least two are needed")
    return classes


def make_table(
    ids: Sequence[str],
    images: Sequence[str],
    targets: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    *,
    split: str,
) -> pd.DataFrame:
    """Return the table of one split; its columns are those of :class:`Index`."""
    import pandas as pd

    count = len(ids)
    columns = (ids, images, targets or [""] * count, groups or [""] * count, [split] * count)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), dtype="str")
