"""Ids, paths, class names and groups of one split in, the table that all rooms read out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.data.finder import ImageFinder
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd

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
