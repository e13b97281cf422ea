"""Text files that name images in, the split of every image out."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from src.data.sources.masks import IMAGE_SUFFIXES
from src.script import UserError


def read_list(path: Path) -> list[str]:
    """Read the first word of every line of a text file; [] where there is no such file."""
    return [line.split()[0] for line in _lines(path)]


def read_split_lists(folder: Path, known: Collection[str]) -> dict[str, str]:
    """Read train.txt, val.txt (or valid.txt) and test.txt as {id: split}; {} where none exists.

    A line names an image by its id, its file name or a path; a blank may be part of the name, or
    part it from what follows.

    Args:
        folder: of the lists.
        known: ids of the images; a line that names none of them is kept by its first word.

    Raises:
        UserError: one image stands in two lists, or no line names an image.
    """
    splits: dict[str, str] = {}
    for name in ("train", "val", "valid", "test"):
        split = "valid" if name == "val" else name
        for line in _lines(folder / f"{name}.txt"):
            ids = list(_ids(line)) or [line]
            key = next((place for place in ids if place in known), ids[-1])
            if splits.setdefault(key, split) != split:
                raise UserError(f"{folder}: {key} is in {splits[key]}.txt and {name}.txt: pick one")
    if splits and known and not any(key in known for key in splits):
        raise UserError(
            f"{folder}: the lists name none of the images, {next(iter(splits))} for instance, "
            f"where images are like {next(iter(known))}: write their names, or remove the lists"
        )
    return splits


def _ids(line: str) -> Iterator[str]:
    """Yield what ``line`` may mean, likeliest first: the whole line, then its first word."""
    for text in (line, line.split()[0]):
        path = PurePosixPath(text)
        path = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
        for start in range(len(path.parts)):  # a folder may be part of the id
            yield "/".join(path.parts[start:])


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig")).splitlines()
    return [line.strip() for line in lines if line.strip()]
