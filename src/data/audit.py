"""Every train image read once before folds are made: what is unreadable, what is there twice.

Unreadable images are quarantined. Exact copies (same bytes) and near copies (same picture) must
share a fold, or the held-out score is flattered; copies under different labels are reported. So
are images of 16 bits that use few of them: only the upper eight are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from src.data.decode import MAX_PIXELS, decode_bytes, read_bytes, read_peak
from src.data.similar import SIDE, fingerprint, similar_pairs
from src.data.split import merge_groups
from src.data.tables import write_csv
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd

MAX_GROUP_SHARE = 0.05  # more near copies than this say that the images are all alike
DARK_PEAK = 1 << 13  # 16-bit images that stay below keep at most 32 of their 256 levels


@dataclass(frozen=True)
class _Look:
    """What one image showed: why it is unreadable ("") and else what it is known by."""

    reason: str
    digest: bytes = b""
    mark: tuple[int, np.ndarray] | None = None
    peak: int | None = None


@dataclass(frozen=True)
class Audit:
    """What one reading of all images found; rows count in the audited table.

    ``unreadable`` row → reason · ``exact`` sets of rows with the same bytes · ``conflicts`` those
    of them with several targets · ``near`` sets of rows that show the same picture.
    """

    unreadable: dict[int, str]
    exact: tuple[tuple[int, ...], ...]
    conflicts: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]

    @property
    def linked(self) -> tuple[tuple[int, ...], ...]:
        """Sets of rows that must share a fold."""
        return self.exact + self.near


def audit_images(
    table: pd.DataFrame,
    root: Path,
    *,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Audit:
    """Read and decode all images of ``table`` (``image``, ``target``) below ``root``.

    Args:
        table: the train table.
        root: the data folder.
        threads: how many read at once; None means one per core.
        max_pixels: larger images count as unreadable.
        progress: wraps the iterable of results, such as ``partial(tqdm, total=len(table))``.

    With the package ``simplejpeg`` installed JPEGs are also decoded strictly, which finds damage
    inside the stream that other decoders smooth over.
    """
    strict = _simplejpeg()
    paths = [root / image for image in table["image"].tolist()]
    unreadable: dict[int, str] = {}
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    rows: list[int] = []
    hashes: list[int] = []
    thumbnails = np.empty((len(paths), SIDE, SIDE), np.uint8)
    results = _in_threads(lambda path: _inspect(path, max_pixels, strict), paths, threads)
    peaks: dict[int, int] = {}
    for row, look in enumerate(progress(results)):
        if look.reason:
            unreadable[row] = look.reason
            continue
        if look.peak is not None:
            peaks[row] = look.peak
        by_digest[look.digest].append(row)
        if look.mark is not None and len(by_digest[look.digest]) == 1:  # one of each exact set
            thumbnails[len(rows)] = look.mark[1]
            rows.append(row)
            hashes.append(look.mark[0])
    exact = tuple(tuple(copies) for copies in by_digest.values() if len(copies) > 1)
    targets = table["target"].tolist()
    conflicts = tuple(copies for copies in exact if len({targets[row] for row in copies}) > 1)
    pairs = similar_pairs(np.array(hashes, np.uint64), thumbnails[: len(rows)])
    near, refused = _sets(np.array(rows, np.int64)[pairs], len(paths))
    notes = _notes(table, unreadable, exact, conflicts, near, refused)
    notes += _dark_notes(table, peaks)
    return Audit(unreadable, exact, conflicts, near, tuple(notes))


def write_quarantine(audit: Audit, table: pd.DataFrame, path: Path) -> None:
    """Write the unreadable images: id, image, target, reason."""
    columns = [table[name].tolist() for name in ("id", "image", "target")]
    rows = ((*(c[row] for c in columns), why) for row, why in audit.unreadable.items())
    write_csv(path, ("id", "image", "target", "reason"), rows)


def write_duplicates(audit: Audit, table: pd.DataFrame, path: Path) -> None:
    """Write the copies, one image a line: set, kind (conflict, exact, near), id, image, target."""
    columns = [table[name].tolist() for name in ("id", "image", "target")]
    conflicts = set(audit.conflicts)
    kinds = [("conflict" if s in conflicts else "exact", s) for s in audit.exact]
    kinds += [("near", s) for s in audit.near]
    kinds.sort(key=lambda kind: kind[0])
    lines = (
        (number, kind, *(c[row] for c in columns))
        for number, (kind, members) in enumerate(kinds)
        for row in members
    )
    write_csv(path, ("set", "kind", "id", "image", "target"), lines)


def _in_threads(
    work: Callable[[Path], Any], paths: Sequence[Path], threads: int | None
) -> Iterator[Any]:
    """Yield ``work(path)`` in order, with a bounded number of results in flight."""
    remaining = iter(paths)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:

        def submit() -> list[Any]:
            return [pool.submit(work, path) for path in islice(remaining, 256)]

        batch = submit()
        while batch:
            following = submit()
            yield from (future.result() for future in batch)
            batch = following


def _inspect(path: Path, max_pixels: int, strict: ModuleType | None) -> _Look:
    try:
        data = read_bytes(path)
        image = decode_bytes(data, path, short_side=2 * SIDE, max_pixels=max_pixels)
    except UserError as error:
        return _Look(str(error))
    damage = _stream_damage(data, strict) if strict and data.startswith(b"\xff\xd8") else ""
    if damage:
        return _Look(f"{path} is damaged inside ({damage}): restore the file")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return _Look("", digest, fingerprint(image), read_peak(data))


def _stream_damage(data: bytes, strict: ModuleType) -> str:
    try:
        strict.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        message = str(error)
        if message.startswith(("Unsupported", "tj")):  # what it cannot read, OpenCV judged
            return ""
        padding = re.search(r"(\d+) extraneous bytes before marker 0xd9", message)
        if padding:  # some cameras fill up with zeros before the end: harmless
            end = data.rfind(b"\xff\xd9")
            if not data[end - int(padding[1]) : end].strip(b"\0\xff"):
                return ""
        return message
    return ""


def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _sets(pairs: np.ndarray, num_rows: int) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Join pairs to sets of rows; too large ones are refused, and counted in images."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(merge_groups([""] * num_rows, pairs.tolist())):
        if name:
            members[name].append(row)
    limit = max(20, MAX_GROUP_SHARE * num_rows)
    sets = [tuple(rows) for rows in members.values()]
    refused = sum(len(rows) for rows in sets if len(rows) > limit)
    return tuple(rows for rows in sets if len(rows) <= limit), refused


def _notes(
    table: pd.DataFrame,
    unreadable: dict[int, str],
    exact: Sequence[Sequence[int]],
    conflicts: Sequence[Sequence[int]],
    near: Sequence[Sequence[int]],
    refused: int,
) -> list[str]:
    ids, targets = table["id"].tolist(), table["target"].tolist()
    notes = []
    if unreadable:
        reason = next(iter(unreadable.values()))
        notes.append(f"{len(unreadable)} unreadable images are quarantined, first: {reason}")
    if exact:
        count = sum(map(len, exact))
        notes.append(f"{count} images are exact copies in {len(exact)} sets: kept in one fold each")
    if conflicts:
        first = conflicts[0]
        said = ", ".join(f"{ids[row]} ({targets[row]})" for row in first[:2])
        notes.append(f"{len(conflicts)} sets of exact copies have several labels, first: {said}")
    if near:
        count = sum(map(len, near))
        pair = f"{ids[near[0][0]]} and {ids[near[0][1]]}"
        notes.append(f"{count} images are near copies in {len(near)} sets, first: {pair}")
    if refused:
        notes.append(f"{refused} images look too much alike to tell copies apart: not grouped")
    return notes


def _dark_notes(table: pd.DataFrame, peaks: dict[int, int]) -> list[str]:
    """Say which images of 16 bits, whose largest values are ``peaks`` by row, become black."""
    dark = [row for row, peak in peaks.items() if peak < DARK_PEAK]
    if not dark:
        return []
    share = (1 << 16) // (max(peaks[row] for row in dark) + 1)
    return [
        f"{len(dark)} of {len(peaks)} images with 16 bits reach only 1/{share} of their range and "
        f"become almost black, first: {table['id'].tolist()[dark[0]]}; scale all images, test "
        "images too, by one factor to 8 bits"
    ]
