"""Refusal of an --output that would replace what this program did not write there before.

Beside a file of ours stands ``.NAME.written`` with its length and CRC-32; a folder of ours holds
``.written``. Links, devices, pipes and anybody else's files are never replaced, by root neither.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.files import FileMark, describe_file, read_json, sweep, write_json
from src.script import UserError

MARK = ".written"
REMEDY = "move it away, or name another"


def refuse_file(path: Path, *, ours: bool = False) -> None:
    """Raise unless ``path`` is absent in a folder that exists, or is a file written before.

    Args:
        path: of ``--output``.
        ours: any regular file there is ours, since the place is.

    Raises:
        UserError: it is something else.
    """
    if not path.name or path.is_dir():
        raise UserError(f"--output {path}: a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it")
    try:
        kind = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind.st_mode):
        raise UserError(f"--output {path}: no regular file, and so not replaced; {REMEDY}")
    if not ours and not _was_written(path):
        raise UserError(
            f"--output {path}: exists, and is not what was written there before; {REMEDY}"
        )


@contextmanager
def own_file(path: Path, *, ours: bool = False) -> Iterator[None]:
    """Refuse as :func:`refuse_file`, and note afterwards what the block has written there."""
    refuse_file(path, ours=ours)
    if ours:
        yield
        return
    before = _look_at(path)
    sweep(path.parent, path.name)
    write_json(_mark_of(path), {"writing": True})  # killed in the block, it may still be replaced
    try:
        yield
    except BaseException:
        if _look_at(path) != before:
            raise
        if before is None:  # what somebody puts there later is not ours
            _mark_of(path).unlink(missing_ok=True)
        else:
            write_json(_mark_of(path), before)
        raise
    write_json(_mark_of(path), describe_file(path))


def own_folder(
    path: Path, inner: tuple[str, ...], *, ours: bool = False, name: str = "--output"
) -> None:
    """Make a folder of results, or take over one that was made before.

    Args:
        path: of ``--output``.
        inner: folders in it that are written to.
        ours: the place is ours whatever it holds.
        name: how messages call it.

    Raises:
        UserError: it is a link or a file, or holds what was not written by this program.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{name} {path}: a link or file, where a folder is to be; {REMEDY}")
    foreign = path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file()
    if foreign and not ours:
        raise UserError(f"{name} {path}: holds files that are not of this program; {REMEDY}")
    for entry in inner:
        if (path / entry).is_symlink():
            raise UserError(f"{path / entry}: a link, and so not written to; {REMEDY}")
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / MARK, {"by": "this program"})


def _mark_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{MARK}")


def _look_at(path: Path) -> FileMark | None:
    return describe_file(path) if path.exists() else None


def _was_written(path: Path) -> bool:
    try:
        known = read_json(_mark_of(path))
    except (FileNotFoundError, UserError):
        return False
    return known == {"writing": True} or known == describe_file(path)
