"""Column detection of a competition's CSV: image, id, group, and labels as one class name a row."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import nfc
from src.data.files import EXTENSIONS
from src.script import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd


# Column names as competitions use them, most telling first.
IMAGE_NAMES = (
    *("img_path", "image_path", "file_path", "path", "image", "img", "file_name", "file"),
    *("image_name", "img_name", "이미지", "이미지경로", "파일명", "경로"),
)
ID_NAMES = ("id", "image_id", "img_id", "test_id", "row_id", "index", "아이디", "번호")
LABEL_NAMES = (
    *("label", "target", "class", "class_name", "label_name", "category", "labels"),
    *("라벨", "레이블", "클래스", "정답", "분류"),
)
GROUP_NAMES = (
    *("group", "group_id", "groups", "patient_id", "patient", "subject_id", "subject"),
    *("그룹", "환자"),
)


def image_column(table: pd.DataFrame, wanted: str | None, path: Path) -> str:
    """Return the wanted column, else one whose cells look like image files, else one by name.

    Raises:
        UserError: there is none; names the flag.
    """
    if not wanted:
        head = table.head(100)
        looks = [name for name in table.columns if head[name].map(_looks_like_image).mean() > 0.5]
        if looks:
            usual = pick_column(table[looks], None, IMAGE_NAMES, path, "")
            return usual or looks[0]
    name = pick_column(table, wanted, (*IMAGE_NAMES, *ID_NAMES), path, "--image_column")
    if name is None:
        raise UserError(
            f"{path} has no known image column among {', '.join(table.columns)}: "
            "name it with --image_column"
        )
    return name


def _looks_like_image(cell: str) -> bool:
    return posixpath.splitext(cell.strip())[1].lower() in EXTENSIONS


def pick_column(
    table: pd.DataFrame, wanted: str | None, usual: Sequence[str], path: Path | str, flag: str
) -> str | None:
    """Return the column ``wanted`` by the user, else the first with a ``usual`` name, else None.

    Names are compared in NFC without regard to case, spaces, ``-`` and ``_``.

    Raises:
        UserError: the wanted column is missing.
    """
    if wanted:
        if wanted in table.columns:
            return wanted
        raise UserError(f"{path} has no column {wanted!r}{nearest(wanted, table.columns)}: {flag}")
    known = {_plain(name): name for name in reversed(list(table.columns))}
    return next((known[_plain(name)] for name in usual if _plain(name) in known), None)


def _plain(name: str) -> str:
    return nfc(name).casefold().translate(str.maketrans("", "", " _-"))


_NO = frozenset({"0", "0.0", "false"})
_YES = frozenset({"1", "1.0", "true"})


def find_label(
    table: pd.DataFrame, wanted: str | None, others: Sequence[str | None], path: Path
) -> list[str]:
    """Return the label's column, or the columns of a one-hot table, one a class.

    Args:
        table: the rows of ``path``.
        wanted: the column that the user named.
        others: columns that are taken.
        path: for messages.

    Raises:
        UserError: none, or columns of which several hold for one image.
    """
    label = pick_column(table, wanted, LABEL_NAMES, path, "--label_column")
    rest = [name for name in table.columns if name not in others]
    if label is not None or len(rest) == 1:
        return [label or rest[0]]
    hot = [table[name].str.strip().str.casefold() for name in rest]
    if not hot or not all(set(cells) <= _NO | _YES for cells in hot):
        raise UserError(
            f"{path} has no known label column among {', '.join(table.columns)}: "
            "name it with --label_column"
        )
    counts = [sum(cell in _YES for cell in row) for row in zip(*hot, strict=True)]
    odd = [row for row, count in enumerate(counts) if count != 1]
    if odd:
        raise UserError(
            f"{path} line {odd[0] + 2} says yes in {counts[odd[0]]} of the columns "
            f"{', '.join(rest)}, as {len(odd)} lines in all do not say it once: one class an image "
            "is learned here; name one column with --label_column"
        )
    return rest


def read_labels(table: pd.DataFrame, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the class names of the rows in NFC without blanks around them, and notes."""
    if len(columns) > 1:
        hot = table[list(columns)].map(lambda cell: cell.strip().casefold() in _YES)
        return [nfc(columns[place]) for place in hot.to_numpy().argmax(axis=1)], []
    raw = [nfc(cell) for cell in table[columns[0]]]
    return [cell.strip() for cell in raw], _twins(set(raw), "blanks", str.strip, "merged")


def check_labels(targets: Sequence[str], where: Path) -> list[str]:
    """Return notes on class names that look like one class, several, or a measurement.

    Raises:
        UserError: the labels are numbers that hardly ever repeat.
    """
    classes = set(targets)
    notes = _check_numbers(classes, len(targets), where)
    for kind, key in (("case", str.casefold), ("how a number is written", _as_number)):
        remedy = "trained as different classes; if they are one, join them in aliases.csv"
        notes += _twins(classes, kind, key, remedy)
    several = sorted(
        name for name in classes
        if len(words := re.split(r"[\s,;|]+", name)) > 1 and classes.issuperset(words)
    )  # fmt: skip
    if several:
        notes.append(
            f"{len(several)} labels are made of other labels, such as {several[0]!r}: each "
            "combination is trained as a class of its own, for one class an image is learned here"
        )
    return notes


def _check_numbers(classes: set[str], num_rows: int, where: Path) -> list[str]:
    numbers = [_as_number(name) for name in classes]
    numeric = all(isinstance(number, float) for number in numbers)
    if not numeric or not any("." in name for name in classes):
        return []
    said = f"labels are {len(classes)} different numbers in {num_rows} rows"
    if len(classes) > 5 and 2 * len(classes) > num_rows:
        raise UserError(
            f"{where}: {said}: that is a measurement, and classes are learned here; name a column "
            "of classes with --label_column, or sort the numbers into a few classes"
        )
    if all(float(number) % 1 == 0 for number in numbers):  # 0.0 and 1.0 are classes of a data frame
        return []
    return [f"{said} with decimals: each is trained as a class, not as a measurement"]


def _as_number(name: str) -> float | str:
    """Return the number that ``name`` is, else the name itself."""
    return float(name) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", name) else name


def _twins(names: set[str], kind: str, key: Callable[[str], object], end: str) -> list[str]:
    """Return a note on the sets of names that have one key, or nothing."""
    sets = defaultdict(list)
    for name in sorted(names):
        sets[key(name)].append(name)
    twins = [same for same in sets.values() if len(same) > 1]
    if not twins:
        return []
    first = ", ".join(map(repr, twins[0][:4]))
    return [f"{len(twins)} sets of labels differ in {kind} only, first {first}: {end}"]
