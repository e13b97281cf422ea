"""Readers of two small tables beside the images: the sample submission, and ``aliases.csv``.

The sample says ids and column names, as they must be handed in. A line of ``aliases.csv`` has two
class names that mean the same. Pairs that share a name join into one set; a set is trained as one
class, named by the name that the file says first (the one that gets all the mass under the
submission policy ``first``).
"""

from __future__ import annotations

import contextlib
import csv
import json
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import Aliases, is_number, merge_classes, nfc
from src.data.columns import ID_NAMES, IMAGE_NAMES, is_hot, looks_like_image, pick_name
from src.data.csv_io import (
    BRIEF_ROWS,
    first_lines,
    is_unnamed,
    read_csv,
    read_text,
    refuse_duplicates,
    unescape_cell,
)
from src.data.files import IMAGE_ENDINGS, is_litter
from src.data.root import find_sample
from src.files import readable
from src.script import UserError, counted, nearest

if TYPE_CHECKING:
    import pandas as pd

_CODES = (".csv", ".tsv", ".json", ".txt", ".names")  # of files of classes and their numbers
_MAX_CODES = 1 << 20  # their bytes


def read_sample(root: Path | str) -> tuple[pd.DataFrame | None, list[str]]:
    """Read the sample submission (None = there is none), and notes on what is not as in the file.

    The first column holds the ids: those that the file has further back come first, and then
    columns without a name are left out. Every cell is text, the column names are the file's own. Of
    a wide table later rows have ids alone: 33,000 rows of 396 probabilities are half a minute and
    2.8 GB otherwise. The table's ``attrs`` say where the ids stand in the file (``place``), what is
    between its columns (``mark``), whether they lack the line of names (``bare``), whether
    its numbers have commas (``comma``), and its ``header`` with the blanks around names.

    Raises:
        UserError: malformed, only one column, duplicate ids, or lines that are no images.
    """
    path = find_sample(Path(root))
    if path is None:
        return None, _name_others(Path(root))
    table = read_csv(path, brief=True, bare=True)
    if table.shape[1] < 2:
        raise UserError(
            f"{path} has one column: expected an id and the columns to fill; add them, or remove "
            "the file to get the columns ID and each class"
        )
    if not len(table):
        raise UserError(f"{path} has no rows: restore it, or remove it to predict all of test/")
    notes: list[str] = []
    key, place = _id_column(table), 0
    if (table[key] == "").any():  # further back than what later rows have
        table = read_csv(path, bare=True)
    if key != table.columns[0]:
        named = [name for name in table.columns if name == key or not is_unnamed(name)]
        less = ", and columns without a name are left out" if len(named) < table.shape[1] else ""
        notes = [f"{path.name}: {key!r} holds the ids{less}"]
        place = named.index(key)
        table = table[[key, *(name for name in named if name != key)]]
    line = first_lines(path)[0]
    mark = next((mark for mark in ";\t|" if mark in line and "," not in line), ",")
    if mark != ",":
        notes.append(f"{path.name} has {mark!r} between its columns: so has the submission")
    if table.attrs.get("bare"):
        notes.append(f"{path.name} has no line of column names: nor has the submission")
    names = next(csv.reader(line.splitlines()[:1], delimiter=mark), [])
    names = [*names[place : place + 1], *names[:place], *names[place + 1 :]]
    same = [name.strip() for name in names] == [*table.columns]
    header = tuple(names if same else table.columns)  # with the blanks around
    first = table.iloc[0, 1:]
    comma = mark == ";" and bool(first.str.fullmatch(r"\d+,\d+").any())
    table.attrs |= {"mark": mark, "place": place, "header": header, "comma": comma}
    _refuse_other_forms(table, path)
    refuse_duplicates(table[key].tolist(), str(path))
    return table, notes


def _name_others(root: Path) -> list[str]:
    """Return a note on files that may be the sample submission under another name, if any."""
    with readable(f"folder {root}"):
        files = sorted(path.name for path in root.iterdir() if path.is_file())
    likely = re.compile(r"submi|^samples?\.")
    found = [name for name in files if likely.search(name.casefold()) and not is_litter(name)]
    if not found:
        return []
    said = "are not used: if one is" if len(found) > 1 else "is not used: if it is"
    return [
        f"{', '.join(found[:3])} {said} the sample submission, make it sample_submission.csv "
        "(unpacked, as CSV)"
    ]


def asked_of(root: Path) -> tuple[list[str], list[str], str]:
    """Return the columns that the sample submission asks for, the cells where it is one, its ids'.

    All are empty where there is no such file, or one that is refused (when the folds are made).
    """
    try:
        table = read_sample(root)[0]
    except UserError:
        table = None
    if table is None:
        return [], [], ""
    line, *names = map(str, table.columns)
    return names, table[names[0]].tolist() if len(names) == 1 else [], line


def read_codes(root: Path, classes: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the numbers that a small file in ``root`` gives to the classes, and the file's name.

    Two columns of a table or text, or a JSON object, have each class once, and numbers from 0 or 1
    on; or the names are a list, which counts from 0.
    """
    with readable(f"folder {root}"):
        paths = [path for path in sorted(root.iterdir()) if path.suffix.lower() in _CODES]
    for path in paths:
        columns: list[list[str]] = []
        if path.is_file() and path.stat().st_size < _MAX_CODES:
            with contextlib.suppress(UserError, ValueError, RecursionError):
                columns = _read_columns(path)[:8]
        for names in columns:
            called = [nfc(name).strip() for name in names]
            if not {*called} >= {*classes} or len({*called}) < len(called):
                continue
            counts = [[str(n + first) for n in range(len(names))] for first in (0, 1)]
            for numbers in columns:
                if sorted(numbers, key=lambda n: (len(n), n)) in counts:
                    codes = dict(zip(called, numbers, strict=True))
                    return {name: codes[name] for name in classes}, path.name
    return {}, ""


def _read_columns(path: Path) -> list[list[str]]:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return [cells.tolist() for _, cells in read_csv(path).items()]
    content: object
    if ending == ".json":
        content = json.loads(read_text(path))
    else:
        content = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        pairs = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in content]
        if all(pairs):
            content = {pair[1]: pair[2] for pair in pairs if pair}
    if isinstance(content, list):  # class_2 behind class_10 is 2 all the same
        own = all(re.search(r"\d", str(name)) for name in content)
        content = {} if own else dict(enumerate(content))
    rows = content.items() if isinstance(content, dict) else ()
    return [[*map(str, column)] for column in zip(*rows, strict=True)]


def _id_column(table: pd.DataFrame) -> str:
    """Return the first column, unless it has no id's name and another has."""
    first = str(table.columns[0])
    if pick_name([first], (*ID_NAMES, *IMAGE_NAMES)) and not is_unnamed(first):
        return first
    images = [str(name) for name in table if table[name].head(20).map(looks_like_image).all()]
    named = pick_name(table.columns[1:], ID_NAMES)
    if named and (not images or table[named].head(BRIEF_ROWS).is_unique):  # else it is the label
        return named
    return (images or [first])[0]


def _refuse_other_forms(table: pd.DataFrame, path: Path) -> None:
    """Raise a UserError for a sample (ids first) without a row an image and a column a class."""
    key, *others = table.columns
    lines = table[key].value_counts()
    if len(others) == 2 and lines.min() == lines.max() > 1:
        raise UserError(
            f"{path} has {lines.max()} lines for every id ({', '.join(table.columns)}): one for "
            "each class, it seems; a submission here has one line an image and one column a class: "
            "write the sample so, and turn the submission back"
        )
    odd = next(filter(_holds_boxes, table[others[0]].unique()), "") if len(others) == 1 else ""
    if odd:
        raise UserError(
            f"{path} asks for boxes or masks of objects in a cell, it seems ({odd[:40]}), and"
            " classes of whole images are predicted here (train_lane.py learns masks): to have "
            "those, write the sample with a label in each cell"
        )
    head = table.head(BRIEF_ROWS)
    words = {name: [cell for cell in head[name] if not _is_number(cell)] for name in others}
    text = {name: cells[0] for name, cells in words.items() if cells}
    if len(text) == len(others) > 1 and not is_hot(head, others):
        label = min(others, key=lambda name: head[name].nunique())  # patients and files differ
        raise UserError(
            f"{path} has {len(others)} columns of words ({', '.join(others[:3])}: "
            f"{', '.join(list(text.values())[:3])}): labels are written into one column here: make "
            f"it {key},{label}, with a list (a b c) where several are asked for, and set the "
            "submission's apart afterwards"
        )
    if text and len(text) < len(others):
        name, cell = next(iter(text.items()))
        rest = [other for other in others if other not in text]
        label = f" (if it is the label, remove {', '.join(rest[:3])}{', …' * (len(rest) > 3)} there"
        raise UserError(
            f"{path}: column {name!r} holds text ({cell}), no probabilities: remove it from the "
            f"sample{f'{label}, and add that to the submission)' * (len(text) == 1)}"
        )


def _holds_boxes(cell: str) -> bool:
    """Tell whether a cell lists places of objects: no list of classes has a number twice."""
    words = cell.split()
    numbers = [word for word in words if is_number(word)]
    return len(words) > 4 and len({*numbers}) < len(numbers) and len({*words}) > 1


def _is_number(cell: str) -> bool:
    """Tell whether a cell is a number, with a comma or a point, or stands for one."""
    text = cell.replace(",", ".").strip().casefold()
    return is_number(text) or text in ("", "nan", "inf", "-inf", "true", "false")


def compare_ids(
    ids: Sequence[str], sample_ids: Sequence[str], path: Path, notes: list[str]
) -> list[str]:
    """Return the ids of test.csv, at ``path``, as the sample writes them.

    The two may differ in endings of image files, in folders before the name, in case, blanks and
    leading zeros, as long as no two ids become one; ``notes`` says so.

    Raises:
        UserError: they are not the same ids.
    """
    if set(ids) == set(sample_ids):
        return list(ids)
    for form in (str.strip, id_stem, _bare):
        theirs = {form(key): key for key in sample_ids}
        mine = [form(key) for key in ids]
        if len(theirs) == len(sample_ids) == len(ids) and theirs.keys() == set(mine):
            notes.append(
                f"{path.name} and the sample write ids differently ({ids[0]!r}, "
                f"{theirs[mine[0]]!r}): the submission has the sample's"
            )
            return [theirs[key] for key in mine]
    lacking = sorted(set(sample_ids) - set(ids))
    extra = sorted(set(ids) - set(sample_ids))
    spare = (
        f", or remove the lines that are not to be predicted from {path.name}; where the sample "
        "shows but some of those that are, give it a line for each"
    ) * (not lacking)
    if len(lacking) == len(sample_ids):
        spare = f", or where none is in both, add the sample's column of ids to {path.name}"
    raise UserError(
        f"{path} and the sample submission differ: {counted(len(lacking), 'id')} only in the "
        f"sample, {len(extra)} only in {path.name}, first {(lacking + extra)[0]!r}: restore both "
        f"files{spare}"
    )


def id_stem(key: str) -> str:
    """Return an id without the folders before it and the ending of an image file."""
    name = posixpath.basename(key.strip().replace("\\", "/"))
    stem, ending = posixpath.splitext(name)
    return stem if ending.lower() in IMAGE_ENDINGS else name


def _bare(key: str) -> str:
    stem = re.sub(r"^(\d+)\.0+$", r"\1", id_stem(key).casefold())
    return stem.lstrip("0") or "0" if stem.isdigit() else stem


_HEADERS = frozenset({"class", "alias", "name", "first", "second", "a", "b", "class_a", "class_b"})


def load_aliases(root: Path | None, flag: str, classes: Sequence[str]) -> Aliases:
    """Read the alias file: the flag's, else the one of the data folder ``root``, else none.

    The names of the sample submission's columns may stand in it too.
    """
    beside = None if root is None else root / "aliases.csv"
    path = flag or (beside if beside is not None and beside.exists() else None)
    columns: list[str] = []
    if path and root is not None:
        with contextlib.suppress(UserError):  # a sample that is refused is refused elsewhere
            sample = read_sample(root)[0]
            columns = [] if sample is None else [str(name) for name in sample.columns[1:]]
    return read_aliases(path, classes, columns=columns)


def read_aliases(
    path: Path | str | None, classes: Sequence[str], *, columns: Sequence[str] = ()
) -> Aliases:
    """Read ``aliases.csv``; None means that no class has an alias.

    Blank lines are skipped, and a first line such as ``class,alias``; with such a header further
    fields (evidence) are allowed. Names are compared in NFC. ``columns`` are names that only the
    sample submission has.

    Raises:
        UserError: naming the line: not two names, or a name that is neither a class nor a column;
            or fewer than two classes remain.
    """
    names = [*classes, *(nfc(name) for name in columns)]
    pairs = [] if path is None else _read_pairs(Path(path), names)
    aliases = merge_classes(classes, pairs)
    if len(aliases.trained) < 2:
        if not pairs:
            only = repr(next(iter(classes), ""))
            raise UserError(f"there is only one class, {only}: at least two are needed")
        raise UserError(f"the aliases join all classes into {aliases.trained[0]!r}: remove some")
    return aliases


def _read_pairs(path: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    known = set(classes)
    pairs: list[tuple[str, str]] = []
    header = False
    rows = csv.reader(read_text(path).splitlines())
    try:
        for number, cells in enumerate(rows, start=1):
            names = [nfc(unescape_cell(cell.strip())) for cell in cells]
            if not any(names):
                continue
            if not pairs and not header and _is_header(names, known):
                header = True
                continue
            if len(names) < 2 or not all(names[:2]) or (len(names) > 2 and not header):
                raise UserError(f"{path} line {number}: expected two class names, `one,other`")
            for name in names[:2]:
                if name not in known:
                    raise UserError(
                        f"{path} line {number}: no class {name!r}{nearest(name, classes)}"
                    )
            pairs.append((names[0], names[1]))
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num}: {error}; save it as plain CSV") from error
    return pairs


def _is_header(names: Sequence[str], known: set[str]) -> bool:
    head = [name.casefold() for name in names[:2]]
    return len(head) == 2 and not known & set(names[:2]) and set(head) <= _HEADERS
