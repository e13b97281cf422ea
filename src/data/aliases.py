"""Reader of ``aliases.csv``: pairs of class names that mean the same, two names a line.

Pairs that share a name join into one set; a set is trained as one class, named by the name that
the file says first (the one that gets all the mass under the submission policy ``first``).
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path

from src.classes import Aliases, merge_classes, nfc
from src.data.csv_io import read_text, unescape_cell
from src.data.sample import read_sample_submission
from src.script import UserError, nearest

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
            sample = read_sample_submission(root)
            columns = [] if sample is None else [str(name) for name in sample.columns[1:]]
    return read_aliases(path, classes, columns=columns)


def read_aliases(
    path: Path | str | None, classes: Sequence[str], *, columns: Sequence[str] = ()
) -> Aliases:
    """Read ``aliases.csv``; None means that no class has an alias.

    Blank lines are skipped, and a first line such as ``class,alias``; with such a header further
    fields (evidence) are allowed. Names are compared in NFC.

    Args:
        path: the file.
        classes: names that images have.
        columns: names that only the sample submission has.

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
