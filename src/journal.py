"""Append-only journal of a search: one checksummed JSON record a line.

A search that is a pure function of its records needs no more to go on exactly where it was killed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from src.files import (
    MAX_JSON_BYTES,
    SEAL,
    Json,
    atomic_write,
    is_sound,
    open_plain,
    patiently,
    read_small,
    seal,
)
from src.script import UserError


class Journal:
    """The records of one study, in a file that may hold several studies.

    A torn last line, as a kill leaves it, is cut. Where a line is damaged the file is set aside and
    a new one begins with the whole lines. The caller keeps other processes off it.

    Attributes:
        records: what was appended so far, in its order.
    """

    def __init__(self, path: Path, study: str) -> None:
        """Read the records of ``study``; the file need not exist.

        Raises:
            UserError: ``path`` is no regular file.
            OSError: it cannot be read at present.
        """
        self.path, self.study = path, study
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = patiently(lambda: read_small(path, MAX_JSON_BYTES))
        except FileNotFoundError:
            content = b""
        except ValueError as error:
            raise UserError(f"{path}: {error}; move it away and run this again") from None
        lines = content.split(b"\n")
        torn = lines.pop()
        whole = [line for line in lines if _parse(line) is not None]
        if len(whole) < len(lines):
            aside = path.with_name(path.name + ".damaged")
            with atomic_write(aside) as file:
                file.write(content)
            print(
                f"note: {path}: {len(lines) - len(whole)} of {len(lines)} lines are damaged; kept "
                f"as {aside.name}, what they held is computed again",
                flush=True,
            )
        if torn or len(whole) < len(lines):
            with atomic_write(path) as file:
                file.write(b"".join(line + b"\n" for line in whole))
        found = (_parse(line) for line in whole)
        self.records = [r["record"] for r in found if r and r["study"] == study]

    def append(self, record: Json) -> None:
        """Add a record, on the disk when this returns.

        Raises:
            OSError: no room, or the like.
        """
        line = json.dumps({"checksum": SEAL, "study": self.study, "record": record})
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_plain(self.path, flags), "ab") as file:
            file.write(seal(line.encode()) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)


def _parse(line: bytes) -> Json | None:
    """Return a line's content, None where it is not what was written."""
    try:
        content = json.loads(line)
        whole = content["checksum"].startswith("crc32:") and is_sound(line)
        return content if whole and isinstance(content["record"], dict) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
