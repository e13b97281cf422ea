"""How a script ends: on a user's mistake, a full disk or short memory with one line."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


class UserError(ValueError):
    """A mistake the user can mend; the message is one line that names the remedy."""


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


def quote(value: Any, length: int = 60) -> str:
    """Return ``value`` as a message shows it, no more of it than fits: it may be anything."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not write numbers of thousands of digits
        return f"({type(value).__name__} too long to show)"
    return text if len(text) <= length else f"{text[:length]}…"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean X?)``, or nothing where no word is near."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
