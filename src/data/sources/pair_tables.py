"""Tables whose lines name an image and its mask: ``image,mask`` (and a column ``split``).

``train.csv``, ``metadata.csv`` … in the data folder; of several columns of paths the first of each
kind counts. Lines whose files are not there are passed over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from src.data.csv_io import first_lines, read_csv
from src.data.sources.masks import IMAGE_SUFFIXES, MASK_SUFFIXES
from src.data.sources.places import split_of_name
from src.data.splits import split_of_word

if TYPE_CHECKING:
    import pandas as pd

_MASK = re.compile(r"mask|label|annot|gt|truth|target|seg", re.IGNORECASE)
_FILE = re.compile(
    rf"\w({'|'.join(map(re.escape, IMAGE_SUFFIXES | MASK_SUFFIXES))})\b", re.IGNORECASE
)
_SPLIT = ("split", "subset", "set", "partition", "phase")


def read_pair_tables(root: Path) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Return {image: mask} and {image: split} of the tables in ``root``, of files that exist."""
    pairs: dict[Path, Path] = {}
    splits: dict[Path, str] = {}
    for path in sorted(root.glob("*.csv")):
        head, first = first_lines(path)
        if not _MASK.search(head) or len(_FILE.findall(first)) < 2:
            continue
        table = read_csv(path)
        columns = _path_columns(table)
        if columns is None:
            continue
        split = next((name for name in table.columns if name.casefold() in _SPLIT), None)
        words = table[split] if split else [split_of_name(path.stem)] * len(table)
        for names, word in zip(table[list(columns)].itertuples(index=False), words, strict=True):
            image, mask = (root / name.replace("\\", "/").lstrip("/") for name in names)
            if all(names) and image.is_file() and mask.is_file():
                pairs[image] = mask
                splits |= {image: said} if (said := split_of_word(word)) else {}
    return pairs, splits


def _path_columns(table: pd.DataFrame) -> tuple[str, str] | None:
    """Return the columns of images and of masks; None where either is missing."""
    paths = {
        name: suffix
        for name in table.columns
        if (suffix := Path(next(filter(None, table[name]), "")).suffix.lower())
        in IMAGE_SUFFIXES | MASK_SUFFIXES
    }
    masks = [name for name in paths if _MASK.search(name)]
    images = [name for name in paths if name not in masks]
    return (images[0], masks[0]) if images and masks else None
