"""Stratified (group) K-fold assignment of the training rows, kept in ``folds.csv`` for all runs.

Without groups: scikit-learn's StratifiedKFold, so that its folds are the ones a notebook with the
same seed has. With groups (the data's own, or duplicates that must not be parted): whole groups
are dealt so that every class spreads evenly. The file carries a hash of the data that it was made
for (image files by size and content: copies have other times), so that a later run on other data
stops and says what changed, and one of its own rows, so that a damaged file is never believed.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.classes import SEPARATOR, to_hot
from src.data.csv_io import read_csv, read_own_columns, write_csv
from src.files import is_of_the_system, patiently
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd

# name → cells: a dict of lists, or a pandas.DataFrame
Table = Mapping[str, Sequence[Any]] | Any
COLUMNS = ("id", "image", "target", "group", "fold", "content", "data_hash", "rows_hash")
QUARANTINED = -1
EXTRA = -2
EXTRA_SPLIT = "extra"  # of images that only train


@dataclass(frozen=True)
class Folds:
    """Who is in which fold, row for row with the train table.

    ``fold`` (N,) int64 is 0..num_folds-1, -1 for a quarantined image, which no run uses, or -2 for
    an external image, which every run trains on.
    ``data_hash`` names the data, ``folds_hash`` the data and who is where; OOF files carry it.
    ``columns`` are ``id``, ``image``, ``target``, ``group``, ``fold`` and ``content``.
    """

    columns: dict[str, list[Any]]
    fold: np.ndarray
    num_folds: int
    data_hash: str
    folds_hash: str
    notes: tuple[str, ...] = ()

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns as a table."""
        import pandas as pd

        return pd.DataFrame(self.columns)

    def train_rows(self, fold: int | None) -> np.ndarray:
        """Return the rows to train on (n,) int64; ``fold`` None means all but the quarantined."""
        return np.flatnonzero((self.fold != QUARANTINED) & (self.fold != fold))

    def valid_rows(self, fold: int) -> np.ndarray:
        """Return the rows held out in ``fold``, (n,) int64."""
        assert 0 <= fold < self.num_folds
        return np.flatnonzero(self.fold == fold)


def make_folds(
    table: pd.DataFrame,
    root: Path,
    *,
    num_folds: int,
    seed: int,
    linked: Iterable[Sequence[int]] = (),
    quarantined: Iterable[int] = (),
    labels: Sequence[str] = (),
    fewer: bool = False,
) -> Folds:
    """Make folds for a train table below ``root``.

    Args:
        table: with ``id``, ``image``, ``target``, ``group``; ``split`` extra is never held out.
        root: the data folder.
        num_folds: how many.
        seed: of the shuffle.
        linked: sets of rows (duplicates) that must share a fold.
        quarantined: rows that cannot be used; they get fold -1.
        labels: those an image may have several of, joined in ``target``; () = one class each.
        fewer: whether fewer folds will do, as many as there are groups (or images), with a note.

    Raises:
        UserError: more folds than rows or groups, or an image that is gone.
    """
    targets = table["target"].tolist()
    quarantined = list(quarantined)
    groups = merge_groups(table["group"].tolist(), linked)
    fold = np.full(len(targets), QUARANTINED, np.int64)
    usable = np.setdiff1d(np.arange(len(targets)), np.array(quarantined, np.int64))
    extra = usable[table["split"].iloc[usable] == EXTRA_SPLIT] if "split" in table else usable[:0]
    usable = np.setdiff1d(usable, extra)
    used = [targets[row] for row in usable]
    hot = to_hot(used, labels) if labels else None
    own_groups, said = [groups[row] for row in usable], []
    most = len(np.unique(_units(own_groups)))
    if fewer and 2 <= most < num_folds:
        said = [f"{most} folds instead of {num_folds}: there are no more groups or images"]
        num_folds = most
    fold[usable] = assign_folds(used, num_folds, seed, own_groups, hot)
    held = set(own_groups) - {""}
    copies = [row for row in extra if groups[row] in held]
    fold[extra] = EXTRA
    fold[copies] = QUARANTINED
    marks = file_marks(table, root, optional=set(quarantined))
    each = [name for text in used for name in text.split(SEPARATOR) if name] if labels else used
    notes = said + _small_classes(each, num_folds) + _uneven(fold, num_folds)
    if copies:
        notes.append(f"{counted(len(copies), 'extra image')} left out: copies of training images")
    filled = {name: table[name].tolist() for name in ("id", "image", "target")}
    filled |= {"group": groups, "fold": fold.tolist(), "content": marks}
    return _folds(filled, num_folds, data_hash(table, marks), notes)


def save_folds(folds: Folds, path: Path) -> None:
    """Write ``folds.csv`` atomically; text is escaped for spreadsheets."""
    names = (folds.data_hash, _rows_hash(folds.columns))
    rows = zip(*(folds.columns[name] for name in COLUMNS[:-2]), strict=True)
    write_csv(path, COLUMNS, ((*row, *names) for row in rows))


def load_folds(path: Path, table: Table, root: Path, *, num_folds: int | None = None) -> Folds:
    """Read ``folds.csv`` and check that it was made for this very data.

    ``table`` is the train table as indexed now; the result is in its order. ``num_folds`` None
    takes what is there.

    Raises:
        UserError: damaged, another number of folds, or other data: says what changed.
    """
    saved = read_folds(path)
    if num_folds is not None and saved.num_folds != num_folds:
        raise UserError(
            f"{path} has {saved.num_folds} folds, not {num_folds}: pass --folds "
            f"{saved.num_folds}, or delete it (and with it all OOF predictions) to make new ones"
        )
    place = {key: row for row, key in enumerate(saved.columns["id"])}
    lost = {key for key, row in place.items() if saved.fold[row] == QUARANTINED}
    optional = {row for row, key in enumerate(table["id"]) if key in lost}
    marks = file_marks(table, root, optional=optional)
    if data_hash(table, marks) != saved.data_hash:
        raise UserError(f"{path} was made for other data: {_changes(saved, table, marks)}")
    ids = list(table["id"])
    if len(place) != len(ids) or not place.keys() >= set(ids):
        raise UserError(f"{path} lost or gained rows: delete it to make the same folds again")
    order = [place[key] for key in ids]
    kept = {name: [column[row] for row in order] for name, column in saved.columns.items()}
    kept["image"] = list(table["image"])
    return _folds(kept, saved.num_folds, saved.data_hash, [])


def read_folds(path: Path) -> Folds:
    """Read ``folds.csv`` by itself, for those who need no images (blending).

    Raises:
        UserError: missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: run train_fold.py first")
    columns: dict[str, list[Any]] = {}
    hashes: set[tuple[str, str]] = set()
    try:
        table = read_own_columns(path) or read_csv(path, unescape=True)
        columns = {name: list(table[name]) for name in COLUMNS}
        columns["fold"] = [int(cell) for cell in columns["fold"]]
        hashes = set(zip(columns.pop("data_hash"), columns.pop("rows_hash"), strict=True))
        intact = len(set(columns["id"])) == len(columns["id"]) and min(columns["fold"]) >= EXTRA
        num_folds = max(columns["fold"]) + 1
    except (KeyError, ValueError):  # and what is wrong with it as a table
        intact, num_folds = False, 0
    intact = intact and {rows for _, rows in hashes} == {_rows_hash(columns)}
    if not intact or len(hashes) != 1 or not 2 <= num_folds <= len(columns["id"]):
        raise UserError(
            f"{path} is damaged: restore it, or delete it and run the command that made it, which "
            "makes the same folds again"
        )
    return _folds(columns, num_folds, next(iter(hashes))[0], [])


def data_hash(table: Table, marks: Sequence[str]) -> str:
    """Return 16 hex digits that name ids, targets, groups and files, whatever the row order."""
    columns = (list(table[name]) for name in ("id", "target", "group"))
    return _hash_rows(zip(*columns, marks, strict=True))


def _hash_rows(rows: Iterable[Sequence[object]]) -> str:
    """Return 16 hex digits that name rows of cells, whatever their order."""
    text = "\0\0".join(sorted("\0".join(map(str, row)) for row in rows))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows_hash(table: Table) -> str:
    """Name all rows and cells but the folds, which may be dealt by hand."""
    names = ("id", "image", "target", "group", "content")
    return _hash_rows(zip(*(list(table[name]) for name in names), strict=True))


def _folds(columns: dict[str, list[Any]], num_folds: int, name: str, notes: list[str]) -> Folds:
    places = zip(columns["id"], columns["fold"], strict=True)
    folds_hash = _hash_rows([(name,), *places])
    fold = np.array(columns["fold"], np.int64)
    return Folds(columns, fold, num_folds, name, folds_hash, tuple(notes))


def _small_classes(targets: Sequence[str], num_folds: int) -> list[str]:
    small = sorted((n, name) for name, n in Counter(targets).items() if n < num_folds)
    if not small:
        return []
    shown = ", ".join(f"{name} ({n})" for n, name in small[:5])
    more = ", …" if len(small) > 5 else ""
    return [
        f"{counted(len(small), 'class', 'classes')} with fewer images than there are folds "
        f"({num_folds}); kept, but not every fold validates them: {shown}{more}"
    ]


def _uneven(fold: np.ndarray, num_folds: int) -> list[str]:
    counts = np.bincount(fold[fold >= 0], minlength=num_folds)
    if counts.max() <= 1.2 * counts.mean() + 1:
        return []
    return [f"folds are uneven, because groups are large: {', '.join(map(str, counts))} images"]


def _changes(saved: Folds, table: Table, marks: Sequence[str]) -> str:
    """Say in one line how the data of ``saved`` folds and the present ``table`` differ."""
    old = saved.columns
    was = dict(zip(old["id"], zip(old["target"], old["content"], strict=True), strict=True))
    now = dict(zip(table["id"], zip(table["target"], marks, strict=True), strict=True))
    both = sorted(was.keys() & now.keys())
    kinds = {
        "added": sorted(now.keys() - was.keys()),
        "removed": sorted(was.keys() - now.keys()),
        "relabelled": [key for key in both if was[key][0] != now[key][0]],
        "changed on disk": [key for key in both if was[key][1] != now[key][1]],
    }
    said = [f"{len(ids)} {kind} (first {ids[0]})" for kind, ids in kinds.items() if ids]
    return (
        f"{', '.join(said) or 'the groups changed'}; restore the data, delete folds.csv to "
        "make new folds, or pass another --output_dir"
    )


def assign_folds(
    targets: Sequence[str],
    num_folds: int,
    seed: int,
    groups: Sequence[str] | None = None,
    hot: np.ndarray | None = None,
) -> np.ndarray:
    """Return a fold (N,) int64 in 0..num_folds-1 for every row, stratified by target.

    A pure function of the arguments. Classes with fewer members than folds are kept; rows with the
    same non-empty group share a fold. Where a row may have several labels, ``hot`` (N, K) of 0 and
    1 says them.

    Raises:
        UserError: more folds than rows or groups, or no rows.
    """
    labels = np.unique(np.array(targets), return_inverse=True)[1]
    units = _units(groups or [""] * len(labels))
    most = len(np.unique(units))
    if not most:
        raise UserError("no image can be read: quarantine.csv in the output folder says why")
    if most < num_folds:
        what = "groups" if most < len(labels) else "images"
        remedy = "lower it" if most > 1 else "at least two are needed, one to hold out"
        raise UserError(f"--folds {num_folds} is more than there are {what} ({most}): {remedy}")
    if hot is not None:
        return _deal_label_sets(hot, units, num_folds, seed)
    if most == len(labels) and np.bincount(labels).max() >= num_folds:
        return _stratify(labels, num_folds, seed)
    return _deal(labels, units, num_folds, seed)


def merge_groups(groups: Sequence[str], linked: Iterable[Sequence[int]]) -> list[str]:
    """Join groups that share a linked set of rows; return the new group name of every row.

    ``groups`` are names, "" for none; ``linked`` are sets of rows that must stay together
    (duplicates), which may overlap.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    own = [(first.setdefault(name, row), row) for row, name in enumerate(groups) if name]
    edges = np.array([(rows[0], row) for rows in (*own, *linked) for row in rows[1:]], np.int64)
    ends = (edges.reshape(-1, 2)[:, 0], edges.reshape(-1, 2)[:, 1])
    graph = coo_array((np.ones(len(edges)), ends), shape=(len(groups),) * 2)
    labels = connected_components(graph, directed=False)[1]
    roots = np.unique(labels, return_index=True)[1][labels].tolist()  # the first row of each set
    size = Counter(roots)
    names: dict[int, str] = {}
    for root, name in zip(roots, groups, strict=True):
        names[root] = names.get(root) or name
    taken = set(groups)
    for root in names:
        if not names[root] and size[root] > 1:
            names[root] = f"duplicates-{root}"
            while names[root] in taken:
                names[root] += "'"
    return [names[root] for root in roots]


def _units(groups: Sequence[str]) -> np.ndarray:
    """Number the groups (N,) in order of appearance; "" is a group of its own each time."""
    number: dict[str | int, int] = {}
    return np.array(
        [number.setdefault(name or row, len(number)) for row, name in enumerate(groups)]
    )


def _stratify(labels: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold

    fold = np.empty(len(labels), np.int64)
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small classes: our own note says more
        for number, (_, rows) in enumerate(splitter.split(labels, labels)):
            fold[rows] = number
    return fold


def _deal(labels: np.ndarray, units: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal whole groups, largest first, each to the fold where its classes are rarest.

    The greedy idea of scikit-learn's StratifiedGroupKFold, with the variance of a class's counts
    over the folds for its standard deviation: the growth of Σ_c (n_cf / N_c)² from a group g is
    Σ_c 2 n_cf g_c / N_c² plus a term without f, so a step looks at the group's own classes only
    (33,137 rows, 396 classes, mostly groups of one: 0.5 s for 18 s).
    """
    sizes = np.bincount(units)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    rows_of = np.split(np.argsort(units, kind="stable"), np.cumsum(sizes)[:-1])
    share = 1.0 / np.bincount(labels) ** 2.0
    counts = np.zeros((len(share), num_folds))
    filled = np.zeros(num_folds, np.int64)
    fold = np.empty(len(labels), np.int64)
    for unit in order:
        rows = rows_of[unit]
        own = labels[rows]
        cost = share[own] @ counts[own]
        best = np.flatnonzero(cost <= cost.min() * (1 + 1e-9))
        chosen = best[np.argmin(filled[best])]
        fold[rows] = chosen
        np.add.at(counts[:, chosen], own, 1)
        filled[chosen] += len(rows)
    return fold


def _deal_label_sets(hot: np.ndarray, units: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal whole groups by iterative stratification, the rarest label first.

    Each group goes to the fold that lacks most of the label in turn, of equals to the fold that
    lacks most rows; large groups first.

    Source: Sechidis et al. 2011, https://doi.org/10.1007/978-3-642-23808-6_10, algorithm 1, with
    groups for examples.
    """
    count = np.zeros((units.max() + 1, hot.shape[1]), np.int64)  # of each label in each group
    np.add.at(count, units, hot)
    sizes = np.bincount(units)
    lacking = np.tile(count.sum(axis=0) / num_folds, (num_folds, 1))
    room = np.full(num_folds, len(hot) / num_folds)
    order = np.random.default_rng(seed).permutation(len(sizes))
    left = order[np.argsort(-sizes[order], kind="stable")]
    chosen = np.empty(len(sizes), np.int64)
    while len(left):
        rest = count[left].sum(axis=0)
        label = int(np.argmin(np.where(rest > 0, rest, len(hot) + 1)))
        mine = count[left, label] > 0 if rest[label] else np.ones(len(left), bool)
        for unit in left[mine]:
            wanted = lacking[:, label] if rest[label] else room
            best = np.flatnonzero(wanted >= wanted.max() - 1e-9)
            fold = best[np.argmax(room[best])]
            chosen[unit] = fold
            lacking[fold] -= count[unit]
            room[fold] -= sizes[unit]
        left = left[~mine]
    return chosen[units]


PIECE = 4096  # bytes read at the start, in the middle and at the end of a file


def file_marks(table: Table, root: Path, *, optional: Collection[int] = ()) -> list[str]:
    """Return for every image 16 hex digits that name its size and content.

    Of a file above 12 KiB three pieces of 4 KiB are read: another picture has others, but a few
    pixels changed between them, in a format without compression, go unseen. 48,000 files of 60 kB a
    second on one core, once the disk has them in memory. Files of ``optional`` rows may be gone or
    no files; their mark is then "".

    Raises:
        UserError: another image is gone.
    """
    found = []
    for row, image in enumerate(list(table["image"])):
        path = os.path.join(root, image)  # noqa: PTH118 (itself where it is absolute: C:/… too)
        try:
            found.append(patiently(partial(_mark, path)))
        except OSError as error:
            if is_of_the_system(error):
                raise
            if row not in optional:
                raise UserError(f"{path} cannot be read ({error.strerror}): restore it") from error
            found.append("")
    return found


def _mark(path: str) -> str:
    # waits for no pipe; as text, Windows would end a PNG at its seventh byte
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.open(path, os.O_RDONLY | flags)
    try:
        size = os.fstat(file).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=8)
        starts = (0, size // 2, size - PIECE) if size > 3 * PIECE else (0,)
        for start in starts:
            os.lseek(file, start, os.SEEK_SET)
            digest.update(os.read(file, PIECE if len(starts) > 1 else size))
    finally:
        os.close(file)
    return digest.hexdigest()
