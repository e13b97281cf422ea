"""The columns of a competition's CSV in, which of them is the image, the id, the label out."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.data.scan import EXTENSIONS
from src.data.tables import nfc
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
