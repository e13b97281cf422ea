"""Hashes of the files of two output folders that must be identical after a kill and resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WHOLE = ("folds.csv", "weights.json", "submission.csv", "best.safetensors", "metrics.csv")
PARTS = ("model", "ema", "optimizer", "state")


def fingerprint(output: Path, *, states: bool = True) -> dict[str, str]:
    """Return file (or part of one) → SHA-256 of what must not depend on kills.

    Args:
        output: the folder.
        states: whether ``last.pt`` counts, which a finished run needs no more.
    """
    import numpy as np
    import torch

    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.name in WHOLE:
            found[name] = digest(path.read_bytes())
        elif path.name == "last.pt" and states:
            state = torch.load(path, weights_only=True)
            found |= {f"{name} {part}": digest(*flat(state[part])) for part in PARTS}
        elif path.name == "oof.npz":
            with np.load(path, allow_pickle=False) as oof:
                found |= {f"{name} {part}": digest(oof[part].tobytes()) for part in oof.files}
        elif path.name == "test_logits.npy":
            found[name] = digest(np.load(path, allow_pickle=False).tobytes())
    return found


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
