"""Audit of the training images: unreadable files, exact and near duplicates, before folds are made.

Unreadable images are quarantined. Exact copies (same bytes) and near copies (same picture) must
share a fold, or the held-out score is flattered; copies under different labels are reported. So
are images of 16 bits that use few of them: only the upper eight are kept.

Near duplicates (recompressed, resized, brightened) are found in two steps. A 64-bit difference hash
(signs of the horizontal gradients of an 8 x 9 thumbnail) finds candidates: pairs at most
``num_bands - 1`` bits apart agree on at least one of ``num_bands`` bands of bits, so sorting by
band finds them all without comparing everything. A 32 x 32 grey thumbnail then confirms: as it is
and without its low frequencies it must correlate, which tells a second copy from a second
photograph of the same kind of thing before the same background.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from src.data.csv_io import write_csv
from src.data.decode import decode_bytes, read_bytes, read_peak
from src.data.folds import merge_groups
from src.script import UserError, counted

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
    measured: np.ndarray | None = None


@dataclass(frozen=True)
class Audit:
    """What one reading of all images found; rows count in the audited table.

    ``unreadable`` row → reason · ``exact`` sets of rows with the same bytes · ``conflicts`` those
    of them with several targets · ``near`` sets of rows that show the same picture · ``measured``
    row → what ``measure`` returned.
    """

    unreadable: dict[int, str]
    exact: tuple[tuple[int, ...], ...]
    conflicts: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]
    measured: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def linked(self) -> tuple[tuple[int, ...], ...]:
        """Sets of rows that must share a fold."""
        return self.exact + self.near


def audit_images(
    table: pd.DataFrame,
    root: Path,
    *,
    progress: Callable[[Iterable[_Look]], Iterable[_Look]] = iter,
    measure: Callable[[bytes, np.ndarray], np.ndarray] | None = None,
) -> Audit:
    """Read and decode all images of ``table`` (``image``, ``target``) below ``root``.

    With the package ``simplejpeg`` installed JPEGs are also decoded strictly, which finds damage
    inside the stream that other decoders smooth over. ``progress`` wraps the iterable of results.
    ``measure`` is called, in threads, with the bytes and the RGB pixels (H, W, 3) of every readable
    image, large ones decoded at a fraction of their size.
    """
    paths = [root / image for image in table["image"].tolist()]
    results = _in_threads(lambda path: _inspect(path, measure), paths)
    looks = dict(enumerate(progress(results)))
    unreadable = {row: look.reason for row, look in looks.items() if look.reason}
    peaks = {row: look.peak for row, look in looks.items() if look.peak is not None}
    measured = {row: look.measured for row, look in looks.items() if look.measured is not None}
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for row, look in looks.items():
        if not look.reason:
            by_digest[look.digest].append(row)
    marks = {copies[0]: mark for copies in by_digest.values() if (mark := looks[copies[0]].mark)}
    exact = tuple(tuple(copies) for copies in by_digest.values() if len(copies) > 1)
    targets = table["target"].tolist()
    conflicts = tuple(copies for copies in exact if len({targets[row] for row in copies}) > 1)
    hashes = np.array([number for number, _ in marks.values()], np.uint64)
    thumbnails = np.array([image for _, image in marks.values()], np.uint8)
    near, refused = _sets(np.array([*marks])[similar_pairs(hashes, thumbnails)], len(paths))
    notes = _notes(table, unreadable, exact, conflicts, near, refused)
    notes += _dark_notes(table, peaks)
    return Audit(unreadable, exact, conflicts, near, tuple(notes), measured)


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


def _in_threads(work: Callable[[Path], _Look], paths: Sequence[Path]) -> Iterator[_Look]:
    """Yield ``work(path)`` in order, with a bounded number of results in flight."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 1024):
            yield from pool.map(work, paths[start : start + 1024])


def _inspect(path: Path, measure: Callable[[bytes, np.ndarray], np.ndarray] | None) -> _Look:
    try:
        data = read_bytes(path)
        image = decode_bytes(data, path, short_side=2 * SIDE)
    except UserError as error:
        return _Look(str(error))
    if damage := _stream_damage(data):
        return _Look(f"{path} is damaged inside ({damage}): restore the file")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    measured = measure(data, image) if measure else None
    return _Look("", digest, fingerprint(image), read_peak(data), measured)


def _stream_damage(data: bytes) -> str:
    """Return what is wrong inside a JPEG; "" for nothing, for other formats, or not looked for."""
    try:
        if data.startswith(b"\xff\xd8"):
            import simplejpeg

            options = {"min_height": 1, "min_width": 1, "min_factor": 8, "strict": True}
            simplejpeg.decode_jpeg(data, "GRAY", **options)
    except ImportError:
        return ""
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
        notes.append(f"{counted(len(unreadable), 'unreadable image')} quarantined, first: {reason}")
    if exact:
        count = sum(map(len, exact))
        notes.append(
            f"{count} images are exact copies in {counted(len(exact), 'set')}: "
            "kept in one fold each"
        )
    if conflicts:
        first = conflicts[0]
        said = ", ".join(f"{ids[row]} ({targets[row]})" for row in first[:2])
        notes.append(
            f"{counted(len(conflicts), 'set')} of exact copies with several labels, first: {said}"
        )
    if near:
        count = sum(map(len, near))
        pair = f"{ids[near[0][0]]} and {ids[near[0][1]]}"
        notes.append(
            f"{count} images are near copies in {counted(len(near), 'set')}, first: {pair}"
        )
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


SIDE = 32
# A copy at JPEG quality 20, at half size, 10 % brighter or 1 % cropped stays above both in 99 of
# 100 photographs; different photographs of one hand sign on one wall stay below 0.96 and 0.9.
MIN_CORRELATION = 0.98
MIN_DETAIL_CORRELATION = 0.95
MIN_CONTRAST = 2.0  # grey levels: a blank thumbnail correlates with anything
_MAX_RUN = 300  # neighbours compared in a band that does not tell images apart


def fingerprint(image: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Return the difference hash and a (32, 32) uint8 thumbnail of an RGB image (H, W, 3) uint8.

    None where there is too little to compare: shorter than 32 pixels, or blank.
    """
    if min(image.shape[:2]) < SIDE:
        return None
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if thumbnail.std() < MIN_CONTRAST:
        return None
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big"), thumbnail


def similar_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Return the pairs (P, 2) int64, first < second, of images that are copies of each other.

    ``hashes`` are (N,) uint64, ``thumbnails`` (N, 32, 32) uint8.
    """
    pairs = close_pairs(hashes, num_bands=6 if len(hashes) <= 200_000 else 4)
    kept = [pairs[:0]]
    for start in range(0, len(pairs), 10_000):
        part = pairs[start : start + 10_000]
        one, other = (thumbnails[part[:, side]].astype(np.float32) for side in (0, 1))
        alike = _correlation(one, other) >= MIN_CORRELATION
        alike &= _correlation(_details(one), _details(other)) >= MIN_DETAIL_CORRELATION
        kept.append(part[alike])
    return np.concatenate(kept)


def close_pairs(hashes: np.ndarray, num_bands: int) -> np.ndarray:
    """Return the pairs (P, 2) int64, first < second, that differ in fewer than ``num_bands`` bits.

    Complete, except where more than 300 hashes agree on a band: of those only neighbours in
    sorted order are compared, so that hashes which tell nothing cost no quadratic time.
    """
    hashes = np.asarray(hashes, np.uint64)
    found = [np.empty(0, np.int64)]
    for bits in np.array_split(np.arange(64), num_bands):
        band = (hashes >> np.uint64(bits[0])) & np.uint64((1 << len(bits)) - 1)
        order = np.lexsort((hashes, band))
        band, sorted_hashes = band[order], hashes[order]
        left = np.arange(len(hashes))
        for step in range(1, _MAX_RUN):
            left = left[: np.searchsorted(left, len(hashes) - step)]
            left = left[band[left] == band[left + step]]
            if not len(left):
                break
            differing = _count_ones(sorted_hashes[left] ^ sorted_hashes[left + step])
            close = left[differing < num_bands]
            ends = np.sort(np.stack([order[close], order[close + step]]), axis=0)
            found.append(ends[0] * len(hashes) + ends[1])
    codes = np.sort(np.concatenate(found))
    codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique hashes, at ten times the cost
    return np.stack(np.divmod(codes, max(len(hashes), 1)), axis=1)


def _count_ones(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words)
    return np.unpackbits(words[..., None].view(np.uint8), axis=-1).sum(-1)


def _details(thumbnails: np.ndarray) -> np.ndarray:
    return np.stack([image - cv2.GaussianBlur(image, (0, 0), 2.0) for image in thumbnails])


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (x.reshape(len(x), -1) - x.mean((1, 2), keepdims=True)[:, 0] for x in (one, other))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(norms, 1e-6)
