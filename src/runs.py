"""Where every file under ``output/`` lies, and how any file is written: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that names the remedy."""


@contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file whose content appears at ``path`` at once and whole, or not at all.

    The bytes go to a temporary name in the same folder, are flushed and fsynced, and are then
    renamed over ``path``; the folder entry is fsynced too. On an exception the temporary file is
    removed and whatever stood at ``path`` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_array(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[Any]:
    """Yield a writable memory map that becomes the ``.npy`` file ``path`` when it is whole.

    Raises:
        OSError: the disk has no room for it (said before the first byte is written).
    """
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with temporary.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # writing to a map of a full disk kills the process
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            yield array
            array.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (where the platform lets a folder be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path | str, content: Any) -> None:
    """Write ``content`` as indented UTF-8 JSON, atomically."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


@dataclass(frozen=True)
class Run:
    """One training run's folder, ``output/<model>/fold<k>``, and the files in it."""

    folder: Path

    @property
    def config(self) -> Path:
        """The resolved config, versions and device; inference reads only this."""
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row a validated epoch."""
        return self.folder / "metrics.csv"

    @property
    def last(self) -> Path:
        """The whole training state, to go on from."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The state before ``last``, kept until the next one is whole."""
        return self.folder / "last.previous.pt"

    @property
    def best(self) -> Path:
        """Weights of the best validation."""
        return self.folder / "best.safetensors"

    @property
    def oof(self) -> Path:
        """Logits of the held-out rows, every view."""
        return self.folder / "oof.npz"

    @property
    def test_logits(self) -> Path:
        """Logits of the test rows, (V, N, K) float16."""
        return self.folder / "test_logits.npy"

    @property
    def test_info(self) -> Path:
        """What ``test_logits`` holds; it exists only when they are whole."""
        return self.folder / "test.json"

    @property
    def tuned(self) -> Path:
        """Layout and precision chosen by measurement."""
        return self.folder / "runtime.json"

    @property
    def finished(self) -> Path:
        """Exists when the run is complete; holds its scores."""
        return self.folder / "finished.json"

    @property
    def nonfinite(self) -> Path:
        """Steps whose loss was not finite, with the ids of their rows."""
        return self.folder / "nonfinite.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.folder / "tensorboard"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every other process off this run while the block lasts.

        The lock is the kernel's, so it dies with its process and is never stale.

        Raises:
            UserError: another process holds the run; the message says which.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder / ".lock", f"{self.folder}"):
            yield


@contextmanager
def hold(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock file at ``path``; ``what`` names the held thing in the refusal."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock: runs are unguarded there
        yield
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{what} is in use by {holder}; wait for it or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@dataclass(frozen=True)
class Output:
    """The output folder of one data set."""

    root: Path

    @property
    def folds(self) -> Path:
        """Who is in which fold, with the hash of the data it was made for."""
        return self.root / "folds.csv"

    @property
    def folds_lock(self) -> Path:
        """Held while ``folds.csv`` is made, so that two runs started together make it once."""
        return self.root / ".folds.lock"

    @property
    def quarantine(self) -> Path:
        """Train images that cannot be read."""
        return self.root / "quarantine.csv"

    @property
    def duplicates(self) -> Path:
        """Exact and near duplicates found by the audit."""
        return self.root / "duplicates.csv"

    @property
    def weights(self) -> Path:
        """The blend."""
        return self.root / "weights.json"

    @property
    def study(self) -> Path:
        """Optuna's journal of the blend search."""
        return self.root / "blend_study.journal"

    @property
    def submission(self) -> Path:
        """The answer."""
        return self.root / "submission.csv"

    @property
    def cache(self) -> Path:
        """Decoded pixels."""
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        """What scripts/overnight.sh printed."""
        return self.root / "logs"

    def run(self, model: str, fold: int | str) -> Run:
        """Return the folder of ``model`` × ``fold`` (a timm id's odd characters become ``_``)."""
        return Run(self.root / safe_name(model) / f"fold{fold}")


def safe_name(text: str) -> str:
    """Return ``text`` as a folder name that cannot leave its parent."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"


def run_script(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a script's ``main(argv)`` and exit; a user's mistake is one line and status 2."""
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        status = 141
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.exit(status or 0)


DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO}
)
