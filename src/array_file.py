"""Memory map of an ``.npy`` file: whatever damage its header has is one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from src.files import NOT_WHOLE, patiently, regular

if TYPE_CHECKING:
    import numpy as np


def map_array(path: Path | str) -> np.memmap:
    """Map an array without reading it, nothing unpickled.

    Raises:
        ValueError: the file is no whole array, or no regular file.
        OSError: it is missing, or cannot be read at present.
    """
    import numpy as np

    try:
        found = patiently(lambda: np.load(regular(Path(path)), mmap_mode="r", allow_pickle=False))
    except NOT_WHOLE as error:
        raise ValueError(" ".join(str(error).split())[:120]) from None
    if not isinstance(found, np.memmap):
        raise ValueError("an archive, not an array")
    return found
