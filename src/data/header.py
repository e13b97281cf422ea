"""The first bytes of an image file in, its size, depth and format out; no pixel is decoded."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from src.script import UserError


def read_size(data: bytes, name: Path | str = "image") -> tuple[int, int, str]:
    """Read ``(width, height, format)`` from the header alone, before EXIF rotation.

    The format is one of jpeg, png, gif, bmp, webp, tiff; pixels are not touched.

    Raises:
        UserError: none of these formats, or a header that is cut off.
    """
    for magic, kind in _MAGIC:
        if data.startswith(magic) and (kind != "webp" or data[8:12] == b"WEBP"):
            break
    else:
        raise UserError(f"{name} is not a JPEG, PNG, WebP, BMP, GIF or TIFF image: restore it")
    try:
        width, height = _HEADERS[kind](data)
    except Exception as error:  # struct, index and Pillow's many
        refuse_numbers(data, name, kind)
        raise UserError(f"{name} has a damaged {kind} header: restore the file") from error
    if width < 1 or height < 1:
        raise UserError(f"{name} has no pixels ({width}x{height}): restore the file")
    return width, height, kind


def read_depth(data: bytes, kind: str) -> tuple[int, bool]:
    """Return the bits of one channel, and whether they hold a floating-point number."""
    if kind == "png":
        return (data[24] if len(data) > 24 else 8), False
    if kind != "tiff":
        return 8, False
    from PIL import TiffImagePlugin

    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        is_float = 3 in tags.get(_FORMAT, (1,)) or tags.get(_COMPRESSION) in _SGILOG
        return max(tags.get(_BITS, (1,))), is_float
    except Exception:  # struct, index and Pillow's many: whoever reads the size will say it
        return 8, False


def refuse_numbers(data: bytes, name: Path | str, kind: str) -> None:
    """Raise a UserError if the file is a TIFF of measurements instead of colours."""
    bits, is_float = read_depth(data, kind)
    if is_float or bits > 16:
        number = "floating-point numbers" if is_float else "whole numbers"
        raise UserError(f"{name} holds {number} of {bits} bits: save it with 8 bits a channel")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while True:
        if data[position] != 0xFF:  # stray bytes between segments: libjpeg skips them as well
            position = data.index(b"\xff", position)
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF0..SOF15
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
        if marker in (0xD9, 0xDA):  # the scan begins, or the image ends, without a frame
            raise ValueError
        if marker not in (0x00, 0x01) and not 0xD0 <= marker <= 0xD8:  # these have no length
            position += struct.unpack_from(">H", data, position)[0]


def _png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", data, 16)


def _gif_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", data, 6)


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # the header of OS/2
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: stored from the top


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X":
        low, middle, high = struct.unpack_from("<HHH", data, 24)
        return (low | (middle & 0xFF) << 16) + 1, (middle >> 8 | high << 8) + 1
    raise ValueError


def _tiff_size(data: bytes) -> tuple[int, int]:
    from PIL import TiffImagePlugin

    return TiffImagePlugin.TiffImageFile(io.BytesIO(data)).size


# TIFF tags: BitsPerSample, Compression, SampleFormat (3 is IEEE floating point)
_BITS, _COMPRESSION, _FORMAT = 258, 259, 339
_SGILOG = (34676, 34677)  # luminance as a logarithm: what OpenCV 4 writes of three floats
_MAGIC = (
    (b"\xff\xd8", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"RIFF", "webp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)
_HEADERS = {
    "jpeg": _jpeg_size,
    "png": _png_size,
    "gif": _gif_size,
    "bmp": _bmp_size,
    "webp": _webp_size,
    "tiff": _tiff_size,
}
