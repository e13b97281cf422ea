"""Dataset and data loader whose samples and order are pure functions of (seed, epoch, row).

``dataset[(epoch, row)]`` is a dict of tensors: ``image`` (3, H, W) uint8 RGB, ``index`` the row,
and what is known of it.

No sampler remembers anything but where to begin, so that a run resumes in mid-epoch with exactly
the batches that were left, whatever the number of loader processes.
"""

from __future__ import annotations

import atexit
import functools
import math
import multiprocessing.resource_tracker
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from src.data.canonical import Source, read
from src.data.transforms import Transform
from src.script import MachineError, UserError


class ImageDataset(Dataset):
    """Samples ``image`` and ``index``; where known ``target`` (int64) or ``mask`` (H, W) uint8.

    Files are read first, which threads may do, then transformed.
    """

    def __init__(
        self,
        source: Source,
        targets: Sequence[int] | np.ndarray | None,
        transform: Transform,
        *,
        seed: int = 0,
    ):
        """Join a source with class indices (N,), labels (N, K) of 0 and 1, or None.

        Masks are the fourth channel of a source's pixels.
        """
        self.source, self.transform, self.seed = source, transform, seed
        assert targets is None or len(targets) == len(source)
        self.targets = None if targets is None else np.array(targets, np.int64)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int) -> str:
        """Return the path of a row's image, for messages."""
        return self.source.name(row)

    def read(self, row: int) -> np.ndarray:
        """Return the canonical pixels of a row; safe in several threads at once.

        Raises:
            UserError: a file cannot be decoded; names it.
        """
        return read(self.source, row)

    def sample(self, key: tuple[int, int], pixels: np.ndarray) -> dict[str, Tensor]:
        """Transform (H, W, 3 or 4) pixels that were read into the sample of (epoch, row)."""
        arrays = {"image": np.ascontiguousarray(pixels[..., :3])}
        if pixels.shape[2] == 4:
            arrays["mask"] = np.ascontiguousarray(pixels[..., 3])
        arrays = self.transform((self.seed, *key), **arrays)
        sample = {"image": to_tensor(arrays["image"]), "index": torch.tensor(key[1])}
        if self.targets is not None:
            sample["target"] = torch.tensor(self.targets[key[1]])
        if "mask" in arrays:
            sample["mask"] = torch.from_numpy(np.ascontiguousarray(arrays["mask"]))
        return sample

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return self.sample(key, self.read(key[1]))


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn (H, W, 3) uint8 into a contiguous (3, H, W) uint8 tensor."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # a quarter of the time of a strided copy
    return torch.from_numpy(planes)


PREFETCH = 2  # batches a loader process makes ahead
MOST_WORKERS = 16  # unasked
# Children of a fork server (the default from Python 3.14) outlive a killed training: they watch
# the server, which stays for them.
CONTEXT = "fork" if sys.platform == "linux" else None
_STREAM = 2  # keeps these draws apart from the augmentation's and the mixing's


class EpochSampler:
    """Batches of (epoch, row) keys.

    Of several processes each takes every ``world_size``-th row of every effective batch; unshuffled
    each takes one block of the rows, so that what they computed, joined by rank, is in order.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        fill: bool = False,
    ):
        """Set the order.

        Args:
            num_rows: N, rows of the dataset.
            batch_size: the effective batch, over all processes.
            seed: seed of the order.
            shuffle: a new order every epoch, for training. An incomplete last batch is kept,
                unless it leaves some process fewer than two rows, which BatchNorm cannot take.
                Unshuffled, every row comes, and some processes may end with an empty batch.
            rank: this process.
            world_size: number of processes.
            fill: an incomplete last batch after whole ones takes the epoch's first rows once more.

        Raises:
            UserError: fewer rows than the processes need.
        """
        assert num_rows > 0 and 0 <= rank < world_size
        least = 2 if shuffle and world_size > 1 else 1
        if min(batch_size, num_rows if shuffle else batch_size) < least * world_size:
            raise UserError(
                f"{num_rows} rows in batches of {batch_size} for {world_size} processes: each needs"
                f" {least} at a time; pass a larger --batch_size, or start fewer processes"
            )
        self.num_rows, self.batch_size = num_rows, batch_size
        self.seed, self.shuffle, self.fill = seed, shuffle, fill and num_rows >= batch_size
        self.rank, self.world_size = rank, world_size
        self.epoch = self.step = 0
        whole, rest = divmod(num_rows, batch_size)
        self.num_steps = whole + (rest >= 2 * world_size or whole == 0)
        self.own_size = batch_size // world_size
        if not shuffle:
            self.num_steps = math.ceil(math.ceil(num_rows / world_size) / self.own_size)

    def __len__(self) -> int:
        return self.num_steps

    def start(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration give the batches of ``epoch`` from ``step`` on."""
        self.epoch, self.step = epoch, step

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows in the order of ``epoch``: (N,), or of whole batches."""
        if not self.shuffle:
            return np.arange(self.num_rows)
        rows = np.random.default_rng([_STREAM, self.seed, epoch]).permutation(self.num_rows)
        return np.resize(rows, self.num_steps * self.batch_size) if self.fill else rows

    def rows(self, epoch: int, step: int) -> np.ndarray:
        """Return the rows of an effective batch, those of all processes."""
        return self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order, size = self.epoch, self.order(self.epoch), self.batch_size
        if not self.shuffle:  # a block of rows, in batches of this process's own
            order, size = np.array_split(order, self.world_size)[self.rank], self.own_size
        for step in range(self.step, self.num_steps):
            rows = order[step * size : (step + 1) * size]
            if self.shuffle:
                rows = rows[self.rank :: self.world_size]
            yield [(epoch, row) for row in rows.tolist()]


class Loader(DataLoader):
    """A DataLoader from which a bad file surfaces as one line, also out of another process.

    A loader process that dies is noticed where its batch is waited for and nowhere else: torch's
    handler of SIGCHLD would raise in the middle of a step or of a save.
    """

    batch_sampler: EpochSampler  # type: ignore[assignment]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Iterate from where the sampler starts.

        Raises:
            UserError: a file cannot be decoded.
            MachineError: a loader process was killed, or shared memory is full.
        """
        keys = list(self.batch_sampler)  # a second reading, to know which rows a batch was to hold
        try:
            batches = super().__iter__()
        except RuntimeError as error:
            raise MachineError(self._explain(error, keys[0] if keys else [])) from error
        try:
            yield from self._follow(batches, keys)
        except Exception:
            # left to the garbage collector, torch would wait 5 s for each process, and leave it
            processes: Any = self._iterator
            self._iterator = None
            if processes is not None:
                processes._shutdown_workers()
            raise

    def _follow(
        self, batches: Iterator[Any], keys: list[list[tuple[int, int]]]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the batches, which are to hold the rows of ``keys``, and raise what they are."""
        for expected in keys:
            try:
                batch = next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                lost = isinstance(error, (EOFError, ConnectionError))  # its pipe ended with it
                if not self.num_workers or not (lost or any(word in str(error) for word in DIED)):
                    raise
                raise MachineError(self._explain(error, expected)) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _get_iterator(self) -> Any:
        with _signals_blocked():
            return super()._get_iterator()

    def _explain(self, error: Exception, keys: list[tuple[int, int]]) -> str:
        """Return one line about a loader process that died, and what to do."""
        name = self.dataset.data.name  # type: ignore[attr-defined]
        where = f" while reading {name(keys[0][1])} or a file after it" if keys else ""
        workers = getattr(self._iterator, "_workers", [])
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        full = any(word in str(error) for word in SHARED_MEMORY)
        if full or (codes and codes[0] == -getattr(signal, "SIGBUS", 0)):
            reason = "shared memory (/dev/shm) is full: give it more (docker run --shm-size=8g), or"
        elif codes and codes[0] < 0 and codes[0] != -9:
            reason = f"killed by {signal.Signals(-codes[0]).name}; if that repeats,"
        elif any(word in str(error) for word in OPEN_FILES):
            reason = "too many open files: raise the limit (ulimit -n), or"
        else:
            reason = "mostly too little memory: free some, or"
        return f"a loader process died{where}: {reason} try a smaller --num_workers, or 0"


SHARED_MEMORY = ("shared memory", "No space left", "unable to mmap", "to resize")
OPEN_FILES = ("open files", "ancdata")
DIED = (
    *("exited unexpectedly", "llocate memory", "out of memory", *SHARED_MEMORY, *OPEN_FILES),
    "shared file",  # what Windows cannot open or map without memory to back it
)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start loader processes that no signal to the whole group ends, nor their end interrupts.

    What the main process asks to stop at, it must first finish a step for, with their batches.
    Signals that come meanwhile are delivered afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows; _start_worker does what can be done
        yield
        return
    if CONTEXT != "fork":  # spawning's own helper unblocks signals when it starts
        multiprocessing.resource_tracker.ensure_running()
    handler = signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _kill_workers_at_exit() -> None:
    """Leave no loader process to the interpreter's own end, which asks by SIGTERM and waits."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(kill)


class _BatchReader(Dataset):
    """Fetches whole batches; errors are returned: raised in a process, they would fill a page.

    Without processes, threads read a batch's files side by side: OpenCV decodes outside the
    interpreter's lock. The transforms follow one by one, since they hold state.
    """

    def __init__(self, data: ImageDataset, num_threads: int):
        self.data = data
        self.threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Tensor]] | Exception:
        try:
            if self.threads is None:
                return [self.data[key] for key in keys]
            read = self.threads.map(lambda key: self.data.read(key[1]), keys)
            return [self.data.sample(key, pixels) for key, pixels in zip(keys, read, strict=True)]
        except (UserError, MachineError) as error:
            return error


def collate(samples: list[dict[str, Tensor]] | Exception) -> dict[str, Tensor] | Exception:
    """Stack samples; in a loader process straight into shared memory.

    Raises:
        UserError: images of several sizes.
    """
    if isinstance(samples, Exception) or not samples:  # the last rows went to other processes
        return samples or {}  # type: ignore[return-value]
    sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(sizes) > 1:
        return UserError(
            f"images of several sizes {sorted(sizes)[:3]} in one batch: "
            "resize or crop them to one, or use a batch of 1"
        )
    return default_collate(samples)


def make_loader(
    dataset: ImageDataset, sampler: EpochSampler, *, num_workers: int = 0, device_type: str = "cpu"
) -> Loader:
    """Build the loader of whole effective batches; ``iter`` it once an epoch.

    Loader processes stay alive between epochs: at most two a core, and no more than shared memory
    has room for. Without any, files are read by threads while the training waits. Memory is pinned
    for ``device_type`` "cuda" alone.
    """
    cv2.setNumThreads(1)
    num_workers = fit_workers(cap_workers(num_workers), dataset, sampler) if num_workers else 0
    if num_workers:
        _kill_workers_at_exit()
    return Loader(
        _BatchReader(dataset, num_threads=0 if num_workers else min(8, available_cores())),
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device_type == "cuda",
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH if num_workers else None,
        worker_init_fn=_start_worker,
        multiprocessing_context=CONTEXT if num_workers else None,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)  # a forked process keeps the setting, a spawned one does not
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when all stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def fit_workers(num_workers: int, dataset: ImageDataset, sampler: EpochSampler) -> int:
    """Return at most ``num_workers``: no more than are of use, or than shared memory has room for.

    A container's shared memory is often 64 MB; a loader process that fills it dies of a bus error.
    """
    keys = next(iter(sampler), [])
    if not keys:
        return 0
    try:
        batch_bytes = len(keys) * sum(value.nbytes for value in dataset[keys[0]].values())
    except UserError:  # a damaged file is reported in its turn
        return num_workers
    if Path("/dev/shm").is_dir():
        room = shutil.disk_usage("/dev/shm").free // local_processes() // batch_bytes
        most = max(0, room - 2) // PREFETCH  # one batch is in use, and one on its way
        if num_workers > most:
            text = f"{most} loader processes instead of {num_workers}: /dev/shm has room for {room}"
            print(f"note: {text} batches of {batch_bytes >> 10} KB", flush=True)
            num_workers = most
    return min(num_workers, len(sampler))


def default_num_workers(device_type: str) -> int:
    """Choose the number of loader processes for a device.

    Accelerators get their share of the cores, one of which is the training's own, up to 16. On MPS,
    macOS and Windows processes are spawned: they cost seconds and gain less. On the CPU itself they
    would compete with the training for its cores.
    """
    if device_type in ("cpu", "mps") or sys.platform in ("darwin", "win32"):
        return 0
    return max(0, min(MOST_WORKERS, available_cores() // local_processes() - 1))


def local_processes() -> int:
    """Return how many training processes a launcher started on this machine."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(here)) if here.isdigit() else 1


@functools.cache  # training, validation and inference say it once
def cap_workers(num_workers: int) -> int:
    """Return ``num_workers``, or twice the cores if that is less, and say so."""
    most = 2 * available_cores()
    if num_workers > most:
        print(f"note: --num_workers {num_workers}: {most} are started, two for each core")
    return min(num_workers, most)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
