"""Hashes of the files of two output folders that must be identical after a kill and resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.files import NOT_WHOLE

WHOLE = ("folds.csv", "weights.json", "submission.csv", "best.safetensors", "metrics.csv")
PARTS = ("model", "ema", "optimizer", "state")


def fingerprint(output: Path, *, states: bool = True) -> dict[str, str]:
    """Return file (or part of one) → SHA-256 of what must not depend on kills.

    Args:
        output: the folder.
        states: whether ``last.pt`` counts, which a finished run needs no more.
    """
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.name in WHOLE:
            found[name] = digest(path.read_bytes())
        elif path.name in ("oof.npz", "test_logits.npy") or (path.name == "last.pt" and states):
            try:
                found |= {f"{name} {part}": value for part, value in hash_parts(path).items()}
            except NOT_WHOLE:
                found[name] = digest(path.read_bytes())
    return found


def hash_parts(path: Path) -> dict[str, str]:
    """Return part → hash of a file whose bytes may differ where its content does not."""
    import numpy as np
    import torch

    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        return {part: digest(*flat(state[part])) for part in PARTS}
    content = np.load(path, allow_pickle=False)
    if path.suffix == ".npy":
        return {"": digest(content.tobytes())}
    with content:
        return {part: digest(content[part].tobytes()) for part in content.files}


def digest(*blocks: bytes) -> str:
    """Return 16 hex digits of the SHA-256 of all blocks."""
    value = hashlib.sha256()
    for block in blocks:
        value.update(block)
    return value.hexdigest()[:16]


def flat(value: Any) -> Iterator[bytes]:
    """Yield the bytes of all tensors, numbers and names in nested containers."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from flat(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    elif hasattr(value, "numpy"):
        yield value.contiguous().numpy().tobytes()
    else:
        yield repr(value).encode()


def half_written(output: Path, *, cache: bool = True) -> list[str]:
    """Return the files that a kill has left half-written (a cache's go with its next building)."""
    return [p.name for p in output.rglob(".*.tmp") if cache or p.parent.name != "cache"]
