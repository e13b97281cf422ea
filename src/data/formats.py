"""Image formats told by a file's first bytes, and decoders for those that OpenCV is not asked for.

Pillow reads PNM, ICO, JPEG 2000, QOI and others, and AVIF since 11.3; HEIC, JPEG XL and older
AVIF take a plug-in of Pillow, DICOM takes pydicom. None of these is required: where a package is
missing, the file is refused by a line that names it.
"""

from __future__ import annotations

import importlib.util
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from src.script import UserError

if TYPE_CHECKING:
    from PIL import Image

Result = TypeVar("Result")
HEAD = 132  # bytes that tell the format
_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"\0\0\1\0", "ico"),
    (b"8BPS", "psd"),
    (b"qoif", "qoi"),
    (b"DDS ", "dds"),
    (b"\x01\xda", "sgi"),
    (b"\x59\xa6\x6a\x95", "sun"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic"
    ),
}
OPENCV = frozenset({"jpeg", "png", "gif", "bmp", "webp", "tiff"})
_PILLOW = {  # kind → Pillow's name
    "pnm": "PPM", "ico": "ICO", "psd": "PSD", "qoi": "QOI", "dds": "DDS", "sgi": "SGI",
    "sun": "SUN", "jpeg2000": "JPEG2000", "avif": "AVIF", "heic": "HEIF", "jxl": "JXL",
    "tiff": "TIFF",
}  # fmt: skip
_PLUGINS = {  # kind → modules that teach Pillow to read it, and the package to ask for
    "avif": (("pillow_avif", "pillow_heif"), "pillow-avif-plugin"),
    "heic": (("pillow_heif",), "pillow-heif"),
    "jxl": (("pillow_jxl",), "pillow-jxl-plugin"),
}
_NAMES = {"jpeg2000": "JPEG 2000", "jxl": "JPEG XL", "sun": "Sun raster"}
_NO_IMAGES = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the image: run git lfs pull"),
    (b"<!doctype html", "is a web page, not an image: download it again"),
    (b"<html", "is a web page, not an image: download it again"),
    (b"<svg", "is an SVG drawing: convert it to PNG"),
    (b"\x76\x2f\x31\x01", "is an OpenEXR image: convert it to PNG with 8 bits a channel"),
    (b"#?radiance", "is a Radiance HDR image: convert it to PNG with 8 bits a channel"),
    (b"pk\x03\x04", "is a ZIP archive: unpack it"),
    (b"simple  =", "is a FITS file: convert it to PNG"),
    (b"\x93numpy", "is a NumPy array: convert it to PNG"),
)


def find_kind(data: bytes) -> str:
    """Return the format that the first bytes of a file say, or "" for none that is known."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "")
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in b" \t\r\n":
        return "pnm" if len(data) > 2 else ""
    return "dicom" if data[128:132] == b"DICM" else ""


def lacking(kind: str) -> str:
    """Return what would have to be installed to read a format, or "" if nothing."""
    from PIL import features

    if kind == "dicom":
        return "" if _is_installed("pydicom") else "pip install pydicom"
    if kind == "jpeg2000" and not features.check("jpg_2000"):
        return "pip install -U pillow"
    if kind == "avif" and "avif" in features.modules and features.check("avif"):
        return ""
    modules, package = _PLUGINS.get(kind, ((), ""))
    if not modules or any(map(_is_installed, modules)):
        return ""
    return f"pip install {package}"


def describe(kind: str) -> str:
    """Return a format's name as its users write it."""
    return _NAMES.get(kind, kind.upper())


def refuse_unknown(data: bytes, name: Path | str) -> None:
    """Raise a UserError that says what a file that is no image is instead, and the remedy."""
    start = data[:HEAD].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    start = start.partition(b"?>")[2].lstrip() if start.startswith(b"<?xml") else start
    said = next((said for magic, said in _NO_IMAGES if start.startswith(magic)), "")
    if not said and not data.strip(b"\0"):
        said = "holds zeros alone: restore the file"
    if not said:
        said = (
            "is no image of a format that is read here (JPEG, PNG, WebP, BMP, GIF, TIFF and more): "
            "convert it to PNG, or restore it if it was an image"
        )
    raise UserError(f"{name} {said}")


def read_other_size(data: bytes, kind: str, name: Path | str) -> tuple[int, int]:
    """Return (width, height) of a file of a format beside :data:`OPENCV`, from its header.

    Raises:
        UserError: naming the package that is missing, or a damaged header.
    """
    if kind == "dicom":
        file = _guarded(lambda: _read_dicom(data, header=True), kind, name)
        return int(file.Columns), int(file.Rows)
    with _guarded(lambda: _open(data, kind), kind, name) as image:
        return image.size


def decode_other(data: bytes, kind: str, name: Path | str) -> np.ndarray:
    """Decode a file of a format beside :data:`OPENCV` to RGB (H, W, 3) uint8.

    EXIF orientation is applied, alpha dropped, 16 bits keep the upper eight. DICOM: the first
    frame through its own tables and window (or from its least to its largest value).

    Raises:
        UserError: naming the package that is missing, or a damaged file.
    """
    if kind == "dicom":
        return _guarded(lambda: _dicom_rgb(data), kind, name)
    return _guarded(lambda: pillow_rgb(_open(data, kind)), kind, name)


def pillow_rgb(image: Image.Image) -> np.ndarray:
    """Return an image of Pillow's as RGB (H, W, 3) uint8, turned as its EXIF says."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError("floating-point numbers: save it with 8 bits a channel")
    return np.array(image.convert("RGB"))


def _guarded(read: Callable[[], Result], kind: str, name: Path | str) -> Result:
    remedy = lacking(kind)
    if remedy:
        raise UserError(f"{name} is a {describe(kind)} image: {remedy}, or convert it to PNG")
    try:
        return read()
    except MemoryError:
        raise
    except UserError as error:
        raise UserError(f"{name} holds {error}") from error
    except Exception as error:  # each decoder has its own
        if type(error).__name__ == "DecompressionBombError":
            raise UserError(f"{name} is above the limit of pixels: shrink or remove it") from error
        raise UserError(
            f"{name} is damaged or cut short ({describe(kind)}): restore the file"
        ) from error


def _open(data: bytes, kind: str) -> Image.Image:
    from PIL import Image

    for name in filter(_is_installed, _PLUGINS.get(kind, ((), ""))[0]):
        plugin = importlib.import_module(name)
        if name == "pillow_heif":
            plugin.register_heif_opener()
    return Image.open(io.BytesIO(data), formats=[_PILLOW[kind]])


def _read_dicom(data: bytes, *, header: bool = False) -> Any:
    import pydicom

    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=header)


def _dicom_rgb(data: bytes) -> np.ndarray:
    try:
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:  # before pydicom 3
        from pydicom.pixel_data_handlers.util import apply_modality_lut, apply_voi_lut

    file = _read_dicom(data)
    pixels = file.pixel_array
    pixels = pixels[0] if int(getattr(file, "NumberOfFrames", 1) or 1) > 1 else pixels
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels[..., :3], np.uint8)
    values = np.asarray(apply_voi_lut(apply_modality_lut(pixels, file), file), np.float64)
    low, high = values.min(), values.max()
    grey = ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
    grey = 255 - grey if file.PhotometricInterpretation == "MONOCHROME1" else grey
    return np.repeat(grey[..., None], 3, axis=2)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


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


# How (width, height) stands in a header; they raise what struct, indexing and Pillow raise.
SIZE_READERS: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "jpeg": _jpeg_size,
    "png": lambda data: struct.unpack_from(">II", data, 16),
    "gif": lambda data: struct.unpack_from("<HH", data, 6),
    "bmp": _bmp_size,
    "webp": _webp_size,
    "tiff": _tiff_size,
}
