"""Tiny raw data sets, written file by file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (6, 8)  # H, W


class Disk:
    """Writes files below ``root``; every image is 8 wide and 6 high unless told otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(self, *names: str) -> None:
        for name in names:
            Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(self.path(name))

    def mask(self, name: str, values: dict[tuple[int, int], object], *, palette=False) -> None:
        """Write zeros with ``values`` at (row, column); tuples make it an RGB file."""
        coloured = any(isinstance(value, tuple) for value in values.values())
        pixels = np.zeros((*SIZE, 3) if coloured else SIZE, np.uint8)
        for place, value in values.items():
            pixels[place] = value
        image = Image.fromarray(pixels)
        if palette:
            image.putpalette([(37 * i) % 256 for i in range(768)])
        image.save(self.path(name))

    def text(self, name: str, *lines: str) -> None:
        self.path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def json(self, name: str, content: object) -> None:
        self.path(name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


@pytest.fixture(autouse=True)
def _quiet():
    """Pillow warns of what it skips in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
