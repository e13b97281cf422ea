"""The whole training state to a file and back: never half, never foreign, never executed.

``last.pt`` is torch's zip archive followed by a SHA-256 of its bytes. Reading checks the hash
first and allows tensors, numbers, strings and containers only (``weights_only``).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch

from src.files import HALF_WRITTEN, atomic_write
from src.runs import AFRESH, Run
from src.script import UserError

MAGIC = b"train-state-sha256:"
PARTS = {"state", "model", "ema", "optimizer", "scaler", "config", "config_hash"}
TRAILER = len(MAGIC) + hashlib.sha256().digest_size


class HashingWriter:
    """A write-only file that hashes what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write and hash ``data``; torch turns an OSError into its own, so it is kept."""
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file below."""
        self.file.flush()


def save_state(run: Run, state: dict[str, Any]) -> None:
    """Write ``state`` to ``last.pt``; the one before it stays as ``last.previous.pt``.

    At every moment at least one of the two is whole.

    Raises:
        OSError: the disk is full, or the like.
    """
    with atomic_write(run.last) as file:
        writer = HashingWriter(file)
        try:
            torch.save(state, writer)  # type: ignore[arg-type]
        except RuntimeError:
            if writer.error:
                raise writer.error from None
            raise
        file.write(MAGIC + writer.hash.digest())
        if run.last.exists():
            keep_previous(run)


def keep_previous(run: Run) -> None:
    """Give the present ``last.pt`` its second name, without a moment in which it has none."""
    link = run.last.with_name(f".{run.previous.name}.link{HALF_WRITTEN}")
    link.unlink(missing_ok=True)
    try:
        os.link(run.last, link)
        link.replace(run.previous)
        link.unlink(missing_ok=True)  # POSIX renames nothing where both names are one file already
    except OSError:  # a file system without hard links
        run.last.replace(run.previous)


def load_state(run: Run) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest whole state, or None, and what had to be passed over.

    Raises:
        UserError: there are state files, but none of them is whole.
    """
    troubles = []
    for path in (run.last, run.previous):
        if not path.exists():
            continue
        reason = damage(path)
        if reason:
            troubles.append(f"{path}: {reason}")
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if set(state) >= PARTS:
                return state, troubles
            troubles.append(f"{path}: no training state of this program")
        except (
            RuntimeError,
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            troubles.append(f"{path}: refused ({str(error).splitlines()[0][:120]})")
    if troubles:
        raise UserError(
            f"no whole checkpoint: {'; '.join(troubles)}; delete the run's folder to start afresh"
        )
    return None, []


def damage(path: Path) -> str:
    """Return what is wrong with a state file's bytes, empty if nothing is."""
    size = path.stat().st_size
    if size <= TRAILER:
        return "truncated"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = size - TRAILER
        while left > 0:
            block = file.read(min(left, 1 << 22))
            digest.update(block)
            left -= len(block)
        trailer = file.read(TRAILER)
    if not trailer.startswith(MAGIC):
        return "truncated, or not written by this program"
    return "" if trailer[len(MAGIC) :] == digest.digest() else "its checksum does not match"


def save_weights(path: Path, weights: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Write ``weights`` as safetensors, atomically, with ``about`` as metadata.

    The metadata are one JSON text: safetensors writes several in random order, and equal weights
    should be equal files.
    """
    from safetensors.torch import save

    plain = {k: v.detach().to("cpu").contiguous() for k, v in weights.items()}
    with atomic_write(path) as file:
        file.write(save(plain, {"about": json.dumps(about)}))


def read_about(path: Path) -> dict[str, str]:
    """Return the metadata that ``save_weights`` was given.

    Raises:
        UserError: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["about"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {AFRESH}") from None


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors.

    Raises:
        UserError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights; train this fold first") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); {AFRESH}") from None
