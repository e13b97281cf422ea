from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.decode import decode_mask
from src.data.sources.labels import decode_foreground
from tests.data.layout import refused

GREY = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)


def with_alpha(path: Path, *channels: np.ndarray) -> Path:
    Image.fromarray(np.dstack(channels)).save(path)
    return path


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_an_even_alpha_channel_says_nothing(tmp_path: Path) -> None:
    for alpha in (np.full_like(GREY, 255), np.zeros_like(GREY)):
        for channels in ((GREY, GREY, GREY, alpha), (GREY, alpha)):
            mask = decode_mask(with_alpha(tmp_path / "m.png", *channels))
            assert mask.dtype == np.uint8 and np.array_equal(mask, GREY)
    assert decode_foreground(tmp_path / "m.png").sum() == 3
    refused(
        "unknown labels 9",
        decode_mask,
        with_alpha(tmp_path / "m.png", GREY // 28, GREY * 0),
        num_classes=2,
    )


def test_alpha_that_varies_or_colours_are_refused(tmp_path: Path) -> None:
    refused(
        r"m\.png has a transparency that varies",
        decode_mask,
        with_alpha(tmp_path / "m.png", *[GREY * 0] * 3, GREY),
    )
    refused(
        "holds colours",
        decode_mask,
        with_alpha(tmp_path / "m.png", GREY, GREY, GREY * 0, GREY | 255),
    )


@pytest.mark.parametrize("kind", [bool, np.float32, np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("last", [(), (1,)])
def test_arrays_of_whole_numbers(tmp_path: Path, kind: type, last: tuple[int, ...]) -> None:
    labels = np.array([[0, 1, 1], [0, 0, 1]]).astype(kind).reshape(2, 3, *last)
    mask = decode_mask(save(tmp_path / "m.npy", labels), num_classes=2)
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1, 1], [0, 0, 1]]


def test_fractions_and_other_shapes_are_refused(tmp_path: Path) -> None:
    for value in (0.5, np.nan, np.inf, 2.0**40):
        refused(
            r"m\.npy holds fractions", decode_mask, save(tmp_path / "m.npy", np.array([[0, value]]))
        )
    for shape in ((2, 3, 2), (6,), (0, 3)):
        refused("expected 2-D integers", decode_mask, save(tmp_path / "m.npy", np.zeros(shape)))


def test_what_is_no_mask_is_named(tmp_path: Path) -> None:
    for name in ("m.png", "m.npy"):
        (tmp_path / name).write_bytes(b"no mask")
        refused(name, decode_mask, tmp_path / name)
