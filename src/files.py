"""Atomic file writes, checksums, patient reads and advisory locks.

A *sealed* file holds, in its first or last megabyte, ``crc32:`` and eight hex digits: the CRC-32
of its bytes with these digits as zeros. It finds bit rot, not forgery. A file without one is taken
as it is: it was written by hand, or by an earlier version.
"""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import platform
import re
import stat
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict, TypeVar

from src.script import UserError, brief

if TYPE_CHECKING:
    import numpy as np

Json = dict[str, Any]  # an object of a JSON or YAML file
HALF_WRITTEN = ".tmp"  # ends the name of a file that is not whole yet
SEAL = "crc32:00000000"
_SEALED = re.compile(rb"crc32:([0-9a-f]{8})")
_END = 1 << 20  # bytes at either end in which a seal is looked for
# What a network disk or a busy machine gives for a moment; nothing here says a file is damaged.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EMFILE}
# There is no such file, or another kind of thing under its name.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_ABSENT |= {errno.ENXIO, errno.ESPIPE}  # a pipe
MAX_JSON_BYTES = 1 << 28
MAX_ARRAYS_BYTES = 1 << 34
# What the readers of zip and npy raise on damaged bytes: a flipped bit can say "encrypted", and
# numpy parses a header as Python.
NOT_WHOLE = (
    *(ValueError, KeyError, EOFError, IndexError, OverflowError, SyntaxError, TypeError),
    *(RuntimeError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)
_PAUSES = (0.1, 0.5)  # seconds before a second and a third try
Result = TypeVar("Result")


def patiently(call: Callable[[], Result]) -> Result:
    """Return ``call()``, tried again a little later where the system's error may pass.

    Raises:
        OSError: it did not pass.
    """
    for pause in _PAUSES:
        try:
            return call()
        except OSError as error:
            in_use = os.name == "nt" and error.errno == errno.EACCES  # a reader, or a virus scanner
            if error.errno not in _PASSING and not in_use:
                raise
            time.sleep(pause)
    return call()


def is_of_the_system(error: BaseException) -> bool:
    """Tell whether an error is about the machine that reads a file, not what the file holds.

    Nobody knows then what the file holds, and it must not be called missing or damaged.
    """
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _ABSENT
    return isinstance(error, MemoryError)


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Let an error of the system say ``path`` where it names no file: those of reading do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def readable(what: object, remedy: str = "restore it") -> Iterator[None]:
    """Refuse in one line a file or folder that cannot be read, unless the machine is at fault."""
    try:
        yield
    except OSError as error:
        if is_of_the_system(error):
            raise
        raise UserError(f"{what} cannot be read ({error.strerror}): {remedy}") from error


def refuse_folder(path: Path | str) -> None:
    """Raise a UserError where a folder, pipe or device stands at ``path``: never waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (this runs once per image)
        raise UserError(f"{path} is not a file: remove it, or rename it if it is a folder")


def read_head(path: Path, size: int) -> bytes:
    """Read the first ``size`` bytes of a user's file.

    Raises:
        UserError: missing (a broken link), or no regular file.
    """
    with readable(path, "restore or remove it"):
        refuse_folder(path)
        with path.open("rb") as file:
            return file.read(size)


def seal(content: bytes) -> bytes:
    """Return ``content`` with the CRC-32 put in place of the zeros of its ``SEAL``."""
    place = content.index(SEAL.encode()) + 6
    return content[:place] + f"{zlib.crc32(content):08x}".encode() + content[place + 8 :]


def is_sound(content: bytes | memoryview) -> bool:
    """Tell whether a sealed file's bytes are those that were written; True without a seal."""
    found = _SEALED.search(content, 0, _END) or _SEALED.search(content, max(0, len(content) - _END))
    if found is None:
        return True
    place = found.start(1)
    view = memoryview(content)
    with view[:place] as before, view[place + 8 :] as after:
        check = zlib.crc32(after, zlib.crc32(b"0" * 8, zlib.crc32(before)))
    return check == int(found[1], 16)


def read_small(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most ``max_bytes``; a pipe or device is never waited for.

    Raises:
        ValueError: it is no regular file, or longer.
        OSError: it cannot be read.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("no regular file")
    with naming(path), os.fdopen(descriptor, "rb", buffering=0) as file:
        content = b""
        while block := file.read(max_bytes + 1 - len(content)):
            content += block
        if len(content) <= max_bytes:
            return content
    raise ValueError(f"longer than {max_bytes:,} bytes")


def regular(path: Path) -> Path:
    """Return ``path``; ValueError where a pipe, device or folder stands there: never waited for."""
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    return path


def open_plain(path: Path, flags: int) -> int:
    """Open a file of our own for writing, links not followed; return its descriptor.

    Raises:
        UserError: ``path`` is a link, folder, pipe or device.
        OSError: it cannot be opened.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # link, pipe, folder
            raise
    raise UserError(f"{path}: no regular file, and so not written to; move it away")


class FileMark(TypedDict):
    """Length and CRC-32 of a file."""

    bytes: int
    crc32: str


def describe_file(path: Path) -> FileMark:
    """Return a file's length in bytes, and the CRC-32 of all of them."""
    check, length, block = 0, 0, memoryview(bytearray(1 << 20))  # one that the CPU's cache keeps
    with naming(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            check, length = zlib.crc32(block[:count], check), length + count
    return {"bytes": length, "crc32": f"{check:08x}"}


def read_arrays(path: Path, names: Sequence[str], remedy: str) -> dict[str, np.ndarray]:
    """Read arrays of an ``.npz`` that this program wrote, every byte checked, nothing unpickled.

    ``names`` are arrays that it must hold; ``remedy`` says how to get it again.

    Raises:
        UserError: missing, or its content is not what was written.
        OSError: it cannot be read at present.
    """
    import numpy as np

    try:
        content = io.BytesIO(patiently(lambda: read_small(path, MAX_ARRAYS_BYTES)))
        with zipfile.ZipFile(content) as archive:
            if archive.testzip() is not None:
                raise ValueError("its checksum does not match")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {remedy}") from None
    except NOT_WHOLE as error:
        raise UserError(f"{path}: damaged ({brief(error)}); {remedy}") from None


def map_array(path: Path | str) -> np.memmap:
    """Map an ``.npy`` file without reading it, nothing unpickled.

    Raises:
        ValueError: the file is no whole array, or no regular file.
        OSError: it is missing, or cannot be read at present.
    """
    import numpy as np

    try:
        found = patiently(lambda: np.load(regular(Path(path)), mmap_mode="r", allow_pickle=False))
    except NOT_WHOLE as error:
        raise ValueError(brief(error)) from None
    if not isinstance(found, np.memmap):
        raise ValueError("an archive, not an array")
    return found


@contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file whose content appears at ``path`` at once and whole, or not at all.

    On an exception whatever stood at ``path`` stays.

    Raises:
        OSError: no room, no permission; it names ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; fsync it and rename it over ``path`` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{HALF_WRITTEN}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        patiently(lambda: temporary.replace(path))
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    with suppress(OSError):  # the rename lasts; Windows and some network disks cannot say so
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path, *names: str) -> None:
    """Delete what killed processes left half-written of ``names`` (none = all), under the lock."""
    for name in map(glob.escape, names) if names else "*":
        for end in (HALF_WRITTEN, f"{HALF_WRITTEN}.*.onnx"):  # graphs beside one that is exported
            for left in folder.glob(f".{name}.*{end}"):
                left.unlink(missing_ok=True)


def crc32(array: np.ndarray, before: int = 0) -> int:
    """Return the CRC-32 of a contiguous array's bytes behind those of ``before``."""
    return zlib.crc32(array.data.cast("B"), before)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path | str, content: Mapping[str, object]) -> None:
    """Write ``content`` as indented UTF-8 JSON, sealed, atomically."""
    text = json.dumps({**content, "checksum": SEAL}, ensure_ascii=False, indent=2) + "\n"
    with atomic_write(path) as file:
        file.write(seal(text.encode("utf-8")))


def read_json(path: Path, remedy: str = "") -> Json:
    """Read a JSON object that this program wrote, without its seal.

    ``remedy`` says what to do where it is damaged; empty = delete it and run its command again.

    Raises:
        FileNotFoundError: there is none.
        UserError: its content was read and is not what was written.
        OSError: it cannot be read at present.
    """
    remedy = remedy or "delete it and run the command that wrote it again"
    try:
        data = patiently(lambda: read_small(path, MAX_JSON_BYTES))
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged; {remedy}")
    if not is_sound(data):
        raise UserError(
            f"{path}: its checksum does not match; {remedy} (or, if you edited it on purpose, take "
            'its "checksum" out)'
        )
    content.pop("checksum", None)
    return content


Kinds = Mapping[str, type | tuple[type, ...]]


def refuse_shape(path: Path, content: Json, kinds: Kinds, remedy: str) -> None:
    """Raise unless ``content``, read from ``path``, has every key of ``kinds`` with its type.

    Raises:
        UserError: a key is missing, or its value is of another type; ends with ``remedy``.
    """
    for key, kind in kinds.items():
        value = content.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise UserError(f"{path}: damaged ({key} is not what it should be); {remedy}")


_HELD: dict[Path, IO[str]] = {}  # this process's locks


@contextmanager
def hold(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock file at ``path``; ``what`` names the held thing in the refusal.

    The lock is the kernel's, so it dies with its process and is never stale. POSIX locks of this
    kind and those of Windows are not inherited by loader processes: orphans of a killed run hold
    nothing.

    Raises:
        UserError: another process holds it, and ``wait`` is off.
    """
    file = _HELD[path] = _take(path, what, wait)
    try:
        yield
    finally:
        _HELD.pop(path, file).close()


def check_held(path: Path) -> None:
    """Take a lock again that was deleted while this process held it.

    Raises:
        UserError: another process has it by now.
    """
    if path in _HELD and not _is_at(path, _HELD[path]):
        again = _take(path, f"{path.parent} (whose lock file was deleted meanwhile)", wait=False)
        _HELD[path].close()
        _HELD[path] = again


def _take(path: Path, what: str, wait: bool) -> IO[str]:
    """Return the lock file at ``path``, open and locked."""
    while True:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        file = os.fdopen(open_plain(path, flags), "a+", encoding="utf-8")
        try:
            _lock(file.fileno(), wait)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                file.close()
                raise UserError(f"{what} is in use by {holder}; wait for it or stop it") from None
            print(f"warning: {path.parent} cannot be locked ({error.strerror})", flush=True)
        if _is_at(path, file):
            with ExitStack() as failed, naming(path):
                failed.callback(file.close)
                file.truncate(0)
                name = f"process {os.getpid()} on {platform.node()}"
                os.write(file.fileno(), name.encode())  # no buffer that a full disk fails twice
                failed.pop_all()
            return file
        file.close()  # deleted while this process waited


_LOCKED_BYTE = 1 << 30  # on Windows: what is locked cannot be read, and the holder's name must be


def _lock(descriptor: int, wait: bool) -> None:
    """Lock an open file against other processes; errno EACCES or EAGAIN: one of them has it."""
    try:
        import fcntl
    except ImportError:
        while not _lock_on_windows(descriptor):
            if not wait:
                raise PermissionError(errno.EACCES, "locked") from None
            time.sleep(0.2)
        return
    fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _lock_on_windows(descriptor: int) -> bool:
    """Lock one byte far behind the end of the file; tell whether no other process has it."""
    import msvcrt

    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError:
        return False
    return True


def _is_at(path: Path, file: IO[str]) -> bool:
    """Tell whether an open file is still the one that ``path`` names."""
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file.fileno()))
