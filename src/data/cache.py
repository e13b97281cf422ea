"""Decoded-image cache: every file decoded once, kept in memory or on disk.

A cache changes speed alone: its pixels are bit-identical to those of the source. ``ram`` fills as
rows are first read and is shared with the loader's processes; ``disk`` is a plain ``.npy`` built
once, before the first read, and memory-mapped by any number of processes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from src.data.canonical import ImageSource, Source, read
from src.files import atomic_write, crc32, hold, map_array, sweep
from src.script import UserError

AUTO_SHARE = 0.25  # of the free memory may be taken unasked
_BUILD_ROWS = 64  # rows a build holds in memory, per thread


class Subset:
    """Some rows of a source, renumbered from 0."""

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray | None = None):
        """Keep ``rows`` of ``source``, in that order; None = all."""
        self.source, self.shape = source, source.shape
        self.rows = np.array(range(len(source)) if rows is None else rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.source[int(self.rows[row])]

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        return self.source.name(int(self.rows[row]))


class RamCache(Subset):
    """Keeps each row that was read, in memory shared between processes.

    Where two processes fill a row at once they write the same bytes; the flag is set last.
    """

    def __init__(
        self, source: Source, rows: Sequence[int] | np.ndarray | None = None, *, shared: bool = True
    ):
        """Reserve room for the rows; memory is taken as they are filled.

        Raises:
            UserError: they do not fit.
        """
        super().__init__(source, rows)
        needed, free = num_bytes(self), free_memory(shared=shared)
        if needed > free:
            raise UserError(
                f"--cache ram needs {needed / 2**30:.1f} GiB and {max(free, 0) / 2**30:.1f} GiB of "
                f"{'shared ' if shared else ''}memory are free: use --cache disk or none"
            )
        assert self.shape is not None
        allocate = shared_zeros if shared else torch.empty
        self.pixels = allocate((len(self), *self.shape), dtype=torch.uint8)
        self.filled = (shared_zeros if shared else torch.zeros)((len(self),), dtype=torch.uint8)

    def __getitem__(self, row: int) -> np.ndarray:
        kept = self.pixels[row].numpy()
        if not self.filled[row]:
            kept[:] = super().__getitem__(row)
            self.filled[row] = 1
        kept.flags.writeable = False
        return kept


def shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of zeros in shared memory, of which the system keeps what is written."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


class DiskCache(Subset):
    """Rows of an array file, memory-mapped anew in each process.

    The array is followed by a CRC-32 of every row (N,) uint32, compared as a row is first read; a
    row that was damaged on disk is decoded again.
    """

    def __init__(
        self,
        source: ImageSource,
        folder: Path | str,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        """Open the cache of ``source`` in ``folder``; build it if there is none that fits.

        Raises:
            UserError: a file is gone, or there is no room.
        """
        super().__init__(source, rows)
        self.path = build(source, folder)
        self._pixels: np.ndarray | None = None
        self._checksums = self._sound = np.empty(0)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}

    def __getitem__(self, row: int) -> np.ndarray:
        if self._pixels is None:
            mapped = map_array(self.path)
            behind = mapped.offset + mapped.nbytes  # type: ignore[attr-defined]
            self._checksums = np.fromfile(self.path, "<u4", len(mapped), offset=behind)
            self._sound = np.zeros(len(mapped), bool)
            self._pixels = mapped
        place = int(self.rows[row])
        pixels = np.asarray(self._pixels[place])
        if not self._sound[place]:
            if crc32(pixels) != self._checksums[place]:
                return super().__getitem__(row)
            self._sound[place] = True
        # black stands for a damaged file too: reading it says which
        return pixels if pixels.any() else super().__getitem__(row)


def open_cache(
    source: ImageSource,
    kind: str,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    folder: Path | str | None = None,
    num_workers: int = 0,
    num_processes: int = 1,
) -> Source:
    """Return ``rows`` of ``source`` behind the cache that was asked for.

    Args:
        source: all rows; one file on disk serves every fold.
        kind: "none", "ram", "disk" or "auto" (ram where it takes at most a quarter of the free
            memory, else none).
        rows: the rows wanted; None = all.
        folder: where ``disk`` keeps its file.
        num_workers: loader processes that will share ``ram``.
        num_processes: training processes on this machine, each with a ``ram`` of its own.

    Raises:
        UserError: the kind asked for does not fit, or the images have no common size.
    """
    view = Subset(source, rows)
    if kind in ("ram", "disk") and source.shape is None:
        raise UserError(f"--cache {kind} needs images of one size: set a size, or --cache none")
    shared = num_workers > 0
    if kind == "auto":
        fits = num_bytes(view) * num_processes <= AUTO_SHARE * free_memory(shared=shared)
        kind = "ram" if source.shape is not None and fits else "none"
    if kind == "ram":
        return RamCache(source, rows, shared=shared)
    if kind == "disk":
        assert folder is not None
        return DiskCache(source, folder, rows)
    return view


def build(source: ImageSource, folder: Path | str) -> Path:
    """Write all rows of ``source`` to ``folder`` unless that was done, and return the file.

    The file is named by the fingerprint of its content (paths, sizes, times, canonical size,
    versions), so that changed images never meet old pixels. One process builds, the others wait;
    a file that is damaged, by its size or by three of its rows, is built again.

    Raises:
        UserError: a file is gone, or there is no room.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{source.fingerprint()[:32]}.npy"
    with hold(path.with_suffix(".lock"), f"cache {path}", wait=True):
        if _is_whole(path, source):
            return path
        sweep(folder, path.name)  # of a build that was killed
        needed, free = num_bytes(source), shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"--cache disk needs {needed / 2**30:.1f} GiB in {folder} and "
                f"{free / 2**30:.1f} GiB are free: use --cache none"
            )
        _write(source, path)
    return path


def _write(source: ImageSource, path: Path) -> None:
    assert source.shape is not None
    shape, num_threads = (len(source), *source.shape), os.cpu_count() or 1
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    chunk = _BUILD_ROWS * num_threads
    starts = tqdm(range(0, len(source), chunk), "cache", unit_scale=chunk, disable=None)
    checksums = []
    with atomic_write(path) as file, ThreadPoolExecutor(num_threads) as threads:
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for start in starts:  # threads suffice: OpenCV decodes outside the interpreter's lock
            rows = range(start, min(start + chunk, len(source)))
            for pixels in threads.map(lambda row: _read_or_black(source, row), rows):
                pixels = np.ascontiguousarray(pixels)
                checksums.append(crc32(pixels))
                file.write(pixels.data)
        file.write(np.array(checksums, "<u4").tobytes())


def _read_or_black(source: ImageSource, row: int) -> np.ndarray:
    """Read a row; black if its file is damaged, for it may be in quarantine."""
    assert source.shape is not None
    try:
        return read(source, row)
    except UserError:
        return np.zeros(source.shape, np.uint8)


def _is_whole(path: Path, source: ImageSource) -> bool:
    assert source.shape is not None
    try:
        pixels = map_array(path)
    except (FileNotFoundError, ValueError, EOFError):
        return False
    if pixels.shape != (len(source), *source.shape) or pixels.dtype != np.uint8:
        return False
    if path.stat().st_size != pixels.offset + pixels.nbytes + 4 * len(pixels):
        return False
    probes = {0, len(source) // 2, len(source) - 1}
    return all(np.array_equal(pixels[row], _read_or_black(source, row)) for row in probes)


def num_bytes(source: Source) -> int:
    """Return what all rows of a source take, bytes; 0 where they have no common shape."""
    return len(source) * math.prod(source.shape) if source.shape else 0


def _own_groups() -> list[Path]:
    """Return the control groups this process is in, of version 2 from its own up, and of 1."""
    root = Path("/sys/fs/cgroup")
    if not root.is_dir():  # no Linux
        return []
    found = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return found
    for line in lines:
        _, kinds, inner = line.split(":", 2)
        if kinds in ("", "memory"):
            own = root / kinds / inner.lstrip("/")
            found += [group for group in (own, *own.parents) if root in group.parents]
    return list(dict.fromkeys(found))


def _room_in(group: Path) -> int | None:
    """Return the bytes that a control group still gives, None where it sets no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            room = int((group / limit).read_text("ascii")) - int((group / used).read_text("ascii"))
            statistics = (group / "memory.stat").read_text("ascii").split()
        except (OSError, ValueError):  # no such limit, or "max"
            continue
        # Cached files count as used, but give way.
        return room + int(statistics[statistics.index("inactive_file") + 1])
    return None


def free_memory(*, shared: bool = False) -> int:
    """Return the bytes this process may still take: of the machine, its container, its shm."""
    import psutil

    free = [psutil.virtual_memory().available]
    free += [room for group in _own_groups() if (room := _room_in(group)) is not None]
    if shared and Path("/dev/shm").is_dir():
        free.append(shutil.disk_usage("/dev/shm").free)
    return min(free)
