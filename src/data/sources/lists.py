"""Split lists: text files that name the images of train, val and test.

A list is ``train.txt``, ``val.txt`` (or ``valid.txt``) or ``test.txt``, also ``train_list.txt`` and
``train_gt.txt``, beside the images or in ``list/``, ``lists/``, ``splits/`` or
``ImageSets/Segmentation/``. A line is an image, or an image and its mask.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from src.data.sources.masks import IMAGE_SUFFIXES
from src.data.sources.places import split_of_name
from src.script import UserError

FOLDERS = (".", "list", "lists", "splits", "ImageSets/Segmentation")


def read_text(path: Path) -> str:
    """Read a text file in NFC, "" where there is no such file.

    Raises:
        UserError: it is not UTF-8.
    """
    if not path.is_file():
        return ""
    try:
        return unicodedata.normalize("NFC", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} in line {line}): save it "
            "as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank; [] where there is no such file."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_list(path: Path) -> list[str]:
    """Read the first word of every line of a text file; [] where there is no such file."""
    return [line.split()[0] for line in read_lines(path)]


def find_lists(root: Path) -> list[tuple[Path, str]]:
    """Return the lists of the first folder that has any, as (path, split)."""
    for folder in FOLDERS:
        paths = sorted((root / folder).glob("*.txt")) if (root / folder).is_dir() else []
        found = [(path, split_of_name(path.stem)) for path in paths]
        found = [(path, split) for path, split in found if split]
        if found:
            return sorted(found, key=lambda item: ("train", "valid", "test").index(item[1]))
    return []


def read_split_lists(root: Path, known: Collection[str]) -> dict[str, str]:
    """Read the lists of ``root`` as {id: split}; {} where none exists.

    A line names an image by its id, its file name or a path; a blank may be part of the name, or
    part it from what follows.

    Args:
        root: the data folder.
        known: ids of the images; a line that names none of them is kept by its first word.

    Raises:
        UserError: one image stands in two lists, or no line names an image.
    """
    splits: dict[str, str] = {}
    lists: dict[str, str] = {}
    for path, split in find_lists(root):
        for line in read_lines(path):
            ids = list(_ids(line)) or [line]
            key = next((place for place in ids if place in known), ids[-1])
            if splits.setdefault(key, split) != split:
                raise UserError(
                    f"{path.parent}: {key} is in {lists[key]} and {path.name}: pick one"
                )
            lists.setdefault(key, path.name)
    if splits and known and not any(key in known for key in splits):
        raise UserError(
            f"{root}: the lists name none of the images, {next(iter(splits))} for instance, "
            f"where images are like {next(iter(known))}: write their names, or remove the lists"
        )
    return splits


def read_pair_lists(root: Path) -> dict[Path, Path]:
    """Read the lists whose lines name an image and its mask: {image: mask}, both existing."""
    pairs = {}
    for path, _ in find_lists(root):
        for line in read_lines(path):
            words = line.replace("\\", "/").replace(",", " ").split()
            if len(words) < 2 or ".." in line:
                continue
            image, mask = (root / word.lstrip("/") for word in words[:2])
            if mask.suffix.lower() in IMAGE_SUFFIXES and image.is_file() and mask.is_file():
                pairs[image] = mask
    return pairs


def _ids(line: str) -> Iterator[str]:
    """Yield what ``line`` may mean, likeliest first: the whole line, then its first word."""
    for text in (line, line.split()[0].split(",")[0]):
        path = PurePosixPath(text.replace("\\", "/"))
        path = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
        parts = path.parts[1:] if path.is_absolute() else path.parts
        for start in range(len(parts)):  # a folder may be part of the id
            yield "/".join(parts[start:])
