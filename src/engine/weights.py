"""Weights of a run as sealed safetensors that name the run they are of.

The header holds a CRC-32 of the file and the run's identity: a changed byte and another fold's or
model's weights under the same name are refused.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from src.config import EngineConfig, config_hash
from src.files import SEAL, atomic_write, is_sound, patiently, regular, seal
from src.runs import AFRESH, Run
from src.script import UserError


def file_is_sound(path: Path) -> bool:
    """Tell whether a sealed file's bytes on disk are as written; ValueError for a pipe."""
    with regular(path).open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped as content, memoryview(content) as view:
            return is_sound(view)


def save_weights(path: Path, weights: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Write ``weights`` as safetensors, sealed, atomically, with ``about`` as metadata.

    The metadata are one JSON text: safetensors writes several in random order, and equal weights
    should be equal files.
    """
    from safetensors.torch import save

    plain = {k: v.detach().to("cpu").contiguous() for k, v in weights.items()}
    with atomic_write(path) as file:
        file.write(seal(save(plain, {"about": json.dumps(about | {"checksum": SEAL})})))


def run_identity(config: EngineConfig, run: Run, split_hash: str) -> str:
    """Return 12 hex digits that name the options, fold and data of a run."""
    text = f"{config_hash(config)} {run.folder.name} {split_hash}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def refuse_foreign(path: Path, identity: str, epoch: int = 0) -> None:
    """Raise unless the weights at ``path`` are of the run that ``identity`` names.

    They are of ``epoch`` or of a later one, which the run that goes on comes to again.

    Raises:
        UserError: missing, damaged, older, or of another model, fold or data.
    """
    about = read_about(path)
    if about.get("run", identity) != identity:  # earlier versions named none
        raise UserError(f"{path}: weights of another run; {AFRESH}")
    if int(about.get("epoch", epoch)) < epoch:
        raise UserError(
            f"{path}: of epoch {about['epoch']}, and the best of this run is epoch {epoch}'s: "
            f"restore it, or {AFRESH}"
        )


def read_about(path: Path) -> dict[str, str]:
    """Return the metadata that ``save_weights`` was given.

    Raises:
        UserError: missing, or its content is damaged.
        OSError: it cannot be read at present.
    """
    from safetensors import safe_open

    with _whole(path):
        # safe_open says "not found" of any error
        patiently(lambda: regular(path).open("rb").close())
        with safe_open(path, "pt") as file:
            about = dict(json.loads(file.metadata()["about"]))
    about.pop("checksum", None)
    return about


def load_weights(path: Path, identity: str = "") -> dict[str, torch.Tensor]:
    """Read safetensors whose seal is whole.

    ``identity`` is that of the run that must have written them; empty = any.

    Raises:
        UserError: missing, damaged, or of another run.
        OSError: it cannot be read at present.
    """
    from safetensors.torch import load_file

    with _whole(path):
        if not patiently(lambda: file_is_sound(path)):
            raise ValueError("its checksum does not match")
        if identity:
            refuse_foreign(path, identity)
        return load_file(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Refuse in one line weights that are missing or damaged."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {AFRESH}") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {AFRESH}") from None
