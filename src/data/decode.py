"""Bytes of one file in, one RGB image or one label mask out; anything doubtful is refused by name.

OpenCV decodes (it honours EXIF, scales 16 bits to 8, converts CMYK and refuses what is cut short),
but only after the header has been read here: the pixel limit must hold *before* memory is asked
for. What the formats leave open is decided so: alpha is dropped (colours as stored), palettes are
resolved for images and read as indices for masks, of an animation or a document the first frame
counts.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import cv2
import numpy as np

from src.data.header import read_depth, read_size, refuse_numbers
from src.script import UserError

# The size Pillow calls a decompression bomb; 512 MiB of RGB.
MAX_PIXELS = 178_956_970
READS_GIF = cv2.haveImageWriter("a.gif")  # since 4.12, both ways at once

if hasattr(cv2.utils, "logging"):  # since OpenCV 4.13
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors name the file
else:
    cv2.setLogLevel(0)


def read_bytes(path: Path | str) -> bytes:
    """Read a whole regular file.

    Raises:
        UserError: missing, unreadable, empty, or not a file (a folder, a pipe, a symlink loop).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (this runs once per image)
            raise UserError(f"{path} is not a file: remove it, or rename it if it is a folder")
        with open(path, "rb") as file:  # noqa: PTH123
            data = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore the file") from error
    if not data:
        raise UserError(f"{path} is empty: restore the file")
    return data


def decode_image(
    path: Path | str, *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image file to RGB (H, W, 3) uint8, EXIF orientation applied.

    Args:
        path: JPEG, PNG, WebP, BMP, GIF or TIFF, whatever its extension says.
        short_side: the size needed, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8 (scaled
            in the DCT domain, several times cheaper) if its shorter side stays >= ``short_side``.
        max_pixels: refuse anything larger (width x height) before decoding.

    Raises:
        UserError: naming the file, for whatever cannot be decoded whole.
    """
    return decode_bytes(read_bytes(path), path, short_side=short_side, max_pixels=max_pixels)


def decode_bytes(
    data: bytes,
    name: Path | str = "image",
    *,
    short_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode as :func:`decode_image` does, from memory; ``name`` stands in the errors."""
    width, height, kind = _checked_size(data, name, max_pixels)
    reduced = 1
    if kind == "jpeg" and short_side:
        reduced = next((d for d in (8, 4, 2) if min(width, height) // d >= short_side), 1)
    if kind == "tiff" and _tiff_has_alpha(data):  # OpenCV blends it into black, unlike elsewhere
        return _decode_by_pillow(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[reduced])
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"no memory for {name} ({width}x{height})") from error
        image = None
    if image is None:
        if kind == "gif" and not READS_GIF:
            raise UserError(
                f"{name} is a GIF, which OpenCV {cv2.__version__} does not read: save it as PNG, "
                'or pip install "opencv-python-headless>=4.12"'
            )
        refuse_numbers(data, name, kind)
        raise UserError(f"{name} is damaged or cut short ({kind}): restore the file")
    if reduced > 1:  # OpenCV has no reduced flag in RGB order
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return image


def read_peak(data: bytes) -> int | None:
    """Return the largest value of an image of 16 bits a channel, None for one of fewer bits.

    Args:
        data: a file that :func:`decode_bytes` accepts.
    """
    if read_depth(data, read_size(data)[2])[0] <= 8:
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        return None
    return int((image[..., :3] if image.ndim == 3 else image).max())  # an opaque alpha is 65535


def decode_mask(
    path: Path | str,
    *,
    num_classes: int | None = None,
    ignore_index: int | None = 255,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Read a label mask (H, W) of class indices, uint8 where they fit and int32 elsewhere.

    Args:
        path: a grey or palette image (a palette is read as indices; grey stored in three equal
            channels counts as grey) or a 2-D integer ``.npy``. JPEG is refused: it blurs labels.
        num_classes: when given, labels must lie in 0..num_classes-1 or equal ``ignore_index``.
        ignore_index: the label of void pixels, or None where there is none.
        size: the (height, width) of the image that the mask belongs to.
        max_pixels: refuse anything larger before decoding.

    Raises:
        UserError: naming the file: undecodable, coloured, of another size, unknown labels.
    """
    if Path(path).suffix.lower() == ".npy":
        mask = _load_npy(path, max_pixels)
    else:
        mask = _decode_indices(read_bytes(path), path, max_pixels)
    if size is not None and mask.shape != tuple(size):
        raise UserError(
            f"mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels but its image is "
            f"{size[1]}x{size[0]}: give both the same size"
        )
    if num_classes is not None:
        _check_labels(mask, path, num_classes, ignore_index)
    fits = mask.min() >= 0 and mask.max() <= 255
    return np.ascontiguousarray(mask, np.uint8 if fits else np.int32)


def _checked_size(data: bytes, name: Path | str, max_pixels: int) -> tuple[int, int, str]:
    width, height, kind = read_size(data, name)
    if width * height > max_pixels:
        raise UserError(
            f"{name} has {width}x{height} pixels, above the limit of {max_pixels:,}: "
            "shrink or remove it"
        )
    return width, height, kind


def _decode_by_pillow(data: bytes, name: Path | str) -> np.ndarray:
    from PIL import ImageOps, TiffImagePlugin

    try:
        image = ImageOps.exif_transpose(TiffImagePlugin.TiffImageFile(io.BytesIO(data)))
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{name} is damaged or cut short (tiff): restore the file") from error


def _tiff_has_alpha(data: bytes) -> bool:
    from PIL import TiffImagePlugin

    return TiffImagePlugin.TiffImageFile(io.BytesIO(data)).mode in {"RGBA", "LA", "PA", "RGBa"}


def _decode_indices(data: bytes, path: Path | str, max_pixels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    if _checked_size(data, path, max_pixels)[2] == "jpeg":
        raise UserError(f"mask {path} is a JPEG, which blurs labels: save it as PNG")
    try:
        with Image.open(io.BytesIO(data)) as image:
            mask = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"mask {path} is damaged or cut short: restore the file") from error
    if mask.ndim == 3 and mask.shape[2] == 3 and (mask == mask[..., :1]).all():
        mask = mask[..., 0]
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise UserError(f"mask {path} holds colours, not class indices: save it as a grey PNG")
    if data.startswith(b"\x89PNG") and data[25] == 0 and data[24] in (2, 4):
        mask = mask // (255 // (2 ** data[24] - 1))  # Pillow stretches 2 and 4 bits to 0..255
    return mask


def _load_npy(path: Path | str, max_pixels: int) -> np.ndarray:
    try:  # mapped, so that a header that claims more than the file holds costs no memory
        mask = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"mask {path} is not a plain .npy array: save it with np.save") from error
    if mask.ndim != 2 or mask.dtype.kind not in "bui" or not mask.size:
        raise UserError(f"mask {path} is {mask.dtype} {mask.shape}: expected 2-D integers")
    if mask.size > max_pixels:
        raise UserError(f"mask {path} is above the limit of {max_pixels:,} pixels: shrink it")
    return np.array(mask)


def _check_labels(
    mask: np.ndarray, path: Path | str, num_classes: int, ignore_index: int | None
) -> None:
    if mask.min() >= 0 and mask.max() < num_classes:  # the usual case, without a sort
        return
    known = set(range(num_classes)) | ({ignore_index} if ignore_index is not None else set())
    unknown = [str(label) for label in np.unique(mask).tolist() if label not in known]
    if unknown:
        void = "" if ignore_index is None else f" or {ignore_index} (void)"
        raise UserError(
            f"mask {path} holds unknown labels {', '.join(unknown[:5])}: "
            f"expected 0..{num_classes - 1}{void}"
        )


_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
