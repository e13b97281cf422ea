"""Pairs of class names that mean the same in, the classes that are really trained out.

``aliases.csv`` has two class names a line. Pairs that share a name join into one set; a set is
trained as one class, named by the name that the file says first (the one that gets all the mass
under the submission policy ``first``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.csv_io import nfc, read_text, unescape_cell
from src.script import UserError, nearest

_HEADERS = frozenset({"class", "alias", "name", "first", "second", "a", "b", "class_a", "class_b"})


@dataclass(frozen=True)
class Aliases:
    """Which class is trained under which name.

    ``classes`` are all K names; ``trained`` the T <= K names that remain, in the same order;
    ``trained_of`` (K,) gives for each class its position in ``trained``.
    """

    classes: tuple[str, ...]
    trained: tuple[str, ...]
    trained_of: tuple[int, ...]

    def targets(self, names: Iterable[str]) -> np.ndarray:
        """Return the trained class index (N,) int64 of class names."""
        index = dict(zip(self.classes, self.trained_of, strict=True))
        return np.array([index[name] for name in names], np.int64)

    def members(self) -> tuple[tuple[str, ...], ...]:
        """Return for each trained class the names it stands for, its own first."""
        return tuple(
            (name, *(c for c, t in zip(self.classes, self.trained_of, strict=True)
                     if t == place and c != name))
            for place, name in enumerate(self.trained)
        )  # fmt: skip


def read_aliases(path: Path | str | None, classes: Sequence[str]) -> Aliases:
    """Read ``aliases.csv``; None means that no class has an alias.

    Blank lines are skipped, and a first line such as ``class,alias``; with such a header further
    columns (evidence) are allowed. Names are compared in NFC.

    Raises:
        UserError: naming the line: not two names, or a name that is no class.
    """
    pairs = [] if path is None else _read_pairs(Path(path), classes)
    return merge_classes(classes, pairs)


def merge_classes(classes: Sequence[str], pairs: Iterable[tuple[str, str]]) -> Aliases:
    """Join ``classes`` along ``pairs`` of their names; the name met first leads its set.

    Raises:
        UserError: everything became one class.
    """
    pairs = list(pairs)
    met = {name: place for place, name in enumerate(dict.fromkeys(n for p in pairs for n in p))}
    leader = {name: name for name in classes}
    for pair in pairs:
        keep, gone = sorted((leader[name] for name in pair), key=met.__getitem__)
        for name, known in leader.items():
            if known == gone:
                leader[name] = keep
    trained = tuple(name for name in classes if leader[name] == name)
    if len(trained) < 2:
        if not pairs:
            raise UserError(f"there is only one class, {trained[0]!r}: at least two are needed")
        raise UserError(f"the aliases join all classes into {trained[0]!r}: remove some")
    place = {name: number for number, name in enumerate(trained)}
    return Aliases(tuple(classes), trained, tuple(place[leader[name]] for name in classes))


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
