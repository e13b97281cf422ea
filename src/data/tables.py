"""Tables of training and test images: which file has the labels, and what of it is read.

``train.csv`` or one of a usual name, else JSON or Parquet, with the lines of ``val.json``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING

from src.data.columns import (
    FOLDER_NAMES,
    LABEL_NAMES,
    RUN_NAMES,
    Wanted,
    names_subject,
    pick_name,
)
from src.data.csv_io import is_unnamed, read_csv, refuse_rows
from src.data.files import SPLITS, Scanner, below
from src.data.finder import ImageFinder
from src.data.root import (
    ANNOTATION_ENDINGS,
    INNER_TABLES,
    find_annotations,
    find_sample,
    find_split,
    find_split_table,
    find_table,
    read_name,
    tables,
)
from src.data.rows import name_image_column
from src.data.sample import asked_of, id_stem
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd


_COLUMNS = 64  # that may say video and frame: more are pixels or probabilities


def find_train_table(root: Path, train: Path | None) -> Path | None:
    """Return the table of training labels; ``train`` is the folder of training images, if any.

    Where the folders in ``train`` say classes, that is ``train.csv``, or COCO's annotations of
    whole images; else also a table in ``train`` (``_classes.csv``, ``metadata.csv``) and any JSON.
    """
    path = find_split_table(root, "train")
    sure = path is not None and (
        path.stem.casefold() == "train" or (train and train.name.casefold() not in SPLITS["train"])
    )
    if train is None or sure:
        return path or find_annotations(root, "train")
    path = path or find_table(train, *INNER_TABLES)
    annotations = find_annotations(root, "train")
    if annotations is None and path is None:
        return None
    folders = Scanner(root).images_by_folder(below(root, train))
    if len(folders) > 1:
        if annotations and tells_classes(annotations):
            return annotations
        return path if path and _contradicts(path, folders, asked_of(root)[0]) else None
    return path or annotations


def _contradicts(path: Path, folders: Mapping[str, Sequence[str]], asked: Sequence[str]) -> bool:
    """Tell whether a table says that ``folders`` (name → images) are no classes.

    Its label, by name or as the sample asks, differs within a folder; or the folders are its rows,
    and the sample asks for a column of it.
    """
    try:
        table = read_csv(path)
    except UserError:
        return False
    label = next((name for name in asked if name in table), None)
    named = label or pick_name(table.columns, LABEL_NAMES)
    folder = {id_stem(image): name for name, images in folders.items() for image in images}
    folder = folder if len(folder) == sum(map(len, folders.values())) else {}  # 1.jpg in several
    for name in table.columns.drop(named) if named else ():
        ids = table[name].map(id_stem)
        place = ids.map(folder)
        if place.notna().mean() > 0.5:
            return bool(table[named].groupby(place).nunique().max() > 1)
        if label and set(ids) == folders.keys() and len(ids) > table[label].nunique():
            return True
    return False


def labels_beside(root: Path, names: Sequence[str], table: pd.DataFrame) -> bool:
    """Tell whether one of the tables ``names`` is called labels and has the rows of ``table``."""
    ids = [{*table[column]} for column in table if table[column].is_unique]
    for name in names if ids else ():
        if "label" not in name.casefold():
            continue
        with contextlib.suppress(UserError):
            other = read_csv(root / name)
            if any(found.issubset(other[column]) for found in ids for column in other):
                return True
    return False


def tells_classes(path: Path) -> bool:
    """Tell whether a file has COCO annotations of whole images, without boxes and masks."""
    whole = path.read_bytes() if path.suffix.lower() == ".json" else b""
    return b'"category_id"' in whole and not re.search(rb'"(bbox|segmentation)"', whole)


def name_test(root: Path, data_dir: Path) -> list[str]:
    """Return a note on tables that may list the test images, where nothing else says them."""
    places = dict.fromkeys([data_dir.absolute(), root.absolute()])
    found = [path for place in places for path in tables(place)
             if read_name(path.stem)[0] == "test" or find_sample(path.parent) == path]  # fmt: skip
    names = {"test": "test", "": "sample_submission"}
    moves = [f"{path} to {root / names[read_name(path.stem)[0]]}{path.suffix}" for path in found]
    return [f"if they say the test images, move {', '.join(moves)}"] if moves else []


def with_valid(
    table: pd.DataFrame,
    root: Path,
    path: Path,
    wanted: Wanted,
    finder: ImageFinder,
    notes: list[str],
) -> pd.DataFrame:
    """Return the table of ``train.json`` with the lines of a ``val.json`` beside it."""
    import pandas as pd

    of_json = path.suffix.lower() in ANNOTATION_ENDINGS and path == find_annotations(root, "train")
    valid = find_annotations(root, "valid") if of_json else None
    if valid is None:
        return table
    more = read_table(valid, finder, wanted.image)
    refuse_runs(more, wanted.label, valid)
    lacking = [name for name in table if name not in more]
    if lacking:
        notes.append(f"{valid.name} is not used: it has no {lacking[0]}")
        return table
    image = name_image_column(more, wanted.image, valid, finder)
    inner = [f"{below(root, find_split(root, 'valid'))}/{cell}" for cell in more[image]]
    if finder.find_quietly(inner[0]) is not None:  # 7.jpg may be in train/ too
        more[image] = inner
    lines = counted(len(more), f"line of {valid.name} is", f"lines of {valid.name} are")
    notes += more.attrs.pop("notes", [])
    notes.append(
        f"{lines} trained on too, for the folds hold out images of their own: "
        "move it away to train without"
    )
    return pd.concat([table, more], ignore_index=True).fillna("")


def note_valid(root: Path, images: Sequence[str]) -> list[str]:
    """Return a note on a table inside the folder of validation images, which is not read."""
    valid = find_split(root, "valid")
    table = find_table(valid, *INNER_TABLES) if valid else None
    if valid is None or table is None or any(valid.name in name.split("/") for name in images):
        return []
    return [
        f"{below(root, valid)}/ is not used, for the folds hold out images of their own: to train "
        f"on it too, make one train.csv of the lines of both tables, with {valid.name}/ before the "
        "names of its images"
    ]


def refuse_runs(table: pd.DataFrame, label: str | None, path: Path) -> None:
    """Raise a UserError for a table of masks or boxes, unless the user names its ``label``."""
    runs = pick_name(table.columns, RUN_NAMES)
    is_json = path.suffix.lower() == ".json"
    if runs and not label:
        what = "masks of objects (COCO)" if is_json else "the run lengths of masks"
        raise UserError(
            f"{path}: column {runs} holds {what}, which train_lane.py learns; "
            "for classes of whole images, name their column with --label_column"
        )
    if "bbox" in table and is_json and not label:
        raise UserError(
            f"{path} holds boxes of objects (COCO detection), which no script here learns "
            "(train_lane.py learns masks); for classes of whole images pass --label_column "
            "category_id"
        )


def other_tables(root: Path, path: Path | None) -> list[str]:
    """Return the names of at most three tables in ``root`` that are not read beside ``path``."""
    read = {path, find_sample(root), find_split_table(root, "test")}
    names = [other.name for other in tables(root) if other not in read]
    others = re.compile(r"test|submi|aliases|^samples?\.")
    return [name for name in names if not others.search(name.casefold())][:3]


def read_table(path: Path, finder: ImageFinder, image: str | None) -> pd.DataFrame:
    """Read a train or test table without the row numbers that a data frame wrote.

    Raises:
        UserError: no rows, or no line of column names.
    """
    table = read_csv(path)
    if not len(table):
        raise UserError(f"{path} has no rows: restore the file")
    name = str(table.columns[0])
    is_folder = "/" in name and finder.open_folders([name]) != [[name]]
    if is_folder or finder.find_quietly(name) is not None:
        refuse_rows(list(table.columns), ",", path)
    first = table.iloc[0].tolist()
    if any(map(_is_long_list, first)) and not any(map(finder.finds, first)):
        raise UserError(
            f"{path} seems to hold the pixels themselves: write each row as an image file, and a "
            "table of the files and labels"
        )
    table = table if image else _join_names(table, finder)
    unnamed = [name for name in table.columns if is_unnamed(name)]
    if not unnamed or image in unnamed:
        return table
    named = table.drop(columns=unnamed)
    try:
        name_image_column(named, image, path, finder)
    except UserError:  # then what has no name are the ids
        return table.rename(columns={unnamed[0]: "index"})
    return named


def _join_names(table: pd.DataFrame, finder: ImageFinder) -> pd.DataFrame:
    """Return a table with a column of images where only two together say them: video and frame.

    ``7/0012.jpg`` and ``7_0012.jpg`` are frame 12 of video 7; the first column is
    named like a subject, a folder or a label.
    """
    head = table.head(20)
    if any(all(map(finder.finds, head[name])) for name in table):
        return table
    for one, other in permutations(table.columns[:_COLUMNS], 2):
        if not (names_subject(one) or pick_name([one], (*FOLDER_NAMES, *LABEL_NAMES))):
            continue
        for joint, width in product("/_-", (0, *finder.widths)):
            cells = head[one] + joint + head[other].str.zfill(width)
            if finder.finds_all(cells):
                joined = table[one] + joint + table[other].str.zfill(width)
                rest = table if table[other].is_unique else table.drop(columns=other)
                return rest.assign(**{f"{one}{joint}{other}": joined})
    return table


def _is_long_list(cell: str) -> bool:
    return cell.startswith("[") and cell.count(",") > 62 and not re.search("[A-Za-z]{3}", cell)


def image_cells(table: pd.DataFrame, image: str, finder: ImageFinder) -> list[str]:
    """Return the cells that say the images, with those of a column of folders before them."""
    cells: list[str] = table[image].tolist()
    folder = pick_name(table.columns.drop(image), FOLDER_NAMES)
    if folder is None or "/" in cells[0]:
        return cells
    joined = [f"{place}/{cell}" for place, cell in zip(table[folder], cells, strict=True)]
    return joined if finder.find_quietly(joined[0]) is not None else cells
