"""Memory of Optuna searches: a journal of one process, or a study that machines share.

A journal has one checksummed JSON record a line. A search that is a pure function of its records
needs no more to go on exactly where it was killed. In a shared study (``--storage``) the trials of
all machines count together and each learns from the others', so that it does not repeat itself to
the same end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from src.files import (
    MAX_JSON_BYTES,
    SEAL,
    Json,
    atomic_write,
    is_sound,
    naming,
    open_plain,
    patiently,
    read_small,
    seal,
)
from src.script import UserError, one_line

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage


Direction = Literal["minimize", "maximize"]


def open_study(
    storage: str, name: str, *, direction: Direction = "minimize", pruner: BasePruner | None = None
) -> Study:
    """Return the study ``name`` of a storage, made if absent.

    ``storage`` is the URL of a database (``mysql://…``, ``sqlite:///…``), or a file on a shared
    disk. A study of another ``name`` shares nothing.

    Raises:
        UserError: the storage cannot be reached, or its driver is not installed.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    # without a seed, with which all would try the same
    sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True)
    try:
        return optuna.create_study(
            storage=_backend(storage), study_name=name, sampler=sampler, pruner=pruner,
            direction=direction, load_if_exists=True,
        )  # fmt: skip
    except (SQLAlchemyError, ImportError) as error:
        reason = one_line(error).partition("(Background")[0].strip()
        raise UserError(f"--storage {storage}: cannot be opened ({reason[:200]})") from None


def ask_until(study: Study, trials: int) -> Iterator[Trial]:
    """Yield new trials until ``trials`` of all processes are over."""
    from optuna.trial import TrialState

    over = (TrialState.COMPLETE, TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=over)) < trials:
        yield study.ask()


def _backend(storage: str) -> str | JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if "://" in storage:
        return storage
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    # the default lock is a symbolic link, which Windows makes for administrators alone
    lock = JournalFileOpenLock(storage) if os.name == "nt" else None
    return JournalStorage(JournalFileBackend(storage, lock_obj=lock))


class Journal:
    """The records of one study, in a file that may hold several studies.

    A torn last line, as a kill leaves it, is cut. Where a line is damaged the file is set aside and
    a new one begins with the whole lines. The caller keeps other processes off it. ``records`` are
    what was appended so far, in its order.
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
        found = [_parse(line) for line in lines]
        whole = [line for line, content in zip(lines, found, strict=True) if content]
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
        self.records = [r["record"] for r in found if r and r["study"] == study]

    def append(self, record: Json) -> None:
        """Add a record, on the disk when this returns.

        Raises:
            OSError: no room, or the like.
        """
        line = json.dumps({"checksum": SEAL, "study": self.study, "record": record})
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with naming(self.path), os.fdopen(open_plain(self.path, flags), "ab") as file:
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
