"""Label masks in; run lengths, index PNGs and pictures to look at out, and back again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from src.files import atomic_write
from src.script import UserError

RLE_COLUMNS = ("id", "label", "rle")


def encode_rle(mask: np.ndarray) -> str:
    """Encode a bool mask (H, W) as "start length start length ...".

    Pixels are numbered from 1, down the columns first, as competitions ask for. An empty mask is
    the empty string.
    """
    flat = np.concatenate([[False], np.asarray(mask, bool).T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    return " ".join(map(str, np.stack([starts, lengths], axis=1).ravel().tolist()))


def decode_rle(text: str, height: int, width: int) -> np.ndarray:
    """Decode what :func:`encode_rle` wrote: bool (H, W).

    Raises:
        UserError: no numbers, an odd count, overlapping runs, or pixels beyond the image.
    """
    try:
        numbers = np.array([int(word) for word in text.split()], np.int64)
    except OverflowError as error:
        raise UserError("run lengths hold a number beyond any image") from error
    except ValueError as error:
        raise UserError(f"run lengths hold {error.args[0].split(':')[-1].strip()}") from error
    if len(numbers) % 2:
        raise UserError("run lengths need pairs of start and length: the last number is alone")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    size = height * width
    ends = starts + np.minimum(lengths, size + 1)  # so that the sum cannot wrap around
    rising = (starts[1:] >= ends[:-1]).all()
    inside = ((starts >= 0) & (starts < size) & (ends <= size)).all()
    if not rising or not inside or (lengths < 1).any():
        raise UserError(f"run lengths overlap or leave the {width}x{height} image: wrong size?")
    steps = np.zeros(size + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return np.cumsum(steps[:-1]).astype(bool).reshape(width, height).T


def write_rle_csv(
    path: Path | str, masks: Iterable[tuple[str, np.ndarray]], labels: Sequence[int] = (1,)
) -> int:
    """Write one line (id, label, rle) for each image and label, checked by decoding it.

    Args:
        path: the CSV, written atomically.
        masks: (id, labels (H, W)) pairs.
        labels: the labels to write; a label that an image lacks gets an empty rle.

    Returns:
        The number of lines.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RLE_COLUMNS)
    num_lines = 0
    for name, mask in masks:
        for label in labels:
            rle = encode_rle(mask == label)
            assert np.array_equal(decode_rle(rle, *mask.shape), mask == label), name
            writer.writerow((name, label, rle))
            num_lines += 1
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8"))
    return num_lines


def write_index_png(path: Path | str, mask: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write labels (H, W) in 0..255 as an 8-bit PNG, atomically.

    Args:
        path: of the file.
        mask: integer labels.
        palette: (256, 3) uint8 RGB; the PNG then shows colours, and its indices stay the labels.
            Readers that resolve palettes would see the colours: submit without.
    """
    from PIL import Image

    mask = np.asarray(mask)
    assert mask.ndim == 2 and mask.min() >= 0 and mask.max() <= 255, f"{mask.shape} {mask.dtype}"
    image = Image.fromarray(mask.astype(np.uint8))
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    with atomic_write(path) as file:
        image.save(file, format="PNG", optimize=True)


def make_palette(num_colours: int = 256) -> np.ndarray:
    """Make VOC's colour of every label: (num_colours, 3) uint8 RGB, label 0 black.

    Bits 0, 1, 2 of the label become the top bit of R, G, B; bits 3, 4, 5 the next, and so on.
    """
    labels = np.arange(num_colours)[:, None]
    channel = np.arange(3)
    colours = np.zeros((num_colours, 3), np.int64)
    for level in range(3):
        colours |= (labels >> (3 * level + channel) & 1) << (7 - level)
    return colours.astype(np.uint8)


def draw_overlay(
    image: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray | None = None,
    *,
    alpha: float = 0.5,
    background: int | None = 0,
    ignore_index: int | None = 255,
) -> np.ndarray:
    """Tint the labels over the image and draw the true outlines in white.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: predicted labels (H, W).
        target: true labels (H, W), or None.
        alpha: strength of the tint, 0..1.
        background: label that is not tinted, None to tint all.
        ignore_index: label of void, not tinted either.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    assert image.shape[:2] == mask.shape, f"image {image.shape}, mask {mask.shape}"
    colours = make_palette()[np.asarray(mask, np.int64) & 255]
    tinted = ~np.isin(mask, [b for b in (background, ignore_index) if b is not None])
    weight = alpha * tinted[..., None]
    drawn = (image * (1 - weight) + colours * weight).round().astype(np.uint8)
    if target is not None:
        labels = np.asarray(target, np.uint8)
        drawn[cv2.dilate(labels, np.ones((3, 3))) != cv2.erode(labels, np.ones((3, 3)))] = 255
    return drawn


def make_gallery(
    tiles: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 4, width: int = 320
) -> np.ndarray:
    """Lay pictures out in rows with a caption above each: (H, W, 3) uint8 RGB.

    Args:
        tiles: (h, w, 3) uint8 RGB each, of any size.
        captions: one each; characters beyond ASCII show as "?".
        columns: tiles in a row.
        width: of a tile in pixels; its height follows the first tile's shape.
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


def write_picture(path: Path | str, image: np.ndarray) -> None:
    """Write RGB (H, W, 3) uint8 as PNG or JPEG by the name's ending, atomically."""
    done, data = cv2.imencode(Path(path).suffix, np.ascontiguousarray(image[..., ::-1]))
    assert done, path
    with atomic_write(path) as file:
        file.write(data.tobytes())
