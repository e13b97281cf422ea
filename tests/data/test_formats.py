"""Formats beside OpenCV's, by content: decoded where a package can, else refused by its name."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image, features

from src.data import formats
from src.data.decode import decode_bytes, read_size
from src.data.formats import find_kind, lacking
from src.data.index import read_test, read_train
from tests.data.layout import refused

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (6, 8, 3), np.uint8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
DICOM = bytes(128) + b"DICM" + bytes(100)


def encode(kind, image=PIXELS, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("saved", "kind"), [("PPM", "pnm"), ("JPEG2000", "jpeg2000"), ("ICO", "ico"), ("SGI", "sgi")]
)
def test_formats_that_pillow_reads(saved, kind):
    image = np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))
    image = image[:, :24] if saved == "ICO" else image  # 24 x 24, one of the sizes it has
    options = {"sizes": [(24, 24)]} if saved == "ICO" else {}
    data = encode(saved, image, **options)
    assert find_kind(data) == kind
    assert read_size(data) == (image.shape[1], image.shape[0], kind)
    np.testing.assert_array_equal(decode_bytes(data), image)


@pytest.mark.skipif("avif" not in features.modules or not features.check("avif"), reason="Pillow")
def test_avif():
    data = encode("AVIF", np.full((32, 40, 3), (200, 30, 90), np.uint8), quality=95)
    assert read_size(data) == (40, 32, "avif")
    assert np.abs(decode_bytes(data).astype(int) - (200, 30, 90)).max() <= 4


def test_grey_of_sixteen_bits_keeps_the_upper_eight():
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
    text = b"P5\n8 6\n65535\n" + deep.astype(">u2").tobytes()
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_bytes(text), expected)


def test_the_limit_of_pixels_holds_before_decoding():
    refused("above the limit", decode_bytes, b"P6\n100000 100000\n255\n" + bytes(10))


@pytest.mark.parametrize(
    ("data", "name", "package"),
    [(HEIC, "HEIC", "pillow-heif"), (DICOM, "DICOM", "pydicom"),
     (b"\xff\x0a" + bytes(200), "JPEG XL", "pillow-jxl-plugin")],
)  # fmt: skip
def test_a_missing_package_is_named(monkeypatch, tmp_path, data, name, package):
    monkeypatch.setattr(formats, "_is_installed", lambda module: False)
    refused(rf"x is a {name} image: pip install {package}, or convert", decode_bytes, data, "x")
    for place in ("train/a/1.png", "train/b/1.png", "test/1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(encode("PNG"))
    for place in ("train/a/2.odd", "test/2.odd"):
        (tmp_path / place).write_bytes(data)
    said = f"1 file .odd left out, first train/a/2.odd: {name}: pip install {package}, or"
    assert any(note.startswith(said) for note in read_train(tmp_path).notes)
    refused(rf"1 file \.odd .*{name}: pip install {package}", read_test, tmp_path)


def test_heic_goes_through_its_plugin(monkeypatch):
    pytest.importorskip("pillow_heif")
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = encode("HEIF", np.full((32, 40, 3), 120, np.uint8))
    assert read_size(data) == (40, 32, "heic")
    assert np.abs(decode_bytes(data).astype(int) - 120).max() <= 6


def test_a_plugin_is_registered_before_pillow_opens(monkeypatch):
    """The plug-in of this test decodes whatever begins as HEIC to a plane of 7."""
    from PIL import ImageFile

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode = (4, 3), "RGB"
            self.tile = []

        def load(self):
            self._im = Image.new("RGB", (4, 3), (7, 7, 7)).im
            return super().load()

    def register():
        Image.register_open("HEIF", Heif, lambda head: head[4:8] == b"ftyp")

    fake = types.SimpleNamespace(register_heif_opener=register, __spec__=True)
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    monkeypatch.setattr(formats, "_is_installed", lambda module: module == "pillow_heif")
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert lacking("heic") == "" and read_size(HEIC) == (4, 3, "heic")


def test_dicom():
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
    file.Rows, file.Columns, file.SamplesPerPixel = 2, 3, 1
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.PixelData = np.array([[0, 1000, 2000], [3000, 4000, 2000]], np.uint16).tobytes()
    for photometric, expected in (
        ("MONOCHROME2", [[0, 64, 128], [191, 255, 128]]),
        ("MONOCHROME1", [[255, 191, 127], [64, 0, 127]]),
    ):
        file.PhotometricInterpretation = photometric
        buffer = io.BytesIO()
        file.save_as(buffer, enforce_file_format=True)
        data = buffer.getvalue()
        assert read_size(data) == (3, 2, "dicom")
        np.testing.assert_array_equal(decode_bytes(data)[..., 1], expected)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not an image: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, .* git lfs pull"),
        (bytes(500), "holds zeros alone: restore the file"),
        (b"<?xml version='1.0'?><svg></svg>", "is an SVG drawing: convert it to PNG"),
        (b"what is this", "is no image of a format that is read here .* convert it to PNG"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data, said):
    refused(said, decode_bytes, data, "x.jpg")


def test_bands_and_compressions_of_tiff():
    refused("holds 5 bands: save three of them as an RGB", decode_bytes, five_bands(), "x.tif")
    if features.check("libtiff"):
        data = encode("TIFF", compression="zstd")
        np.testing.assert_array_equal(decode_bytes(data), PIXELS)


def five_bands():
    """Return a TIFF of 4 x 2 pixels and five bands of 8 bits."""
    entries = [(256, 4), (257, 2), (259, 1), (262, 2), (277, 5), (278, 2), (279, 40)]
    start = 8 + 2 + 12 * (len(entries) + 3) + 4
    fields = [(tag, 3, 1, value) for tag, value in entries]
    fields += [(258, 3, 5, start), (273, 4, 1, start + 14), (338, 3, 2, 0)]
    table = b"".join(
        np.array([tag, kind], "<u2").tobytes() + np.array([count, value], "<u4").tobytes()
        for tag, kind, count, value in sorted(fields)
    )
    head = b"II*\0" + np.array([8], "<u4").tobytes() + np.array([len(fields)], "<u2").tobytes()
    return head + table + bytes(4) + np.full(5, 8, "<u2").tobytes() + bytes(4) + bytes(40)
