"""Lays down small data folders and files for the tests of data."""

from PIL import Image


def lay(root, *files, **texts):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image of " + file.encode())
    for name, text in texts.items():
        (root / f"{name}.csv").write_bytes(text.encode())
    return root


def rows(index, *columns):
    return list(index.table[list(columns)].itertuples(index=False, name=None))


def save(path, image, kind=None, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        path, kind, **options
    )
    return path
