"""Index, the table of a classification's images, and the resolution of cells to image files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from src.classes import nfc
from src.data.columns import image_column
from src.data.finder import ImageFinder
from src.data.root import archives, shards
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "image", "target", "group", "split")


@dataclass(frozen=True)
class Index:
    """The images of one split.

    ``columns`` are lists of N texts: ``id`` (unique), ``image`` (POSIX path relative to ``root``,
    or absolute outside it), ``target`` (class name in NFC, "" unknown), ``group`` ("" none) and
    ``split``; ``table`` has the same. ``classes`` are the sorted class names; ``notes`` what
    deserves saying aloud. Where an image may have several labels (``several``), ``target`` joins
    them by ``|``; "" is none. ``taken`` are the columns of ``train.csv`` that say image, id, label
    and group.
    """

    root: Path
    columns: dict[str, list[str]]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    several: bool = False
    taken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["id"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns as a table; pandas takes longer to import than finished folds to meet."""
        import pandas as pd

        return pd.DataFrame(self.columns, dtype="str")


def find_images(
    finder: ImageFinder, cells: Sequence[str], source: str
) -> tuple[list[str], list[str]]:
    """Return the images that the ``cells`` of ``source`` mean, relative to the root, and notes.

    Where none of the files exists under the ending that the cells say, the ending is passed over;
    numbers are found whatever their leading zeros, and as ``1.0``, where that leaves no doubt.

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
    notes: list[str] = []
    other = next((row for row, image in enumerate(images) if _is_other(cells[row], image)), None)
    if other is not None:
        notes = [f"{source}: {cells[other]!r} is taken for {images[other]}, and others likewise"]
    missing = [cell for cell, image in zip(cells, images, strict=True) if image is None]
    if missing:
        raise UserError(
            f"{source} names {len(missing)} images that are not in {finder.place}, first "
            f"{missing[0]!r}: {_remedy(finder, missing[0])}"
        )
    return [image for image in images if image is not None], notes


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
        packed = archives(finder.root) or shards(finder.root)
        more = f"; if the images are in {packed[0]}, write them as files first" if packed else ""
        for name in table.columns if len(table) else ():
            if all(finder.parts(cell) for cell in table[name].head(5)):
                more = f"; {name} {_remedy(finder, str(table[name].iat[0]))}"
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
    likely = [name for name in packed if finder.split in name.casefold()] or packed
    if likely:
        return f"unpack {', '.join(likely[:3])} there, or restore them"
    inside = shards(finder.root)
    if inside and not finder.like:
        return f"write the images of {', '.join(inside[:3])} there as files"
    if re.fullmatch(r"\d+(\.\d+)?[eE]\+\d+|\d{1,3}(,\d{3})+", cell.strip()):
        return "a spreadsheet has rewritten the ids: take the table as it was downloaded"
    left = "".join(f"; {line}" for line in finder.left_out)
    like = f" (files there are like {finder.like})" if finder.like else ""
    return f"restore them{like}{left}"


def find_classes(targets: Sequence[str], where: Path) -> tuple[str, ...]:
    """Return the class names, sorted.

    Raises:
        UserError: there is only one.
    """
    classes = tuple(sorted(set(targets)))
    if len(classes) < 2:
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
