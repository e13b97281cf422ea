"""A mask stored with an alpha channel, or as an unusual array in, its values out.

``decode.py`` takes what class numbers should be stored as; these forms say the same things.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.data.decode import MAX_PIXELS
from src.script import UserError


def read_form(path: Path) -> np.ndarray | None:
    """Read a mask (H, W) that ``decode_mask`` refuses although it is clear, uint8 where it fits.

    Args:
        path: grey beside an alpha channel that is even, or a ``.npy`` of (H, W, 1) or of whole
            numbers stored as floats.

    Returns:
        The values; None for every other form, and for what is no mask at all.

    Raises:
        UserError: alpha that varies, or fractions.
    """
    mask = _load_npy(path) if path.suffix.lower() == ".npy" else _drop_alpha(path)
    if mask is None:
        return None
    fits = mask.min() >= 0 and mask.max() <= 255
    return np.ascontiguousarray(mask, np.uint8 if fits else np.int32)


def _load_npy(path: Path) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    mask = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if mask.ndim != 2 or not 0 < mask.size <= MAX_PIXELS or mask.dtype.kind not in "buif":
        return None
    if mask.dtype.kind != "f":
        return None if mask is array else mask
    if not (np.abs(mask) < 2**31).all() or (mask != np.rint(mask)).any():
        raise UserError(f"mask {path} holds fractions: save class numbers, or 0 and 255")
    return mask.astype(np.int64)


def _drop_alpha(path: Path) -> np.ndarray | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:  # reads the header alone
            if image.mode not in {"LA", "RGBA"} or image.width * image.height > MAX_PIXELS:
                return None
            pixels = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if (colours != colours[..., :1]).any():
        return None
    if (alpha != alpha[0, 0]).any():
        raise UserError(
            f"mask {path} has a transparency that varies, which may be the mask or may not: save "
            "it as a grey PNG"
        )
    return colours[..., 0]
