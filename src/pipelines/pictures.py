"""Photographs as small JPEGs for a page."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from src.data.decode import decode_image
from src.page import Html, picture
from src.script import UserError

SIDE = 240  # pixels of the longer side
QUALITY = 80


def show_photograph(path: Path, caption: str) -> list[Html]:
    """Return the photograph with its caption; an empty list if it cannot be decoded."""
    try:
        return [picture(encode_jpeg(decode_image(path, short_side=SIDE)), caption)]
    except UserError:
        return []


def encode_jpeg(image: np.ndarray, side: int = SIDE) -> bytes:
    """Return RGB (H, W, 3) uint8 as a JPEG whose longer side is at most ``side`` pixels."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        width, height = (max(1, round(n * scale)) for n in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert done
    return data.tobytes()
