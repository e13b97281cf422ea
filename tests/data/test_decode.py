import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import decode
from src.data.decode import decode_image, decode_mask, read_size
from src.script import UserError
from tests.data.layout import refused, save

READS_GIF = pytest.mark.skipif(
    not decode.READS_GIF, reason=f"OpenCV {cv2.__version__} reads no GIF: 4.12 or newer does"
)


@pytest.fixture
def pixels():
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC)


def difference(one, other):
    assert one.shape == other.shape and one.dtype == np.uint8
    return np.abs(one.astype(int) - other.astype(int)).mean()


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.webp", "사진.png"])
def test_lossless_formats_give_the_very_pixels_in_rgb_order(tmp_path, pixels, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert (decode_image(save(tmp_path / name, pixels, **options)) == pixels).all()


def test_jpeg_is_rgb_and_extension_does_not_matter(tmp_path, pixels):
    path = save(tmp_path / "a.png", pixels, "JPEG", quality=95)
    assert difference(decode_image(path), pixels) < 2


@pytest.mark.parametrize(
    ("short_side", "expected"),
    [(None, 120), (121, 120), (61, 120), (60, 60), (31, 60), (30, 30), (15, 15), (1, 15)],
)
def test_jpeg_is_reduced_only_while_the_short_side_suffices(tmp_path, pixels, short_side, expected):
    path = save(tmp_path / "a.jpg", pixels, quality=95)
    image = decode_image(path, short_side=short_side)
    assert image.shape == (expected, expected * 4 // 3, 3)
    wanted = cv2.resize(pixels, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert difference(image, wanted) < 6  # right colours: red and blue swapped would give ~60


def test_png_is_never_reduced(tmp_path, pixels):
    assert decode_image(save(tmp_path / "a.png", pixels), short_side=10).shape == (120, 160, 3)


@pytest.mark.parametrize("short_side", [None, 60])
def test_exif_rotation_is_applied(tmp_path, pixels, short_side):
    exif = Image.Exif()
    exif[0x112] = 6  # turn 90 degrees clockwise to view
    path = save(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    turned = np.ascontiguousarray(np.rot90(pixels, -1))
    image = decode_image(path, short_side=short_side)
    wanted = cv2.resize(turned, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert image.shape[0] > image.shape[1] and difference(image, wanted) < 4


def test_cmyk_grey_and_palette_become_rgb(tmp_path, pixels):
    image = Image.fromarray(pixels)
    cmyk = save(tmp_path / "a.jpg", image.convert("CMYK"), quality=95)
    assert difference(decode_image(cmyk), pixels) < 2
    grey = decode_image(save(tmp_path / "grey.png", image.convert("L")))
    assert (grey == np.asarray(image.convert("L"))[..., None]).all()
    palette = image.quantize(32)
    for name in ("p.png", "p.bmp", "p.tif"):
        found = decode_image(save(tmp_path / name, palette))
        assert (found == np.asarray(palette.convert("RGB"))).all()


@READS_GIF
def test_gif(tmp_path, pixels):
    palette = Image.fromarray(pixels).quantize(32)
    found = decode_image(save(tmp_path / "p.gif", palette))
    assert (found == np.asarray(palette.convert("RGB"))).all()


def test_gif_is_refused_with_a_remedy_where_opencv_reads_none(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(decode, "READS_GIF", False)
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: None)
    refused(
        r"a\.gif is a GIF.* PNG, or pip install .*>=4\.12",
        decode_image,
        save(tmp_path / "a.gif", pixels),
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_not_saturated(tmp_path, pixels, name):
    cv2.imwrite(str(tmp_path / name), pixels[..., ::-1].astype(np.uint16) * 257)
    assert (decode_image(tmp_path / name) == pixels).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_dropped_and_colours_stay(tmp_path, pixels, name):
    alpha = np.full((120, 160, 1), 255, np.uint8)
    alpha[:, :80] = 0
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, np.concatenate([pixels, alpha], 2), **options)
    assert (decode_image(path) == pixels).all()


@pytest.mark.parametrize(
    "name", [pytest.param("a.gif", marks=READS_GIF), "a.webp", "a.png", "a.tif"]
)
def test_the_first_frame_of_an_animation_counts(tmp_path, name):
    frames = [Image.new("RGB", (40, 30), (shade,) * 3) for shade in (10, 100, 200)]
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    image = decode_image(path)
    assert image.shape == (30, 40, 3) and (np.abs(image.astype(int) - 10) <= 1).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000)])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp"])
def test_odd_sizes(tmp_path, size, name):
    path = save(tmp_path / name, Image.new("RGB", size, (200, 50, 20)))
    for short_side in (None, 64):
        assert decode_image(path, short_side=short_side).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "a.gif"])
def test_truncation_is_refused_by_name(tmp_path, pixels, name):
    whole = save(tmp_path / name, pixels).read_bytes()
    for keep in (4, 20, len(whole) // 3, len(whole) // 2, len(whole) - 2):
        (tmp_path / name).write_bytes(whole[:keep])
        refused(name, decode_image, tmp_path / name)


def test_truncated_tiff_with_alpha_is_refused_by_name(tmp_path, pixels):
    path = save(tmp_path / "a.tif", np.dstack([pixels, pixels[..., :1]]), compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:-2000])
    refused(r"a\.tif", decode_image, path)


def test_png_with_a_flipped_bit_is_refused(tmp_path, pixels):
    path = save(tmp_path / "a.png", pixels)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    refused(r"a\.png", decode_image, path)


def bomb(kind, side=60000):
    if kind == "png":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        return (
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
            + struct.pack(">I", zlib.crc32(chunk)) + bytes(50)
        )  # fmt: skip
    if kind == "jpeg":
        frame = struct.pack(">HBHHB", 17, 8, side, side, 3) + bytes(9)
        return b"\xff\xd8\xff\xe0" + struct.pack(">H", 4) + b"\0\0\xff\xff\xc2" + frame + bytes(50)
    if kind == "gif":
        return b"GIF89a" + struct.pack("<HH", side, side) + bytes(50)
    if kind == "bmp":
        return b"BM" + bytes(12) + struct.pack("<Iii", 40, side, -side) + bytes(50)
    if kind == "webp":
        wide = (16382).to_bytes(3, "little")
        return b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + wide + wide + bytes(50)
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "TIFF")
    data = out.getvalue()
    for tag in (256, 257):
        old, new = struct.pack("<HHII", tag, 4, 1, 8), struct.pack("<HHII", tag, 4, 1, side)
        data = data.replace(old, new)
    return data


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(decode.cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    (tmp_path / "bomb.jpg").write_bytes(bomb(kind))
    refused(r"bomb\.jpg has .* above the limit", decode_image, tmp_path / "bomb.jpg")
    if kind != "jpeg":
        refused(r"bomb\.jpg has .* above the limit", decode_mask, tmp_path / "bomb.jpg")


def test_the_limit_of_pixels_is_exact(tmp_path, pixels, monkeypatch):
    path = save(tmp_path / "a.png", pixels)
    monkeypatch.setattr(decode, "MAX_PIXELS", 160 * 120)
    decode_image(path)
    monkeypatch.setattr(decode, "MAX_PIXELS", 160 * 120 - 1)
    refused("160x120", decode_image, path)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08"}])
def test_webp_headers_of_all_three_kinds(tmp_path, pixels, options):
    data = save(tmp_path / "a.webp", pixels, **options).read_bytes()
    assert read_size(data) == (160, 120, "webp")


def test_what_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.jpg").write_text("hello, this is a text of some length")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("text", "empty", "folder", "loop", "pipe", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.jpg") as caught:
            decode_image(tmp_path / f"{name}.jpg")
        assert "\n" not in str(caught.value)


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_any_mutation_gives_an_image_or_a_named_refusal(kind, edits, keep):
    out = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).save(out, kind)
    data = bytearray(out.getvalue())
    for place, value in edits:
        data[int(place * min(len(data), 120))] = value  # the header is where it hurts
    data = bytes(data[: max(1, int(keep * 2 * len(data)))])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "MAX_PIXELS", 10**6)
            image = decode.decode_bytes(data, "some.jpg", short_side=4)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    except UserError as error:
        assert "some.jpg" in str(error)


def test_no_memory_is_not_mistaken_for_damage(tmp_path, pixels, monkeypatch):
    def exhausted(*_):
        error = cv2.error("Insufficient memory")
        error.code = cv2.Error.StsNoMem
        raise error

    path = save(tmp_path / "a.jpg", pixels)
    monkeypatch.setattr(decode.cv2, "imdecode", exhausted)
    with pytest.raises(MemoryError, match=r"a\.jpg"):
        decode_image(path)


@pytest.mark.parametrize(
    ("channels", "compression", "bits"), [(1, "NONE", 32), (3, "NONE", 32), (3, "SGILOG", 16)]
)
def test_floats_in_a_tiff_are_not_called_damage(tmp_path, channels, compression, bits):
    kind = getattr(cv2, f"IMWRITE_TIFF_COMPRESSION_{compression}")
    options = [cv2.IMWRITE_TIFF_COMPRESSION, kind]
    cv2.imwrite(str(tmp_path / "a.tif"), np.full((8, 8, channels), 0.5, np.float32), options)
    refused(
        rf"a\.tif holds floating-point numbers of {bits} bits", decode_image, tmp_path / "a.tif"
    )
    Image.fromarray(np.full((8, 8), 99_999, np.int32)).save(tmp_path / "b.tif")
    refused(
        r"b\.tif holds whole numbers of 32 bits: save it with 8", decode_image, tmp_path / "b.tif"
    )
