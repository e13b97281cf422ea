"""Decoded-image cache: every file decoded once, to uint8 pixels of one size, in memory or on disk.

``source[row]`` is a uint8 array that depends on the files alone, what augmentation starts from;
``source.shape`` is its shape where all rows share one (only then can it be kept), else None.
A cache changes speed alone: its pixels are bit-identical to those of the source. ``ram`` fills as
rows are first read and is shared with the loader's processes; ``disk`` is a plain ``.npy`` built
once, before the first read, and memory-mapped by any number of processes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from src.data.decode import MAX_PIXELS, decode_image, decode_mask
from src.data.sources.masks import refuse_size
from src.files import atomic_write, hold, sweep
from src.script import UserError

CANONICAL_VERSION = 1  # raise it when the pixels below change: caches on disk are then rebuilt


class Source(Protocol):
    """Canonical pixels by row."""

    shape: tuple[int, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray: ...

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        ...


class FileSource(Source, Protocol):
    """A source that reads files itself."""

    def fingerprint(self) -> str:
        """Hash all that the pixels depend on."""
        ...


class ImageSource:
    """Images squashed to a fixed square: ``source[row]`` is (side, side, 3) uint8 RGB."""

    def __init__(
        self, root: Path | str, images: Iterable[str], side: int, *, max_pixels: int = MAX_PIXELS
    ):
        """Keep ``images`` (paths relative to ``root``) in one flat array.

        A list of strings would be copied, page by page, into every forked loader process.
        """
        self.root = str(root)
        self.images = pack(images)
        self.side = side
        self.max_pixels = max_pixels
        self.shape: tuple[int, ...] | None = (side, side, 3)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """Return the path of a row's file, for messages."""
        return os.path.join(self.root, os.fsdecode(self.images[row]))  # noqa: PTH118

    def __getitem__(self, row: int) -> np.ndarray:
        image = decode_image(self.name(row), short_side=self.side, max_pixels=self.max_pixels)
        return resize_image(image, (self.side, self.side))

    def fingerprint(self) -> str:
        """Hash what the pixels depend on: files (name, size, time), side and version."""
        names = (self.name(row) for row in range(len(self)))
        return fingerprint(names, f"image {self.shape}")


class MaskSource:
    """Images with their masks: ``source[row]`` is (H, W, 4) uint8, RGB and the class index.

    Without masks (test images) it is (H, W, 3).
    """

    def __init__(
        self,
        root: Path | str,
        images: Iterable[str],
        masks: Iterable[str] | None,
        *,
        size: tuple[int, int] | None = None,
        read_mask: Callable[[str], np.ndarray] = decode_mask,
        max_pixels: int = MAX_PIXELS,
    ):
        """Take paths relative to ``root``.

        Args:
            root: the data folder.
            images: one path a row.
            masks: one path a row, or None where there are none.
            size: resize all to this (height, width); None keeps each at its native size.
            read_mask: path → (H, W) class indices 0..255; must be picklable.
            max_pixels: refuse larger images.
        """
        self.root = str(root)
        self.images = pack(images)
        self.masks = None if masks is None else pack(masks)
        self.size = size
        self.read_mask = read_mask
        self.max_pixels = max_pixels
        channels = 3 if masks is None else 4
        self.shape: tuple[int, ...] | None = (*size, channels) if size else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        return os.path.join(self.root, os.fsdecode(self.images[row]))  # noqa: PTH118

    def mask_name(self, row: int) -> str:
        """Return the path of a row's mask."""
        assert self.masks is not None
        return os.path.join(self.root, os.fsdecode(self.masks[row]))  # noqa: PTH118

    def __getitem__(self, row: int) -> np.ndarray:
        short_side = max(self.size) if self.size and self.masks is None else None
        image = decode_image(self.name(row), short_side=short_side, max_pixels=self.max_pixels)
        pixels = image if self.size is None else resize_image(image, self.size)
        if self.masks is None:
            return pixels
        mask = self._read_mask(row, image.shape[:2])
        if mask.shape != pixels.shape[:2]:
            mask = cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return np.dstack([pixels, mask])

    def _read_mask(self, row: int, size: tuple[int, ...]) -> np.ndarray:
        mask = self.read_mask(self.mask_name(row))
        if mask.shape != size:
            refuse_size(mask.shape, size, self.mask_name(row), self.name(row))
        if mask.dtype != np.uint8 and (mask.min() < 0 or mask.max() > 255):
            raise UserError(f"mask {self.mask_name(row)} has labels outside 0..255: renumber them")
        return mask.astype(np.uint8, copy=False)

    def fingerprint(self) -> str:
        """Hash what the pixels depend on: files (name, size, time), size, reader, version."""
        rows = range(len(self))
        names = [self.name(row) for row in rows]
        if self.masks is not None:
            names += [self.mask_name(row) for row in rows]
        return fingerprint(names, f"mask {self.shape} {_describe(self.read_mask)}")


def canonical_side(image_size: int) -> int:
    """Return the side training images are decoded to: 1.15 × the network's, a multiple of 8."""
    return max(8, round(1.15 * image_size / 8) * 8)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Squash (H, W, 3) uint8 to (height, width), bilinear with antialiasing, as Pillow does.

    torch's vectorised kernel takes a quarter of the time of OpenCV's INTER_AREA, which would cost
    as much as decoding; OpenCV's bilinear does not antialias.
    """
    if image.shape[:2] == tuple(size):
        return image
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # channels last: no copy, no unpack
    resized = F.interpolate(batch, size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].contiguous().numpy()


def read(source: Source, row: int) -> np.ndarray:
    """Read one row; whatever goes wrong, the message names the file."""
    try:
        return source[row]
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeError(f"{source.name(row)}: {error}") from error


def pack(names: Iterable[str]) -> np.ndarray:
    """Put strings into one flat array of UTF-8 bytes."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def fingerprint(names: Iterable[str], salt: str) -> str:
    """Hash paths, sizes and modification times, so that a changed file is noticed.

    A file may be gone, for it may be quarantined; whoever reads it says so.
    """
    digest = hashlib.sha256(f"{CANONICAL_VERSION} {cv2.__version__} {salt}".encode())
    for name in names:  # annotation.json#17 is a part of annotation.json
        try:
            path = name if os.path.exists(name) else name.rpartition("#")[0]  # noqa: PTH110
            status = os.stat(path)  # noqa: PTH116
            mark = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            mark = "gone"
        digest.update(f"{name}\0{mark}\0".encode(errors="replace"))
    return digest.hexdigest()


def _describe(function: Callable) -> str:
    if isinstance(function, partial):
        return f"{_describe(function.func)}{function.args}{sorted(function.keywords.items())}"
    described = getattr(function, "describe", None)
    return described() if described else f"{function.__module__}.{function.__qualname__}"


AUTO_SHARE = 0.25  # of the free memory may be taken unasked
_BUILD_ROWS = 64  # rows a build holds in memory, per thread


class Rows:
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


class RamCache(Rows):
    """Keeps each row that was read, in memory shared between processes.

    Where two processes fill a row at once they write the same bytes; the flag is set last.
    """

    def __init__(
        self,
        source: Source,
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        shared: bool = True,
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


class DiskCache(Rows):
    """Rows of an array file, memory-mapped anew in each process."""

    def __init__(
        self, source: FileSource, folder: Path | str, rows: Sequence[int] | np.ndarray | None = None
    ):
        """Open the cache of ``source`` in ``folder``; build it if there is none that fits.

        Raises:
            UserError: a file is gone, or there is no room.
        """
        super().__init__(source, rows)
        self.path = build(source, folder)
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}

    def __getitem__(self, row: int) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        pixels = np.asarray(self._pixels[int(self.rows[row])])
        # black stands for a damaged file too: reading it says which
        return pixels if pixels.any() else super().__getitem__(row)


def open_cache(
    source: FileSource,
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
    if kind not in ("none", "ram", "disk", "auto"):
        raise UserError(f"--cache {kind} is unknown: use auto, ram, disk or none")
    view = Rows(source, rows)
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


def build(source: FileSource, folder: Path | str) -> Path:
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


def _write(source: FileSource, path: Path) -> None:
    assert source.shape is not None
    shape, num_threads = (len(source), *source.shape), os.cpu_count() or 1
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    chunk = _BUILD_ROWS * num_threads
    starts = tqdm(range(0, len(source), chunk), "cache", unit_scale=chunk, disable=None)
    with atomic_write(path) as file, ThreadPoolExecutor(num_threads) as threads:
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for start in starts:  # threads suffice: OpenCV decodes outside the interpreter's lock
            rows = range(start, min(start + chunk, len(source)))
            for pixels in threads.map(lambda row: _read_or_black(source, row), rows):
                file.write(np.ascontiguousarray(pixels).data)


def _read_or_black(source: FileSource, row: int) -> np.ndarray:
    """Read a row; black if its file is damaged, for it may be in quarantine."""
    assert source.shape is not None
    try:
        return read(source, row)
    except UserError:
        return np.zeros(source.shape, np.uint8)


def _is_whole(path: Path, source: FileSource) -> bool:
    assert source.shape is not None
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    if pixels.shape != (len(source), *source.shape) or pixels.dtype != np.uint8:
        return False
    if path.stat().st_size != pixels.offset + pixels.nbytes:
        return False
    probes = {0, len(source) // 2, len(source) - 1}
    return all(np.array_equal(pixels[row], _read_or_black(source, row)) for row in probes)


def num_bytes(source: Source) -> int:
    """Return what all rows of a source take, bytes; 0 where they have no common shape."""
    return len(source) * math.prod(source.shape) if source.shape else 0


def free_memory(*, shared: bool = False) -> int:
    """Return the bytes this process may still take: of the machine, its container, its shm."""
    import psutil

    free = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            room = int((group / limit).read_text()) - int((group / used).read_text())
            statistics = ((group / limit).parent / "memory.stat").read_text().split()
        except (OSError, ValueError):  # no such limit, or "max"
            continue
        # Cached files count as used, but give way.
        free.append(room + int(statistics[statistics.index("inactive_file") + 1]))
    if shared and Path("/dev/shm").is_dir():
        free.append(shutil.disk_usage("/dev/shm").free)
    return min(free)
