"""Lays down small data folders and files for the tests of data."""

import io

import numpy as np
import pytest
from PIL import Image

from src.data.index import read_train
from src.script import UserError

NAMES = [f"{number}.jpg" for number in range(12)]


def table(*columns, head="image,label"):
    return "\n".join([head, *map(",".join, zip(*columns, strict=True))])


def lay(root, *files, **texts):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image of " + file.encode())
    for name, text in texts.items():
        (root / f"{name}.csv").write_bytes(text.encode())
    return root


def photos(root, folder, *names):
    return lay(root, *(f"{folder}/{name}" for name in names))


def rows(index, *columns):
    return list(index.table[list(columns)].itertuples(index=False, name=None))


def save(path, image, kind=None, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        path, kind, **options
    )
    return path


def photo(kind):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), 90, np.uint8)).save(file, kind)
    return file.getvalue()


def put(root, *files, kind="JPEG"):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(photo(kind))
    return root


def pairs(root):
    return rows(read_train(root), "image", "target")


def refused(message, call, *args, **options):
    """Assert that ``call`` of the arguments is refused in words that match ``message``."""
    with pytest.raises(UserError, match=message):
        call(*args, **options)
