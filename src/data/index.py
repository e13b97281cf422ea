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
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import SEPARATOR, nfc, split_lines
from src.data.class_folders import find_masks, group_by_name, read_class_folders
from src.data.columns import (
    GROUP_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    Wanted,
    check_labels,
    find_group,
    follows,
    made_of_others,
    pick_column,
    pick_name,
    plain,
    says_nothing,
)
from src.data.csv_io import read_csv, refuse_duplicates
from src.data.files import Scanner, below
from src.data.finder import ImageFinder
from src.data.folds import EXTRA_SPLIT
from src.data.label_sets import LabelSearch, Targets, read_targets
from src.data.root import (
    ANNOTATION_ENDINGS,
    TABLE_ENDINGS,
    find_annotations,
    find_root,
    find_sample,
    find_split,
    find_split_table,
    find_table,
    name_classes,
    name_folders,
    name_tables,
    tables,
)
from src.data.rows import (
    COLUMNS,
    OPENED,
    Index,
    find_classes,
    find_images,
    join_lines,
    leave_litter_out,
    leave_splits_out,
    make_columns,
    name_image_column,
    note_other_images,
    open_rows,
    refuse_other_split,
    widen,
)
from src.data.sample import asked_of, compare_ids, id_stem, read_sample
from src.data.tables import (
    find_train_table,
    image_cells,
    labels_beside,
    note_valid,
    other_tables,
    read_table,
    refuse_runs,
    with_valid,
)
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd


def read_train(
    root: Path | str,
    *,
    allow_outside: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    several: bool = False,
    known: Collection[str] = (),
) -> Index:
    """Index the training images; the columns, if given, are those of ``train.csv``.

    In the folder layout an image's id is its path (in NFC), in the CSV layout the id column or,
    without one, the path. ``several`` says that the metric is one of several labels an image.
    ``known`` is that of :func:`read_class_folders`.

    Raises:
        UserError: neither layout, no classes, duplicate ids, images that are not there.
    """
    root = Path(root)
    folder = find_split(root, "train")
    path = find_train_table(root, folder)
    if path is not None:
        wanted = Wanted(image_column, label_column, group_column)
        return _read_train_csv(root, path, wanted, allow_outside, several, 1 if known else 2)
    if image_column or label_column or group_column:
        raise UserError(f"no train.csv in {root} to take columns from: drop the column flags")
    if several:
        raise UserError(
            f"--metric is for several labels an image, and {root} has no train.csv that says them: "
            "add it, or choose another --metric"
        )
    if folder is None:
        raise UserError(
            f"no train/ and no train.csv in {root}: {name_tables(root)}{name_classes(root)}unpack "
            "the data, or pass --data_dir"
        )
    return read_class_folders(root, below(root, folder), known)


def add_extra(index: Index, folder: Path | str, *, allow_outside: bool = False) -> Index:
    """Return the index with the images of ``folder`` behind its own; their ids begin ``extra/``.

    ``folder`` is a data set of any form, a folder of class folders, or one table of images. Every
    fold trains on its images and none holds them out. Images of other classes are left out, with a
    note; groups are never those of the first folder.

    Raises:
        UserError: no data set there, the data themselves, or no image of a known class.
    """
    extra = _read_extra(folder, allow_outside, index.several, index.classes)
    root = extra.root.resolve()
    if root == index.root.resolve():
        raise UserError(f"--extra_train {folder}: is the data folder itself; name another one")
    if extra.several and not index.several:
        raise UserError(
            f"--extra_train {folder}: has several labels an image, and the data have one class each"
        )
    columns, known = extra.columns, set(index.classes)
    names = [text.split(SEPARATOR) if index.several else [text] for text in columns["target"]]
    kept = [row for row, found in enumerate(names) if known.issuperset({*found} - {""})]
    if not kept:
        theirs, ours = (", ".join(names[:3]) for names in (extra.classes, index.classes))
        raise UserError(
            f"--extra_train {folder}: no image is of a class of the data ({theirs} there, {ours} "
            "here): name its classes as the data do"
        )
    rows = {name: [column[row] for row in kept] for name, column in columns.items()}
    added = make_columns(
        [f"extra/{name}" for name in rows["id"]],
        [(root / name).as_posix() for name in rows["image"]],  # outside of it: of a drive, too
        rows["target"],
        [group and f"extra/{group}" for group in rows["group"]],
        split=EXTRA_SPLIT,
    )
    whole = {name: index.columns[name] + added[name] for name in COLUMNS}
    if len(set(whole["id"])) < len(whole["id"]):
        raise UserError("ids of the data begin with extra/ too: rename that folder")
    lost = len(extra) - len(kept)
    notes = [
        f"{counted(len(kept), 'extra image is', 'extra images are')} trained on in every fold, and "
        "held out in none, but for copies of training images, which are left out"
    ]
    notes += [f"extra: {note}" for note in extra.notes]
    if lost:
        said = counted(lost, "image is", "images are")
        notes.append(f"extra: {said} of classes that the data have not: left out")
    return replace(index, columns=whole, notes=(*index.notes, *notes))


def _read_extra(
    place: Path | str, allow_outside: bool, several: bool, known: Collection[str]
) -> Index:
    """Index a data set, a folder of class folders, or a table's images; one class is enough."""
    place = Path(place).resolve()
    alone = [place] if place.is_file() else tables(place) if place.is_dir() else []
    try:
        root = find_root(place, "--extra_train")
    except UserError:
        if len(alone) == 1 and alone[0].suffix.lower() in (*TABLE_ENDINGS, *ANNOTATION_ENDINGS):
            return _read_train_csv(alone[0].parent, alone[0], Wanted(), allow_outside, several, 1)
        scanner = Scanner(place) if place.is_dir() else None
        if scanner and any(map(scanner.holds, ["", *scanner.subfolders("")])):
            return read_class_folders(place, ".", known)
        raise
    return read_train(root, allow_outside=allow_outside, several=several, known=known)


def read_test(root: Path | str, *, allow_outside: bool = False) -> Index:
    """Index the test images in the order of sample_submission, else test.csv, else by name.

    Without ``test.csv`` the images of ``test/`` are matched to the sample's ids by file name, and
    without a sample the file names (without extension, where that stays unique) are the ids.

    Raises:
        UserError: nothing to test, duplicate ids, missing images, ids unlike the sample's.
    """
    root = Path(root)
    sample, notes = read_sample(root)
    sample_ids: list[str] = [] if sample is None else sample.iloc[:, 0].tolist()
    folder = find_split(root, "test")
    path = find_split_table(root, "test") or find_annotations(root, "test")
    path = path or (find_table(folder, "test") if folder else None)
    if path is None and sample is None and folder is not None:
        return _read_test_folder(root, below(root, folder), notes)
    finder = ImageFinder(root, split="test", allow_outside=allow_outside)
    if path is None and folder and not finder.finds(sample_ids[0]):
        path = find_table(folder, "metadata", "annotations", "labels")
    id_name = ""
    if path is not None:
        sample_name = None if sample is None else str(sample.columns[0])
        ids, cells, id_name = _read_test_csv(path, sample_name, sample_ids, finder)
        source = str(path)
    elif sample is not None:
        refuse_duplicates(sample_ids, f"{find_sample(root)}")
        ids, cells, source = sample_ids, sample_ids, f"{find_sample(root)}"
    else:
        said = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"no test.csv and no test/ in {root}: {name_folders(root, 'test')}unpack the data, "
            f"or pass --data_dir{said}"
        )
    if sample is not None and sample.shape[1] == 2:
        known = list(dict.fromkeys(ids)) if path is not None else finder.names()
        long = split_lines(sample_ids, known)
        if long is not None:
            sample_ids = list(dict.fromkeys(known[row] for row, _ in long[1]))
            ids, cells = (ids, cells) if path is not None else (sample_ids, sample_ids)
    images_of = _share_lines(ids, cells, finder, sample_ids, path, notes)
    lines = [key for key, inside in images_of.items() for _ in inside]
    cells = [cell for inside in images_of.values() for cell in inside]
    images = find_images(finder, cells, source, notes)
    refuse_other_split(
        finder, cells, images, source, lambda: find_train_table(root, find_split(root, "train"))
    )
    others = finder.num_others(images)
    if others:
        said = counted(others, "image of the test folder has", "images of the test folder have")
        notes.append(f"{said} no line in {Path(source).name}: not predicted")
    notes += finder.notes
    shared = len(images_of) < len(lines)
    rows = make_columns(images if shared else lines, images, split="test")
    shares = tuple(lines) if shared else ()
    return Index(root, rows, notes=tuple(notes), id_name=id_name, lines=shares)


def _share_lines(
    ids: Sequence[str],
    cells: Sequence[str],
    finder: ImageFinder,
    sample_ids: Sequence[str],
    path: Path | None,
    notes: list[str],
) -> dict[str, list[str]]:
    """Return the images of each line of the submission, as cells and in its order; append notes.

    ``ids`` and ``cells`` are those of test.csv, at ``path``, or without one the sample's.
    """
    images_of: dict[str, list[str]] = {}
    for key, inside in zip(ids, finder.open_folders(cells), strict=True):
        images_of.setdefault(key, []).extend(inside)
    if sample_ids and path is not None:
        said = compare_ids([*images_of], sample_ids, path, notes)
        cells_of = dict(zip(said, images_of.values(), strict=True))
        images_of = {key: cells_of[key] for key in sample_ids}
    number = sum(map(len, images_of.values()))
    if number > len(images_of):
        notes.append(
            f"{number} images share {counted(len(images_of), 'line')} of the submission, which has "
            "the mean of what is predicted of each one's images; scores and forecast are of single "
            "images"
        )
    return images_of


def has_test(root: Path) -> bool:
    """Tell whether there is anything that says the test images."""
    found = find_sample(root) or find_split_table(root, "test") or find_split(root, "test")
    return (found or find_annotations(root, "test")) is not None


def _read_train_csv(
    root: Path,
    path: Path,
    wanted: Wanted,
    allow_outside: bool,
    several: bool,
    least_classes: int,
) -> Index:
    finder = ImageFinder(root, split="train", allow_outside=allow_outside)
    table = read_table(path, finder, wanted.image)
    refuse_runs(table, wanted.label, path)
    of_table = table.attrs.pop("notes", [])
    table = with_valid(table, root, path, wanted, finder, of_table)
    asked, shown, line = asked_of(root)
    notes: list[str] = []
    table, folder = open_rows(widen(table, finder), finder, path, of_table)
    wanted = wanted if folder is None else wanted._replace(image=OPENED)
    table = leave_splits_out(table, path, (*wanted, *asked), notes)
    notes += of_table
    unused = other_tables(root, path)
    remedy = f"; if it is in {', '.join(unused)}, join that to {path.name} by its ids"
    remedy = remedy if unused else ""
    try:
        image, group, key = _find_columns(table, wanted, asked, path, finder)
    except UserError as error:
        lacks = str(error).endswith("name it with --image_column")
        raise UserError(f"{error}{remedy if lacks else ''}") from error
    table = leave_litter_out(table, image, path, notes)
    try:
        beside = labels_beside(root, unused, table)
        search = LabelSearch(table, path, (image, group, key), asked, shown, beside)
        found = read_targets(search, wanted.label, several=several)
    except UserError as error:
        train = find_split(root, "train")
        if train and len(Scanner(root).images_by_folder(below(root, train))) > 1:
            remedy += f"; if the folders in {train.name}/ are the classes, move {path.name} away"
        raise UserError(f"{error}{remedy}") from error
    cells = image_cells(table, image, finder)
    images = find_images(finder, cells, str(path), notes)
    if least_classes > 1:  # the data themselves, no external images
        refuse_other_split(finder, cells, images, str(path))
    if group is None or (not wanted.group and follows(table[group].tolist(), found.names)):
        group, offers = find_group(table, found.names, (image, key, *found.columns))
        group = group or _line_column(table, folder or line, images)
        notes += [f"{path.name}: {offer}" for offer in offers if not offer.endswith(f" {group}")]
    notes += note_other_images(table, image, path)
    notes.insert(
        0, f"{path.name}: image = {image}, label = {found.said}, group = {group or 'none'}"
    )
    if unused:
        notes.append(
            f"{', '.join(unused)} is not used: add its lines, or its columns by their ids, to "
            f"{path.name} to use them"
        )
    if key not in (None, image) and table[key].duplicated().any():
        notes.append(f"{path.name}: {key} repeats, so images are known by their paths")
        key = None
    if key in (None, image) and len({*images}) < len(images):
        first, found = join_lines(images, found, table, path, notes)
        table, images = table.iloc[first], [images[row] for row in first]
    ids = [nfc(name) for name in images] if key is None else table[key].tolist()
    refuse_duplicates(ids, str(path))
    groups = (
        group_by_name(images, found.names, notes)
        if group is None
        else ["" if says_nothing(cell) else cell.strip() for cell in table[group]]
    )
    notes += note_valid(root, images)
    rows = make_columns(ids, images, found.names, groups, split="train")
    taken = tuple(name for name in (image, key, group, *found.columns) if name)
    notes += [*found.notes, *_check_targets(found, ids, path), *finder.notes]
    classes = find_classes(found.labels or found.names, path, least_classes)
    return Index(root, rows, classes, tuple(notes), bool(found.labels), taken)


def _line_column(table: pd.DataFrame, name: str, images: Sequence[str]) -> str | None:
    """Return the column of the submission's lines where images share them, which share a fold."""
    found = next((column for column in table.columns if plain(column) == plain(name)), None)
    if found is None or len({*images}) < len(images) or not table[found].duplicated().any():
        return None
    return str(found)


def _find_columns(
    table: pd.DataFrame,
    wanted: Wanted,
    asked: Sequence[str],
    path: Path,
    finder: ImageFinder,
) -> tuple[str, str | None, str | None]:
    """Return the columns of images, groups and ids; the one that the sample asks for is none."""
    image = name_image_column(table, wanted.image, path, finder)
    group = pick_column(table, wanted.group, GROUP_NAMES, path, "--group_column")
    known = pick_column(table, wanted.label, LABEL_NAMES, path, "--label_column")
    label = asked if len(asked) == 1 and image not in asked else []
    free = [name for name in table.columns if name not in (known, group, *label)]
    return image, group, pick_name(free, ID_NAMES)


def _check_targets(found: Targets, ids: Sequence[str], path: Path) -> list[str]:
    """Return notes on the classes; refuse a line without one."""
    if found.labels:
        return []
    if "" in found.names:
        sets = ", or where images have several labels or none pass --metric f1_samples"
        count = found.names.count("")
        raise UserError(
            f"{path} has no label in column {found.said} for {ids[found.names.index('')]}"
            f"{f' and {count - 1} more' if count > 1 else ''}: add it, or remove the lines without "
            f"(to predict them, move them to {path.parent / 'test.csv'})"
            f"{sets * bool(made_of_others(set(found.names)))}"
        )
    return check_labels(found.names, path)


def _read_test_csv(
    path: Path, sample_name: str | None, sample_ids: Sequence[str], finder: ImageFinder
) -> tuple[list[str], list[str], str]:
    table, folder = open_rows(read_table(path, finder, None), finder, path, [])
    if folder is not None:
        return table[folder].tolist(), table[OPENED].tolist(), folder
    image = name_image_column(table, None, path, finder)
    key = sample_name if sample_name in table.columns else None
    key = key or pick_name(table.columns, [sample_name or ""])
    differs = key is None or {*table[key]} != {*sample_ids}
    if sample_ids and differs and len(table) == len(sample_ids):
        columns = [cells.tolist() for _, cells in read_csv(path).items()]  # one without a name, too
        for form in (str, id_stem):
            wanted = {*map(form, sample_ids)}
            for ids in columns:
                if {*map(form, ids)} == wanted:
                    return ids, image_cells(table, image, finder), ""
    first = str(table.columns[0])
    key = key or pick_name(table.columns, ID_NAMES)
    key = key or (image if table[first].duplicated().any() else first)
    is_line = sample_name is not None and plain(key) == plain(sample_name)
    if not is_line or table[image].duplicated().any():  # else images that share a line
        refuse_duplicates(table[key].tolist(), str(path))
    return table[key].tolist(), image_cells(table, image, finder), key


def _read_test_folder(root: Path, test: str, sample_notes: Sequence[str]) -> Index:
    scanner = Scanner(root)
    images = sorted(scanner.images(test), key=lambda path: (nfc(path), path))
    doubtful = scanner.left_out(doubtful=True)
    if doubtful:
        raise UserError(f"{root / test}: {'; '.join(doubtful)}")
    if not images:
        raise UserError(f"no images in {root / test}: restore them")
    masks: list[str] = []
    drawn = find_masks(root, dict.fromkeys(images, ""), masks)
    images = [image for image in images if image not in drawn]
    forms: tuple[Callable[[str], str], ...] = (
        lambda path: posixpath.splitext(posixpath.basename(path))[0],
        posixpath.basename,
        lambda path: path,
    )
    named = ([nfc(form(image)) for image in images] for form in forms)
    ids = next((ids for ids in named if len(set(ids)) == len(ids)), images)
    notes = (*sample_notes, *scanner.notes, *masks, *scanner.left_out())
    return Index(root, make_columns(ids, images, split="test"), notes=notes)
