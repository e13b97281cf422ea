"""Two-class masks stored as JPEG: black and white with blurred edges, cut in the middle.

JPEG changes numbers, so that class numbers are lost; black and white are not. Whether a set is
black and white is told by the histogram of its greys: two peaks at the ends and none between.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data.decode import decode_image, read_bytes, read_size
from src.data.sources.masks import JPEG
from src.script import UserError

_LOOK_AT = 64  # masks
_ENDS = 56  # greys this near to 0 or 255 are black or white: JPEG's ringing stays below
_MOST_BETWEEN = 0.1  # share of the pixels that edges may have
_PEAK = 0.4  # share of the greys between that one eighth of a dozen neighbours may have
_STRAY = 0.001  # share of all pixels that is no peak, however narrow
_COLOUR = 12  # mean difference of the channels that chroma subsampling does not reach


def is_blurred(path: Path) -> bool:
    """Tell whether a mask is a JPEG, whatever its name says."""
    if path.suffix.lower() == ".npy":
        return False
    try:
        return path.suffix.lower() in JPEG or read_size(read_bytes(path), path)[2] == "jpeg"
    except UserError:
        return False  # whoever decodes it says why


def check_blurred(targets: Sequence[Path]) -> float:
    """Return the share of pixels between black and white in JPEG masks.

    Raises:
        UserError: they hold a third grey, or soft edges everywhere: no black and white.
    """
    counts = np.zeros(256, np.int64)
    for path in targets[:: max(1, len(targets) // _LOOK_AT)]:
        counts += np.bincount(_read_grey(path).ravel(), minlength=256)
    between = counts[_ENDS : 256 - _ENDS]
    share = float(between.sum() / counts.sum())
    near = np.convolve(between, np.ones(8, np.int64), "valid")
    third = near.max() > max(_PEAK * between.sum(), _STRAY * counts.sum())
    if not counts[256 - _ENDS :].any() or share > _MOST_BETWEEN or third:
        grey = int(near.argmax()) + _ENDS + 4 if between.any() else int(np.flatnonzero(counts)[-1])
        raise UserError(
            f"the masks in {targets[0].parent} are JPEG and not black and white alone (many pixels "
            f"are near {grey}): JPEG changes class numbers; export the masks anew as PNG"
        )
    return share


def decode_blurred(path: Path) -> np.ndarray:
    """Read a JPEG mask as labels 0 and 1, 1 from the grey 128 on: (H, W) uint8.

    Raises:
        UserError: it holds colours.
    """
    return (_read_grey(path) >= 128).astype(np.uint8)


def _read_grey(path: Path) -> np.ndarray:
    pixels = decode_image(path)
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    if spread.mean() > _COLOUR:
        raise UserError(f"mask {path} is a JPEG of colours: export the masks anew as PNG")
    return pixels[..., 1]
