"""Index, the table of a classification's images, and the resolution of cells to image files.

Tables in other forms than a line an image become such: long ones, repeats, columns of splits.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.classes import SEPARATOR, nfc, split_lines
from src.data.columns import (
    LABEL_NAMES,
    MASK_WORDS,
    check_labels,
    image_column,
    is_hot,
    looks_like_image,
    pick_name,
    says_no,
    says_yes,
    words_of,
)
from src.data.csv_io import read_csv, read_text
from src.data.files import is_litter, split_of_word
from src.data.finder import ImageFinder
from src.data.label_sets import Targets, count_labels
from src.data.root import archives, find_split, find_split_table, read_name, shards, tables
from src.data.sample import id_stem
from src.script import UserError, counted, one_line

if TYPE_CHECKING:
    import pandas as pd

_FOLDS = frozenset({"fold", "folds", "kfold", "kfolds"})
_SHORT = {"tr": "train", "trainval": "train", "te": "test", "ts": "test", "va": "valid"}
_SPLIT_COLUMNS = frozenset({
    *("split", "set", "subset", "partition", "phase", "usage", "mode", "dataset"),
})  # fmt: skip
_FLAG_FILL = frozenset({
    *("is", "in", "for", "set", "split", "image", "images", "img", "data", "sample", "flag", "row"),
})  # fmt: skip

COLUMNS = ("id", "image", "target", "group", "split")
OPENED = "image_path"  # column of the images that cells of folders stand for


@dataclass(frozen=True)
class Index:
    """The images of one split.

    ``columns`` are lists of N texts: ``id`` (unique), ``image`` (POSIX path relative to ``root``,
    or absolute outside it), ``target`` (class name in NFC, "" unknown), ``group`` ("" none) and
    ``split``; ``table`` has the same. ``classes`` are the sorted class names; ``notes`` what
    deserves saying aloud. Where an image may have several labels (``several``), ``target`` joins
    them by ``|``; "" is none. ``taken`` are the columns of ``train.csv`` that say image, id, label
    and group; ``id_name`` is the column of ``test.csv`` that says the ids, "" where none does.
    ``lines`` are the submission's line of each test image, where several images share one.
    """

    root: Path
    columns: dict[str, list[str]]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    several: bool = False
    taken: tuple[str, ...] = ()
    id_name: str = ""
    lines: tuple[str, ...] = ()

    @property
    def line_ids(self) -> list[str]:
        """Ids of the submission's lines, in their order."""
        return list(dict.fromkeys(self.lines)) or self.columns["id"]

    def __len__(self) -> int:
        return len(self.columns["id"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns as a table; pandas takes longer to import than finished folds to meet."""
        import pandas as pd

        return pd.DataFrame(self.columns, dtype="str")


def find_images(
    finder: ImageFinder, cells: Sequence[str], source: str, notes: list[str]
) -> list[str]:
    """Return the images that the ``cells`` of ``source`` mean, relative to the root.

    Where none of the files exists under the ending that the cells say, the ending is passed over;
    numbers are found whatever their leading zeros, and as ``1.0``, where that leaves no doubt.
    ``notes`` receives what was guessed.

    Raises:
        UserError: some are not there, or fit several files.
    """
    images = [finder.find(cell) for cell in cells]
    stems = [re.sub(r"\.[A-Za-z]\w{1,4}$", "", cell.strip()) for cell in cells]
    differs = all(stem != cell.strip() for stem, cell in zip(stems, cells, strict=True))
    if images and not any(images) and differs:
        images = [finder.find_quietly(stem) for stem in stems]
    lost = [row for row, image in enumerate(images) if image is None]
    found = {row: finder.find_core(cells[row]) for row in lost}
    if len(set(found.values())) == len(lost) and None not in found.values():
        images = [image or found[row] for row, image in enumerate(images)]
    other = next((row for row, image in enumerate(images) if _is_other(cells[row], image)), None)
    if other is not None:
        notes.append(
            f"{source}: {cells[other]!r} is taken for {images[other]}, and others likewise"
        )
    missing = [cell for cell, image in zip(cells, images, strict=True) if image is None]
    if missing:
        raise UserError(
            f"{source} names {counted(len(missing), 'image')} not in {finder.place}, first "
            f"{missing[0]!r}: {_remedy(finder, missing[0])}"
        )
    return [image for image in images if image is not None]


def refuse_other_split(
    finder: ImageFinder,
    cells: Sequence[str],
    images: Sequence[str],
    source: str,
    find_lines: Callable[[], Path | None] = lambda: None,
) -> None:
    """Raise a UserError where a split's images are missing, and the other's have their names.

    ``find_lines`` finds the table of training images, if any: others in train/ may be test images.
    """
    pairs = zip(cells, images, strict=True)
    odd = [image for cell, image in pairs if finder.is_of_other(cell, image)]
    if odd and (lines := find_lines()) is not None:
        known = {id_stem(cell) for _, column in read_csv(lines).items() for cell in column}
        odd = [image for image in odd if id_stem(image) in known]
    if odd:
        raise UserError(
            f"{source}: {counted(len(odd), f'{finder.split} image')} missing, of which there are "
            f"but the other split's of the same name, first {odd[0]}: unpack them into "
            f"{finder.root / finder.split}"
        )


def _is_other(cell: str, image: str | None) -> bool:
    """Tell whether a file was found under another name than the cell's."""
    if image is None:
        return False
    name = posixpath.basename(image).casefold()
    said = posixpath.basename(nfc(cell).strip().replace("\\", "/")).casefold()
    return said not in (nfc(name), posixpath.splitext(nfc(name))[0])


def name_image_column(
    table: pd.DataFrame, wanted: str | None, path: Path, finder: ImageFinder
) -> str:
    """Return the column of images, as :func:`src.data.columns.image_column` finds it.

    Raises:
        UserError: none; says if the images are packed, or several for a line.
    """
    try:
        return image_column(table, wanted, path, finder.finds)
    except UserError as error:
        packed = archives(finder.root) or shards(finder.root, finder.split)
        more = f"; if the images are in {packed[0]}, write them as files first" if packed else ""
        names = [*table.columns] if len(table) > 0 and table.shape[1] < 64 else []  # no pixels
        for name in sorted(names, key=lambda name: table[name].nunique()):
            parted = next((cell for cell in table[name].head(5) if finder.parts(cell)), None)
            more = f"; {name} {parted!r}: {_remedy(finder, parted)}" if parted else more
        raise UserError(f"{error}{more}") from error


def _remedy(finder: ImageFinder, cell: str) -> str:
    """Return what may bring an image that is missing: packed files, parts of it, its like."""
    packed = archives(finder.root)
    parts = finder.parts(cell)
    if parts:
        return (
            f"there are {', '.join(parts[:3])} for it: one image is read here, so write them as "
            f"one, {cell}.png"
        )
    several = re.split(r"[-_,;:| ]+", cell)
    if sum(looks_like_image(part) and finder.finds(part) for part in several) > 1:
        return "it names several images, and a line here is of one: write both side by side as one"
    unread = finder.unread(cell)
    if unread and not finder.left_out:
        stem = posixpath.splitext(cell)[0] if unread.endswith(cell) else cell
        return f"{unread} is there, which is not read here: write each as an image, as {stem}.png"
    likely = [name for name in packed if finder.split in name.casefold()] or packed
    if likely:
        return f"unpack {', '.join(likely[:3])} there, or restore them"
    inside = shards(finder.root, finder.split)
    if inside and not finder.like:
        return f"write the images of {', '.join(inside[:3])} there as files"
    if re.fullmatch(r"\d+(\.\d+)?[eE]\+\d+|\d{1,3}(,\d{3})+", cell.strip()):
        return "a spreadsheet has rewritten the ids: take the table as it was downloaded"
    left = "".join(f"; {line}" for line in finder.left_out)
    like = f" (files there are like {finder.like})" if finder.like else ""
    if finder.split == "train":
        return f"restore them, or remove their lines{like}{left}"
    listed = [table.name for table in tables(finder.root) if "test" in table.stem.casefold()]
    if listed and find_split_table(finder.root, "test") is None:
        left += f"; if {listed[0]} says the test images, move it to {finder.root / 'test.csv'}"
    return f"restore them{like}{left}"


def note_other_images(table: pd.DataFrame, image: str, path: Path) -> list[str]:
    """Return a note on columns of other images than ``image`` has, as in a table of pairs."""
    head = table.head(20).map(posixpath.basename)
    others = [
        name for name in table.columns
        if head[name].map(looks_like_image).all() and head[name].ne(head[image]).all()
        and not MASK_WORDS & set(words_of(name))
    ]  # fmt: skip
    if not others or not head[image].map(looks_like_image).all():
        return []
    return [
        f"{path.name}: {', '.join(others[:3])} names other images and is not used: one image a row "
        "is read here, so where both are needed write them as one"
    ]


def find_classes(targets: Sequence[str], where: Path, least: int = 2) -> tuple[str, ...]:
    """Return the class names, sorted.

    Raises:
        UserError: there is only one, and ``least`` are needed.
    """
    classes = tuple(sorted(set(targets)))
    if len(classes) < least:
        raise UserError(f"{where} has only one class, {classes[0]!r}: at least two are needed")
    return classes


def make_columns(
    ids: Sequence[str],
    images: Sequence[str],
    targets: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    *,
    split: str,
) -> dict[str, list[str]]:
    """Return the columns of one split, as :class:`Index` has them."""
    count = len(ids)
    columns = (ids, images, targets or [""] * count, groups or [""] * count, [split] * count)
    return {name: list(column) for name, column in zip(COLUMNS, columns, strict=True)}


def widen(table: pd.DataFrame, finder: ImageFinder) -> pd.DataFrame:
    """Turn a line for each image and class (``7_rust``, 0 or 1) into one an image.

    Any other table is returned as it is.
    """
    import pandas as pd

    if table.shape[1] != 2 or not is_hot(table, [table.columns[1]]):
        return table
    if finder.finds(str(table.iat[0, 0])):
        return table
    names = finder.names()
    long = split_lines(table.iloc[:, 0].tolist(), names)
    if long is None:
        return table
    classes, places = long
    rows = list(dict.fromkeys(row for row, _ in places))
    number = {row: place for place, row in enumerate(rows)}
    hot = np.zeros((len(rows), len(classes)), np.int64)
    for (row, column), cell in zip(places, table.iloc[:, 1], strict=True):
        hot[number[row], column] = says_yes(cell)
    wide = pd.DataFrame(hot, columns=classes).astype(str)
    wide.insert(0, "id", pd.Series([names[row] for row in rows], dtype=str))
    return wide


def open_rows(
    table: pd.DataFrame, finder: ImageFinder, path: Path, notes: list[str]
) -> tuple[pd.DataFrame, str | None]:
    """Turn a line for each folder of images into one for each image; append a note.

    Returns the table, whose column ``OPENED`` says the images, and the column of folders. Any other
    table is returned as it is, with None.
    """
    import pandas as pd

    names = [*table.columns] if table.shape[1] < 64 else []  # no pixels
    if any(all(map(finder.finds, table[name].head(20))) for name in names):
        return table, None
    for name in names:
        cells = table[name].tolist()
        inside = finder.open_folders(cells) if len({*cells}) == len(cells) else []
        if any(images != [cell] for images, cell in zip(inside, cells, strict=False)):
            table = table.assign(**{OPENED: pd.Series(inside)}).explode(OPENED, True)
            said = (
                f"{name} names folders: {len(table)} images are trained on, each with their label"
            )
            notes.append(f"{path.name}: {said}")
            return table, name
    return table, None


def leave_splits_out(
    table: pd.DataFrame, path: Path, wanted: Sequence[str | None], notes: list[str]
) -> pd.DataFrame:
    """Return a table without the rows of the test split, and without columns of splits and folds.

    Such a column is called ``split``, ``is_test``, ``fold`` or alike. ``wanted`` are columns that
    the user named or the sample asks for, which stay.
    """
    for name in [name for name in table.columns if name not in wanted]:
        words = words_of(name)
        if _FOLDS.intersection(words) and table.shape[1] > 2:
            notes.append(f"{path.name}: {name} is not used: folds are made here, see folds.csv")
            table = table.drop(columns=name)
            continue
        flag = _flag_of(words, table, name)
        by_name = flag or _SPLIT_COLUMNS.intersection(words)
        if not (by_name or _holds_splits(table[name])) or table.shape[1] < 3:
            continue
        split = {cell: _read_split(cell, flag) for cell in set(table[name])}
        if "" in split.values():
            if len(split) < 6 and words in (["split"], ["subset"], ["partition"]):
                notes.append(f"{path.name}: {name} is not used: it does not say train and test")
                table = table.drop(columns=name)
            continue
        said = table[name].map(split)
        if (said == "test").any() and (said != "test").any():
            notes.append(
                f"{path.name}: {(said == 'test').sum()} rows whose {name} is test are not trained "
                "on; to predict them, write their lines to test.csv"
            )
            table = table[said != "test"].reset_index(drop=True)
        if (said == "valid").any():
            notes.append(
                f"{path.name}: {(said == 'valid').sum()} rows whose {name} is valid are trained on "
                "too, for the folds hold out images of their own"
            )
        table = table.drop(columns=name)
    return table


def _flag_of(words: Sequence[str], table: pd.DataFrame, name: str) -> str:
    """Return the split that a 1 in a column means (``is_test``, ``is_training_image``), or "".

    ``train`` alone may be a class, where other columns hold 0 and 1 too.
    """
    said = [split for word in words if (split := split_of_word(word))]
    rest = [word for word in words if not split_of_word(word)]
    if len(said) != 1 or not _FLAG_FILL.issuperset(rest) or not is_hot(table, [name]):
        return ""
    if said == ["valid"]:
        return "valid" if rest == ["is"] else ""
    others = [other for other in table.columns if other != name and is_hot(table, [other])]
    return said[0] if rest or not [o for o in others if not pick_name([o], LABEL_NAMES)] else ""


def _holds_splits(cells: pd.Series) -> bool:
    """Tell whether cells are the names of splits, train and another one, and nothing else."""
    found = {split_of_word(cell) for cell in set(cells)}
    return len(found) > 1 and "train" in found and "" not in found


def _read_split(cell: str, flag: str) -> str:
    """Return the split that a cell names; ``flag`` is the one that 1 means, if any."""
    if not flag:
        return read_name(cell)[0] or _SHORT.get(cell.strip().casefold(), "")
    if says_yes(cell):
        return flag
    return ("test" if flag == "train" else "train") if says_no(cell) else ""


def leave_litter_out(table: pd.DataFrame, image: str, path: Path, notes: list[str]) -> pd.DataFrame:
    """Return a table without rows of files of a system, and of images that a test list names."""
    names = [cell.strip().replace("\\", "/").rpartition("/")[2] for cell in table[image]]
    litter = [row for row, name in enumerate(names) if name and is_litter(name)]
    if 0 < len(litter) < len(names):
        said = f"{counted(len(litter), 'row')} of files of the system ({names[litter[0]]})"
        notes.append(f"{path.name}: {said}: left out")
        table = table.drop(index=litter)
    for listing in _test_lists(path.parent):
        lines = read_text(listing).splitlines()
        stems = {id_stem(line.split()[0]) for line in lines if line.strip()}
        listed = table[image].map(id_stem).isin(stems)
        if listed.sum() >= 0.9 * len(stems) and listed.any() and not listed.all():
            notes.append(
                f"{path.name}: {listed.sum()} rows that {listing.name} names are not trained on; "
                "to predict them, write their lines to test.csv"
            )
            table = table[~listed]
    return table.reset_index(drop=True)


def _test_lists(folder: Path) -> list[Path]:
    """Return texts called test, where nothing else there says the test images."""
    if find_split(folder, "test") or find_split_table(folder, "test"):
        return []
    return [path for path in sorted(folder.glob("*.txt")) if read_name(path.stem)[0] == "test"]


def join_lines(
    images: Sequence[str], found: Targets, table: pd.DataFrame, path: Path, notes: list[str]
) -> tuple[list[int], Targets]:
    """Return the first line of each image, and the targets of those.

    Of several labels an image, the targets become those of all its lines.

    Raises:
        UserError: one class an image, and lines that say several; or lines that say no.
    """
    lines: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        lines.setdefault(image, []).append(row)
    sets = [sorted({found.names[row] for row in rows}) for rows in lines.values()]
    odd = next((k for k, names in enumerate(sets) if len(names) > 1), None)
    if odd is not None and not found.labels:
        check_labels(found.names, path)  # of measurements there are several, too
        image, shown = list(lines)[odd], one_line(", ".join(sets[odd][:3]))
        raise UserError(
            f"{path} has lines of {image} with different labels ({shown}): ids must be unique, so "
            "leave the right one, or where an image has several labels pass --metric f1_samples, "
            "mean_auc or map"
        )
    denied = [name for name in table.columns if name not in found.columns
              and is_hot(table, [name]) and table[name].nunique() > 1]  # fmt: skip
    if odd is not None and denied:
        raise UserError(
            f"{path} has several lines an image, of which some may say no ({denied[0]} is 0): "
            "remove those, and that column"
        )
    if found.labels:
        sets = [sorted({*SEPARATOR.join(names).split(SEPARATOR)} - {""}) for names in sets]
        about = count_labels(sets, len(found.labels))
        found = replace(found, notes=(about, *found.notes[1:]))
    names = [SEPARATOR.join(names) for names in sets]
    again = counted(len(images) - len(lines), "line")
    notes.append(f"{path.name}: {again} of an image again: joined")
    return [rows[0] for rows in lines.values()], replace(found, names=names)
