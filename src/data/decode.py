"""Image and mask decoding: bytes of one file → RGB (H, W, 3) uint8 or labels (H, W), or a refusal.

OpenCV decodes (it honours EXIF, scales 16 bits to 8, converts CMYK and refuses what is cut short),
but only after the header has been read here: the pixel limit must hold *before* memory is asked
for. What the formats leave open is decided so: alpha is dropped (colours as stored), palettes are
resolved for images and read as indices for masks, of an animation or a document the first frame
counts.

Headers give size, depth and format without decoding a pixel. Masks may also come with an alpha
channel, or as ``.npy`` arrays of another type that hold whole numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from src.data import formats
from src.files import (
    atomic_write,
    is_of_the_system,
    map_array,
    patiently,
    readable,
    refuse_folder,
    regular,
)
from src.script import UserError

Result = TypeVar("Result")
VOID = 255  # of masks that leave the loader, and of sets that say nothing else
# The size Pillow calls a decompression bomb; 512 MiB of RGB.
MAX_PIXELS = 178_956_970
READS_GIF = cv2.haveImageWriter("a.gif")  # since 4.12, both ways at once

if hasattr(cv2.utils, "logging"):  # since OpenCV 4.13
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors name the file
else:
    cv2.setLogLevel(0)  # type: ignore[attr-defined]


def read_bytes(path: Path | str) -> bytes:
    """Read a whole regular file.

    Raises:
        UserError: missing, unreadable, empty, or not a file (a folder, a pipe, a symlink loop).
    """
    with readable(path, "restore the file"):
        refuse_folder(path)
        data = patiently(Path(path).read_bytes)
    if not data:
        raise UserError(f"{path} is empty: restore the file")
    return data


def decode_image(path: Path | str, *, short_side: int | None = None) -> np.ndarray:
    """Decode an image file to RGB (H, W, 3) uint8, EXIF orientation applied.

    The content says the format: JPEG, PNG, WebP, BMP, GIF, TIFF or what ``formats.py`` adds. Given
    ``short_side``, the size needed, a JPEG is decoded at 1/2, 1/4 or 1/8 (scaled in the DCT domain,
    several times cheaper) if its shorter side stays >= that.

    Raises:
        UserError: naming the file, for whatever cannot be decoded whole or is too large.
    """
    return decode_bytes(read_bytes(path), path, short_side=short_side)


def decode_bytes(
    data: bytes, name: Path | str = "image", *, short_side: int | None = None
) -> np.ndarray:
    """Decode as :func:`decode_image` does, from memory; ``name`` stands in the errors."""
    width, height, kind = _checked_size(data, name)
    if kind not in formats.OPENCV:
        return formats.decode_other(data, kind, name)
    reduced = 1
    if kind == "jpeg" and short_side:
        reduced = next((d for d in (8, 4, 2) if min(width, height) // d >= short_side), 1)
    if kind == "tiff" and _tiff_has_alpha(data):  # OpenCV blends it into black, unlike elsewhere
        return formats.decode_other(data, kind, name)
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
        if kind == "tiff":  # of a compression that OpenCV lacks, it may be
            return formats.decode_other(data, kind, name)
        raise UserError(f"{name} is damaged or cut short ({kind}): restore the file")
    if reduced > 1:  # OpenCV has no reduced flag in RGB order
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return image


def read_peak(data: bytes) -> int | None:
    """Return the largest value of an image of 16 bits a channel, None for one of fewer bits.

    ``data`` is a file that :func:`decode_bytes` accepts.
    """
    if read_depth(data, read_size(data)[2])[0] <= 8:
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        return None
    return int((image[..., :3] if image.ndim == 3 else image).max())  # an opaque alpha is 65535


def decode_mask(
    path: Path | str, *, num_classes: int | None = None, ignore_index: int | None = VOID
) -> np.ndarray:
    """Read a label mask (H, W) of class indices, uint8 where they fit and int32 elsewhere.

    That is a grey or palette image (a palette is read as indices; grey stored in three equal
    channels, and beside an even alpha, counts as grey) or a ``.npy`` of whole numbers, (H, W) or
    (H, W, 1). JPEG is refused: it blurs labels. -1 is read as 255. Given ``num_classes``, labels
    must lie in 0..num_classes-1 or equal ``ignore_index``, the label of void.

    Raises:
        UserError: naming the file: undecodable, coloured, too large, unknown labels, fractions, a
            number that would wrap round in 32 bits, or alpha that varies.
    """
    is_array = Path(path).suffix.lower() == ".npy"
    mask = _load_npy(path) if is_array else _decode_indices(read_bytes(path), path)
    low, high = int(mask.min()), int(mask.max())
    if low == -1 and high < VOID:
        mask, low, high = np.where(mask < 0, VOID, mask.astype(np.int64)), 0, VOID
    if num_classes is not None:
        _check_labels(mask, path, num_classes, ignore_index)
    if low < 0 or high >= 2**31:
        number = high if high >= 2**31 else low
        raise UserError(f"mask {path} holds {number}, which is no label: renumber it to 0..255")
    return np.ascontiguousarray(mask, np.uint8 if high <= 255 else np.int32)


def _checked_size(data: bytes, name: Path | str) -> tuple[int, int, str]:
    width, height, kind = read_size(data, name)
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name} has {width}x{height} pixels, above the limit of {MAX_PIXELS:,}: "
            "shrink or remove it"
        )
    return width, height, kind


def _tiff_has_alpha(data: bytes) -> bool:
    from PIL import TiffImagePlugin

    return TiffImagePlugin.TiffImageFile(io.BytesIO(data)).mode in {"RGBA", "LA", "PA", "RGBa"}


def _decode_indices(data: bytes, path: Path | str) -> np.ndarray:
    from PIL import Image, ImageOps

    kind = _checked_size(data, path)[2]
    if kind in _LOSSY:
        raise UserError(
            f"mask {path} is a {formats.describe(kind)}, which blurs labels: save it as PNG"
        )
    try:
        with Image.open(io.BytesIO(data)) as image:
            mask = np.asarray(ImageOps.exif_transpose(image))
            has_alpha = image.mode in ("LA", "RGBA")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"mask {path} is damaged or cut short: restore the file") from error
    colours = mask[..., :-1] if has_alpha else mask
    in_three = colours.ndim == 3 and (has_alpha or colours.shape[2] == 3)
    if in_three and (colours == colours[..., :1]).all():
        if has_alpha and (mask[..., -1] != mask[0, 0, -1]).any():
            raise UserError(
                f"mask {path} has a transparency that varies, which may be the mask or may not: "
                "save it as a grey PNG"
            )
        mask = colours[..., 0]
    if mask.ndim != 2 or mask.dtype.kind not in "buif":
        raise UserError(f"mask {path} holds colours, not class indices: save it as a grey PNG")
    mask = _whole_numbers(mask, path)
    if data.startswith(b"\x89PNG") and data[25] == 0 and data[24] in (2, 4):
        mask = mask // (255 // (2 ** data[24] - 1))  # Pillow stretches 2 and 4 bits to 0..255
    return mask


def _load_npy(path: Path | str) -> np.ndarray:
    with readable(path, "restore the file"):
        try:  # mapped, so that a header that claims more than the file holds costs no memory
            array = map_array(path)
        except (ValueError, EOFError) as error:
            raise UserError(
                f"mask {path} is not a plain .npy array: save it with np.save"
            ) from error
    mask = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if mask.ndim != 2 or mask.dtype.kind not in "buif" or not mask.size:
        raise UserError(f"mask {path} is {array.dtype} {array.shape}: expected 2-D integers")
    if mask.size > MAX_PIXELS:
        raise UserError(f"mask {path} is above the limit of {MAX_PIXELS:,} pixels: shrink it")
    return _whole_numbers(np.array(mask), path)


def _whole_numbers(mask: np.ndarray, path: Path | str) -> np.ndarray:
    """Return whole numbers that are stored as floats, 0.0 and 1.0, as integers."""
    if mask.dtype.kind != "f":
        return mask
    if not (np.abs(mask) < 2**31).all() or (mask != np.rint(mask)).any():
        raise UserError(f"mask {path} holds fractions: save class numbers, or 0 and 255")
    return mask.astype(np.int64)


def _check_labels(
    mask: np.ndarray, path: Path | str, num_classes: int, ignore_index: int | None
) -> None:
    """Raise a UserError unless labels lie in 0..num_classes-1 or are ``ignore_index``."""
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


_LOSSY = frozenset({"jpeg", "avif", "heic"})
_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_size(data: bytes, name: Path | str = "image") -> tuple[int, int, str]:
    """Read ``(width, height, format)`` from the header alone, before EXIF rotation.

    The format is one that ``formats.find_kind`` tells; pixels are not touched.

    Raises:
        UserError: none of these formats, one whose decoder is not installed, or a header that is
            cut off.
    """
    kind = formats.find_kind(data)
    if not kind:
        formats.refuse_unknown(data, name)
    if kind not in formats.OPENCV:
        return (*formats.read_other_size(data, kind, name), kind)
    try:
        width, height = formats.SIZE_READERS[kind](data)
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
    tags = _read_tags(data)
    is_float = 3 in tags.get(_FORMAT, (1,)) or tags.get(_COMPRESSION) in _SGILOG
    return max(tags.get(_BITS, (1,) if tags else (8,))), is_float


def _read_tags(data: bytes) -> Any:
    """Return the tags of a TIFF's first page, none where they cannot be read."""
    from PIL import TiffImagePlugin

    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # struct, index and Pillow's many: whoever reads the size will say it
        return {}


def refuse_numbers(data: bytes, name: Path | str, kind: str) -> None:
    """Raise a UserError if the file is a TIFF of measurements or bands instead of colours."""
    bits, is_float = read_depth(data, kind)
    bands = int(_read_tags(data).get(_BANDS, 1)) if kind == "tiff" else 1
    if bands > 4:
        raise UserError(
            f"{name} holds {bands} bands: save three of them as an RGB image of 8 bits a channel"
        )
    if is_float or bits > 16:
        number = "floating-point numbers" if is_float else "whole numbers"
        raise UserError(f"{name} holds {number} of {bits} bits: save it with 8 bits a channel")


# TIFF tags: BitsPerSample, Compression, SamplesPerPixel, SampleFormat (3 is IEEE floating point)
_BITS, _COMPRESSION, _BANDS, _FORMAT = 258, 259, 277, 339
_SGILOG = (34676, 34677)  # luminance as a logarithm: what OpenCV 4 writes of three floats


def look_into(path: Path, read: Callable[[Any], Result], otherwise: Result) -> Result:
    """Return ``read`` of a file that Pillow opens (header alone), ``otherwise`` for no image."""
    from PIL import Image

    try:
        with Image.open(regular(path)) as image:
            return read(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if is_of_the_system(error):
            raise
        return otherwise


def write_picture(path: Path | str, image: np.ndarray) -> None:
    """Write RGB (H, W, 3) or grey (H, W) uint8 as PNG or JPEG by the name's ending, atomically."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    done, data = cv2.imencode(Path(path).suffix, np.ascontiguousarray(bgr))
    assert done, path
    with atomic_write(path) as file:
        file.write(data.tobytes())
