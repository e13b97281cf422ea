"""Prediction files of a run: ``oof.npz``, and ``test_logits.npy`` with ``test.json``.

Logits are float16, (V, N, K): views × rows × classes. Both kinds are mapped from disk, not loaded,
and nothing is ever unpickled. Test logits count only once their sidecar exists.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.classes import STATES, PairedLogits
from src.files import (
    NOT_WHOLE,
    Json,
    atomic_write,
    crc32,
    map_array,
    patiently,
    read_json,
    regular,
    replacing,
    write_json,
)
from src.metrics.classification import Array
from src.runs import REPAIR, Run
from src.script import UserError, brief

_KEYS = ("logits", "ids", "targets", "views", "classes", "fold", "config_hash", "folds_hash")


@dataclass(frozen=True)
class OofFile:
    """One fold of one model: logits (V, n, K0) float16 mapped from disk, and what they are of.

    Where a row may have several of the classes, ``targets`` are (n, K0), else (n,).
    """

    path: Path
    logits: Array | PairedLogits
    ids: Array
    targets: Array
    views: tuple[str, ...]
    classes: tuple[str, ...]
    fold: str
    config_hash: str
    folds_hash: str

    @property
    def several(self) -> bool:
        """Whether a row may have several of the classes."""
        return self.targets.ndim == 2

    def as_pairs(self) -> OofFile:
        """Return the same as pairs of rows and labels (``src/classes.py``), known by numbers."""
        return replace(
            self, logits=PairedLogits(self.logits), targets=self.targets.ravel(), classes=STATES,
            ids=pair_ids(self.ids, len(self.classes)),
        )  # fmt: skip


def pair_ids(ids: Array, num_labels: int) -> Array:
    """Return (N · L,) ids of pairs of N ids and L labels."""
    return np.array([f"{id_}\0{k}" for id_ in ids.tolist() for k in range(num_labels)])


@dataclass(frozen=True)
class TestRun:
    """The test logits of one fold of one model: (V, N, K0) float16, mapped from disk."""

    __test__ = False  # not a test case

    path: Path
    logits: Array | PairedLogits
    views: tuple[str, ...]
    classes: tuple[str, ...]


def save_oof(
    path: Path,
    *,
    logits: Array,
    ids: Array,
    targets: Array,
    views: Sequence[str],
    classes: Sequence[str],
    fold: str,
    config_hash: str,
    folds_hash: str,
) -> None:
    """Write one ``oof.npz``, uncompressed so that it can be mapped.

    ``logits`` (V, n, K0) are kept as float16, clipped to its range. ``targets`` are class numbers
    (n,), or (n, K0) of 0 and 1 where a row may have several labels.
    """
    assert logits.shape == (len(views), len(ids), len(classes)), logits.shape
    largest = float(np.finfo(np.float16).max)
    with atomic_write(path) as file:
        np.savez(
            file,
            logits=np.clip(logits, -largest, largest).astype(np.float16),
            ids=np.asarray(ids, dtype=np.str_),
            targets=np.asarray(targets, dtype=np.int64),
            views=np.asarray(views, dtype=np.str_),
            classes=np.asarray(classes, dtype=np.str_),
            fold=np.asarray(fold, dtype=np.str_),
            config_hash=np.asarray(config_hash, dtype=np.str_),
            folds_hash=np.asarray(folds_hash, dtype=np.str_),
        )


@contextmanager
def atomic_array(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic]
) -> Iterator[np.memmap]:
    """Yield a writable memory map that becomes the ``.npy`` file ``path`` when it is whole.

    The map is closed at the end, since Windows renames no file that is mapped: nobody may touch
    the array after it.

    Raises:
        OSError: the disk has no room for it (said before the first byte is written).
    """
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        try:
            with temporary.open("r+b") as file:
                # writing to a map of a full disk kills the process
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            yield array
            array.flush()
        finally:
            array._mmap.close()  # type: ignore[attr-defined]


def checksum(array: np.ndarray) -> str:
    """Return the CRC-32 of a contiguous array's bytes as eight hex digits."""
    return f"{crc32(array):08x}"


def save_test_info(
    path: Path,
    *,
    logits: Array,
    ids_hash: str,
    views: Sequence[str],
    classes: Sequence[str],
    trained: str,
    threshold: float | None = None,
) -> None:
    """Write ``test.json``, which declares the logits (V, N, K0) beside it whole, after them.

    ``ids_hash`` names the images in their order, ``trained`` options and weights of the run, as
    ``training_mark`` does; ``threshold`` is that of adaptive views, None if every image was shown
    in all ``views``.
    """
    content: Json = {"logits": checksum(logits), "ids_hash": ids_hash, "views": list(views)}
    content |= {"classes": list(classes), "trained": trained, "threshold": threshold}
    write_json(path, content)


def has_test_run(
    folder: Path, *, ids_hash: str, trained: str, views: Sequence[str], threshold: float | None
) -> bool:
    """Tell whether ``folder`` holds whole test logits of these images, this training and views.

    All views stand in for adaptive ones, but not the reverse.
    """
    try:
        info, logits = _read_test_files(folder)
        same = (info["ids_hash"], info["trained"]) == (ids_hash, trained)
        enough = len(logits) == len(info["views"]) and set(views) <= set(info["views"])
        return same and enough and info["threshold"] in (None, threshold)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _read_test_files(folder: Path) -> tuple[Json, Array]:
    """Return what ``test.json`` says and the logits (V, N, K0) it is about, checksum compared."""
    run = Run(folder)
    info, logits = read_json(run.test_info), map_array(run.test_logits)
    if "logits" in info and checksum(logits) != info["logits"]:
        raise ValueError("its checksum does not match")
    return info, logits


def hash_ids(ids: Iterable[str]) -> str:
    """Return 16 hex digits that name ids in their order."""
    digest = hashlib.sha256()
    for id_ in ids:
        digest.update(id_.encode() + b"\0")
    return digest.hexdigest()[:16]


def open_oof(path: Path) -> OofFile:
    """Map one ``oof.npz``.

    Raises:
        UserError: the file is truncated, compressed by others' tools, pickled, or lacks an array.
    """
    try:
        arrays = patiently(lambda: {key: _map_array(path, key) for key in _KEYS})
        file = OofFile(
            path=path,
            logits=arrays["logits"],
            ids=arrays["ids"].astype(str),
            targets=arrays["targets"].astype(np.int64),
            views=tuple(map(str, arrays["views"])),
            classes=tuple(map(str, arrays["classes"])),
            fold=str(arrays["fold"]),
            config_hash=str(arrays["config_hash"]),
            folds_hash=str(arrays["folds_hash"]),
        )
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {REPAIR}") from None
    except NOT_WHOLE as error:
        raise UserError(f"{path}: not a whole OOF file ({brief(error)}); {REPAIR}") from None
    shape = (len(file.views), len(file.ids), len(file.classes))
    of_rows = file.targets.shape in (file.ids.shape, shape[1:])
    if file.logits.shape != shape or not of_rows:
        raise UserError(f"{path}: logits are {file.logits.shape}, expected {shape}; {REPAIR}")
    above = 2 if file.several else shape[2]
    if len(file.targets) and not 0 <= file.targets.min() <= file.targets.max() < above:
        raise UserError(f"{path}: a target is no class number; {REPAIR}")
    return file


def learns_labels(output_dir: Path) -> bool:
    """Tell whether the first OOF file below ``output_dir`` is of several labels an image.

    A damaged one is not.
    """
    paths = sorted(output_dir.glob("*/fold*/oof.npz"))[:1]
    try:
        return any(_map_array(path, "targets").ndim == 2 for path in paths)
    except (FileNotFoundError, *NOT_WHOLE):
        return False


def _map_array(path: Path, key: str) -> Array:
    """Map one array of an uncompressed npz; object arrays are refused."""
    with zipfile.ZipFile(regular(path)) as archive:
        info = archive.getinfo(f"{key}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{key} is compressed")
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = header(stream)
            if dtype.hasobject:
                raise ValueError(f"{key} holds pickled objects")
            offset_in_entry = stream.tell()
            if key != "logits":
                data = np.frombuffer(stream.read(), dtype=dtype)
                return data.reshape(shape, order="F" if fortran else "C")
            stream.seek(0)
            head = stream.read(offset_in_entry)
    if dtype != np.float16 or fortran:
        raise ValueError(f"logits are {dtype}, expected float16 in C order")
    with path.open("rb") as file:  # the entry's data follow its local header
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), dtype="<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + offset_in_entry
    if offset + math.prod(shape) * 2 > path.stat().st_size:
        raise ValueError("truncated")
    if 0 in shape:
        return np.zeros(shape, dtype=np.float16)
    logits = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    if crc32(logits, zlib.crc32(head)) != info.CRC:
        raise ValueError(f"{key}: its checksum does not match")
    return logits


def open_test_run(
    folder: Path, *, num_rows: int, ids_hash: str, classes: Sequence[str], views: Sequence[str]
) -> TestRun:
    """Map the test logits of one run.

    ``folder`` is ``output/<model>/fold<k>``, whose sidecar must repeat ``ids_hash``. ``classes``
    are those the blend was fitted with, before merging, ``views`` those needed.

    Raises:
        UserError: missing, incomplete, of other images or other classes.
    """
    path, info_path = Run(folder).test_logits, Run(folder).test_info
    try:
        info, logits = _read_test_files(folder)
        run = TestRun(
            path, logits, tuple(map(str, info["views"])), tuple(map(str, info["classes"]))
        )
        known_ids = str(info["ids_hash"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{path}: not whole ({brief(error)}); delete it and infer again") from None
    if run.classes != tuple(classes):
        raise UserError(f"{info_path}: other classes than weights.json; train or optimise again")
    if known_ids != ids_hash:
        raise UserError(f"{info_path}: made for other test images; delete it and infer again")
    lacking = set(views) - set(run.views)
    if logits.shape != (len(run.views), num_rows, len(classes)) or lacking:
        raise UserError(f"{path}: {logits.shape} is not whole; delete it and infer again")
    return run
