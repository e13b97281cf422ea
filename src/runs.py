"""Where every file under ``output/`` lies, and how any file is written: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

HALF_WRITTEN = ".tmp"  # ends the name of a file that is not whole yet


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that names the remedy."""


@contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file whose content appears at ``path`` at once and whole, or not at all.

    The bytes go to a temporary name in the same folder, are flushed and fsynced, and are then
    renamed over ``path``; the folder entry is fsynced too. On an exception the temporary file is
    removed and whatever stood at ``path`` stays.

    Raises:
        OSError: no room, no permission; it names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` and rename it over ``path`` when all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{HALF_WRITTEN}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def sweep(folder: Path, *names: str) -> None:
    """Delete what killed processes left half-written in ``folder``; its lock must be held.

    Args:
        folder: where to look.
        names: files meant; none = all.
    """
    for name in names or ("*",):
        for left in folder.glob(f".{name}.*{HALF_WRITTEN}"):
            left.unlink(missing_ok=True)


@contextmanager
def atomic_array(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[Any]:
    """Yield a writable memory map that becomes the ``.npy`` file ``path`` when it is whole.

    Raises:
        OSError: the disk has no room for it (said before the first byte is written).
    """
    import numpy as np

    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        with temporary.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # writing to a map of a full disk kills the process
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            yield array
            array.flush()
            os.fsync(file.fileno())


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
    def oof_counts(self) -> Path:
        """Pixel counts of every held-out image (masks only)."""
        return self.folder / "oof_counts.npz"

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

        What a killed process left half-written in the folder is deleted first.

        Raises:
            UserError: another process holds the run; the message says which.
        """
        if os.environ.get("RANK", "0") != "0":  # the launcher's first process holds it for all
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder / ".lock", f"{self.folder}"):
            sweep(self.folder)
            yield


@contextmanager
def hold(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock file at ``path``; ``what`` names the held thing in the refusal.

    The lock is the kernel's, so it dies with its process and is never stale. It is of the POSIX
    kind, which loader processes do not inherit: orphans of a killed run hold nothing.

    Raises:
        UserError: another process holds it, and ``wait`` is off.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks: runs are unguarded there
        yield
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                print(f"warning: {path.parent} cannot be locked ({error.strerror})", flush=True)
            else:
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
    def prediction(self) -> Path:
        """The score that the submission is expected to get."""
        return self.root / "prediction.json"

    @property
    def cache(self) -> Path:
        """Decoded pixels."""
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        """What scripts/overnight.sh printed."""
        return self.root / "logs"

    def scenes(self, name: str) -> Path:
        """Images that were generated, where no data were given."""
        return self.root / "data" / safe_name(name)

    def track(self, name: str) -> Output:
        """Return the folder of one of the mask tracks: ``lane``, ``distill``, ``micro``."""
        return Output(self.root / safe_name(name))

    def masks(self, name: str) -> Path:
        """Predicted masks."""
        return self.root / "masks" / safe_name(name)

    def trials(self, name: str) -> Path:
        """Journal of a search for knobs of the run ``name``."""
        return self.root / safe_name(name) / "trials.journal"

    def run(self, model: str, fold: int | str) -> Run:
        """Return the folder of ``model`` × ``fold`` (a timm id's odd characters become ``_``)."""
        return Run(self.root / safe_name(model) / f"fold{fold}")


def safe_name(text: str) -> str:
    """Return ``text`` as a folder name that cannot leave its parent."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this program wrote.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is no whole JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged; delete it and run the command that wrote it again")
    return content


def run_script(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a script's ``main(argv)`` and exit: 2 on a user's mistake, 1 on a disk's or memory's.

    Either is one line on stderr. Any other exception is a fault of the program and is shown whole.
    """
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `| head` has seen enough; let the interpreter's own flush succeed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except MemoryError as error:
        print(f"error: out of memory ({one_line(error)[:150] or 'host'})", file=sys.stderr)
        status = 1
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename or "input or output"
        print(f"error: {place}: {error.strerror}; earlier results are whole", file=sys.stderr)
        status = 1
    sys.exit(status or 0)


def one_line(error: BaseException) -> str:
    """Return what ``error`` says without line ends or other control characters.

    File names may hold either.
    """
    return "".join(c if c.isprintable() else " " for c in str(error))
