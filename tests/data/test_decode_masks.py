import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data.decode import decode_mask
from tests.data.layout import refused, save

LABELS = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def test_masks_are_read_as_indices(tmp_path):
    palette = Image.fromarray(LABELS, "P")
    palette.putpalette([(7 * i) % 256 for i in range(768)])
    for path in (
        save(tmp_path / "grey.png", LABELS),
        save(tmp_path / "palette.png", palette),
        save(tmp_path / "rgb.png", np.repeat(LABELS[..., None], 3, 2)),
        save(tmp_path / "a.tif", LABELS),
        save(tmp_path / "a.bmp", LABELS),
    ):
        mask = decode_mask(path, num_classes=4)
        assert mask.dtype == np.uint8 and (mask == LABELS).all(), path


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_low_bit_depths_are_not_stretched(tmp_path, depth):
    labels = np.array([[0, 1, 1, 0, 1, 0, 0, 1]] if depth == 1 else [[0, 1, 2, 3, 3, 2, 1, 0]])
    rows = (
        b"\0"
        + np.packbits((labels[0][:, None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)).tobytes()
    )

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 8, 1, depth, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    assert (decode_mask(tmp_path / "a.png") == labels).all()


def test_many_labels_and_npy(tmp_path):
    wide = np.array([[0, 70000], [300, 1]])
    np.save(tmp_path / "a.npy", wide)
    mask = decode_mask(tmp_path / "a.npy")
    assert mask.dtype == np.int32 and (mask == wide).all()
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 300]], np.uint16))
    assert decode_mask(tmp_path / "a.png").tolist() == [[0, 300]]
    np.save(tmp_path / "b.npy", np.array([[True, False]]))
    assert decode_mask(tmp_path / "b.npy").tolist() == [[1, 0]]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_hostile_npy_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "evil.npy", np.array([[Evil()]], object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Evil()))
    for name in ("evil", "raw"):
        refused(rf"{name}\.npy", decode_mask, tmp_path / f"{name}.npy")
    assert not (tmp_path / "ran").exists()


def test_an_npy_header_that_lies_costs_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.uint8))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(2, 3), }       ", b"(900000, 90000)}")
    (tmp_path / "a.npy").write_bytes(data)
    refused(r"a\.npy", decode_mask, tmp_path / "a.npy")


def test_wrong_masks_are_refused_by_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    path = save(tmp_path / "a.png", LABELS)
    refused(
        r"a\.png holds unknown labels 3: expected 0\.\.2 or 255", decode_mask, path, num_classes=3
    )
    refused("unknown labels 255", decode_mask, path, num_classes=4, ignore_index=None)
    refused("colours", decode_mask, save(tmp_path / "rgb.png", pixels))
    refused("JPEG", decode_mask, save(tmp_path / "a.jpg", LABELS))
    np.save(tmp_path / "float.npy", np.zeros((2, 2, 2)))
    refused("expected 2-D integers", decode_mask, tmp_path / "float.npy")
    np.save(tmp_path / "negative.npy", np.array([[-2, 0]]))
    refused("unknown labels -2", decode_mask, tmp_path / "negative.npy", num_classes=2)
    whole = save(tmp_path / "cut.png", np.zeros((50, 50), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    refused(r"cut\.png", decode_mask, tmp_path / "cut.png")


@pytest.mark.parametrize("number", [2**32, 2**31, -(2**31) - 1])
def test_labels_that_would_wrap_are_refused(tmp_path, number):
    for shape in ((2, 3), (2, 3, 1)):
        np.save(tmp_path / "m.npy", np.full(shape, number, np.int64))
        refused(f"m.npy holds {number}, which is no label", decode_mask, tmp_path / "m.npy")
