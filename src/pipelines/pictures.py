"""Pictures for people: photographs as small JPEGs for a page, tinted masks, galleries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from src.data.decode import VOID, decode_image
from src.page import Html, picture
from src.script import UserError

SIDE = 240  # pixels of the longer side
QUALITY = 80
TINT = 0.5  # strength of a mask's colours


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


def make_palette() -> np.ndarray:
    """Make VOC's colour of every label: (256, 3) uint8 RGB, label 0 black.

    Bits 0, 1, 2 of the label become the top bit of R, G, B; bits 3, 4, 5 the next, and so on.
    """
    labels, channel = np.arange(256)[:, None], np.arange(3)
    colours = np.zeros((256, 3), np.int64)
    for level in range(3):
        colours |= (labels >> (3 * level + channel) & 1) << (7 - level)
    return colours.astype(np.uint8)


def draw_overlay(
    image: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray | None = None,
    *,
    background: int | None = 0,
) -> np.ndarray:
    """Tint the labels over the image, (H, W, 3) uint8 RGB, and draw the true outlines in white.

    ``background`` is not tinted, as void is not; None tints all.
    """
    assert image.shape[:2] == mask.shape, f"image {image.shape}, mask {mask.shape}"
    tinted = ~np.isin(mask, [VOID] if background is None else [background, VOID])
    colours = make_palette()[np.asarray(mask[tinted], np.int64) & 255]
    drawn = np.array(image)
    drawn[tinted] = (image[tinted] * (1 - TINT) + colours * TINT).round()
    if target is not None:
        labels = np.asarray(target, np.uint8)
        drawn[cv2.dilate(labels, np.ones((3, 3))) != cv2.erode(labels, np.ones((3, 3)))] = 255
    return drawn


def make_gallery(
    tiles: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 4, width: int = 320
) -> np.ndarray:
    """Lay pictures out in rows with a caption above each: (H, W, 3) uint8 RGB.

    Tiles (h, w, 3) uint8 RGB may be of any size: all get ``width`` px and the shape of the first.
    Of captions, characters beyond ASCII show as "?".
    """
    assert tiles and len(tiles) == len(captions), "one caption for each picture"
    height = round(width * tiles[0].shape[0] / tiles[0].shape[1])
    bar = 20
    num_rows = -(-len(tiles) // columns)
    sheet = np.zeros((num_rows * (height + bar), min(columns, len(tiles)) * width, 3), np.uint8)
    for place, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        top, left = place // columns * (height + bar), place % columns * width
        cell = sheet[top : top + height + bar, left : left + width]
        cell[bar:] = cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA)
        text = np.ascontiguousarray(cell[:bar])
        line = caption.encode("ascii", "replace").decode()
        cv2.putText(text, line, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255,) * 3, 1, cv2.LINE_AA)
        cell[:bar] = text
    return sheet
