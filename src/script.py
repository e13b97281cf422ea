"""Entry point of every script: streams, exit status, one line on a user's mistake; text tables."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import math
import os
import re
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

# Operators that MPS lacks then run on the CPU. torch reads it at its import, and not again.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that names the remedy."""


# In the environment: the process with whose end a script ends, too.
PARENT = "ENDS_WITH_PROCESS"

# What allocators and the system say where a plain RuntimeError is raised.
SHORT_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "bad_alloc",
    "could not create a primitive",  # oneDNN: its scratch memory
    "can't start new thread",  # a thread's stack
    "cublas_status_alloc_failed",
    # cuDNN's, when no algorithm's workspace fits
    "cudnn_status_alloc_failed",
    "unable to find an engine to execute this computation",
    "unable to find a valid cudnn algorithm",
    "invalid buffer size",  # MPS
    "unable to allocate shared memory",
    "unable to mmap",
    # Windows, without memory to back shared memory
    "couldn't open shared file mapping",
    "couldn't map view of shared file",
)


class MachineError(Exception):
    """What the machine did to a run (a killed process, no shared memory), in one line."""


def run_script(main: Callable[[list[str]], int | None], *, launched: bool = False) -> NoReturn:
    """Run a script's ``main(argv)`` and exit: 2 on a user's mistake, 1 on a disk's or memory's.

    Either is one line on stderr. Any other exception is a fault of the program and is shown whole.
    Of several processes that a launcher started together, where ``launched`` allows them, the
    first alone prints results. What is printed cannot stop the work: see :func:`steady_streams`.
    """
    steady_streams()
    if parent := os.environ.pop(PARENT, ""):
        end_with(int(parent))
    if is_launched() and not launched:
        print(f"error: {sys.argv[0]} runs in one process: leave torchrun out", file=sys.stderr)
        sys.exit(2)
    if process_rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (until the end)
    with one_line_errors():
        status = main(sys.argv[1:])
        sys.stdout.flush()
    sys.exit(status or 0)


def end_with(parent: int) -> None:
    """Send SIGTERM to this process once the one that started it is gone: nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End as :func:`run_script` does on an error that :func:`explain` knows.

    By itself it is for imports of packages before a script's ``main`` is called.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        said, status = explain(error)
        if not said:
            raise
        print(said, file=sys.stderr)
        sys.exit(status)


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line and the status that an error ends with; no line = the program's fault."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, UserError):
        return f"error: {one_line(error)}", 2
    if isinstance(error, MachineError):
        return f"error: {one_line(error)}", 1
    if says_short_memory(error):
        return f"error: out of memory ({one_line(error)[:150] or 'host'})", 1
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {say_system(error)}", 1
    package = str(getattr(error, "name", "")).partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package != "src":
        remedy = "start this with the Python of .venv, which `python scripts/setup.py` makes"
        return f"error: {sys.executable} has no package {package}: {remedy}", 2
    return "", 1


# What to do about an error of the system, before the same command is run again.
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EACCES: "allow access to it",
    errno.EPERM: "allow access to it",
    errno.EROFS: "name a folder that can be written to",
    errno.EISDIR: "move that folder away",
    errno.ENOTDIR: "move away the file that stands where a folder of this path belongs",
    errno.EEXIST: "move it away",
    errno.ELOOP: "remove the link of this path that leads to itself",
    errno.ENAMETOOLONG: "name something shorter",
    errno.ENOENT: "restore it or its folder",
}


_IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY}


def say_system(error: OSError, place: object = None) -> str:
    """Return one line on an error of the system: where, what, and what to do about it."""
    # of a rename the target is in the way, not what was to be renamed
    in_the_way = error.filename2 if error.errno in _IN_THE_WAY else None
    place = place or in_the_way or error.filename or "input or output"
    remedy = _REMEDIES.get(error.errno or 0, "see to the disk or its connection")
    said = f"{place}: {error.strerror}; earlier results are whole: {remedy} and run this again"
    return one_line(said)


def says_short_memory(error: BaseException) -> bool:
    """Tell whether an error is one of the ways to say that memory is short."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in SHORT_MEMORY)


def is_launched() -> bool:
    """Tell whether this is one of several processes that torchrun or the like started.

    A ``RANK`` left behind in the environment is no launcher: that sets ``LOCAL_RANK`` too.
    """
    return "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def process_rank() -> int:
    """Return the number of this process among those started together, 0 if it is alone."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def steady_streams() -> None:
    """Let nothing about stdout and stderr raise: encoding, a reader that left, a closed descriptor.

    Characters that the encoding lacks (cp949 has no dash, ASCII no Hangul) become ``?``. Where the
    reader of a pipe is gone or the disk of a log is full, the rest of the reports is dropped.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # else the next file opened would get a standard stream's number
        try:
            os.fstat(number)
        except OSError:
            os.dup2(nothing, number)
    if nothing > 2:
        os.close(nothing)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: `>&-`, pythonw
            setattr(sys, name, _steady(number, "utf-8", lines=False))
        elif stream is getattr(sys, f"__{name}__") and not (os.name == "nt" and stream.isatty()):
            stream.flush()
            lines = stream.line_buffering or stream.write_through
            setattr(sys, name, _steady(stream.fileno(), stream.encoding, lines=lines))
        elif isinstance(stream, io.TextIOWrapper):  # a Windows console, or somebody's redirection
            stream.reconfigure(errors="replace")


def _steady(number: int, encoding: str, *, lines: bool) -> io.TextIOWrapper:
    """Open descriptor ``number`` for reports, flushed at the end of ``lines`` or of a block."""
    raw = _Reports(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=lines
    )


class _Reports(io.FileIO):
    """A descriptor whose writes succeed, as long as they can with effect."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:  # no reader, no room, no terminal
            return len(memoryview(data).cast("B"))


def one_line(error: object) -> str:
    """Return what ``error`` says without line ends or other control characters.

    File names may hold either.
    """
    return "".join(c if c.isprintable() else " " for c in str(error))


def brief(error: object, most: int = 120) -> str:
    """Return what ``error`` says on one line, at most so many characters of it."""
    return " ".join(str(error).split())[:most]


def quote(value: object) -> str:
    """Return ``value`` as a message shows it, no more of it than fits: it may be anything."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not write numbers of thousands of digits
        return f"({type(value).__name__} too long to show)"
    return text if len(text) <= 60 else f"{text[:60]}…"


def counted(number: int, one: str, more: str = "") -> str:
    """Return ``1 image`` or ``2 images``; ``more`` is how ``one`` reads of several."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean X?)``, or nothing where no word is near."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table: text to the left, numbers to the right (Korean is double width)."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(cells) and all(re.fullmatch(r"[-+]?[\d.,]*", row[j]) for row in cells)
        for j in range(len(header))
    ]
    lines = [
        "  ".join(_pad(cell, width, r) for cell, width, r in zip(line, widths, right, strict=True))
        for line in (list(header), *cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{round(value, 5) + 0.0:.5f}"
    return str(value)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
