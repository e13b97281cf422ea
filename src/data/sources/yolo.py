"""YOLO's segmentation labels in, label masks out: a text file of polygons beside each image.

A line is a class and the corners ``x y x y …`` in shares of the sides. Layouts: docs/layouts.md.
https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from src.data.files import below, split_of_word
from src.data.sources.folders import read_classes
from src.data.sources.labelme import Drawing, drawing_source
from src.data.sources.masks import IMAGE_SUFFIXES, image_header
from src.data.sources.names import Locator, read_lines, read_text
from src.data.sources.places import list_below, read_place
from src.script import UserError


def draw_labels(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the images, with their files of labels and without.

    Raises:
        UserError: boxes alone, or a damaged line.
    """
    root = locator.root
    names = read_names(root)
    folders = read_folders_of_splits(root)
    boxes = polygons = 0
    pairs = list(find_labels(root))
    tests = {image: text for image, text in pairs if _is_test(root, image)}
    blind = set() if any(tests.values()) else tests.keys()  # to be predicted
    for image, text in (pair for pair in pairs if pair[0] not in blind):
        sides = image_header(image)[:2]
        outlines = []
        for number, line in enumerate(read_lines(text) if text else (), start=1):
            label, polygon = _read_line(line, text, number)
            boxes, polygons = boxes + (not polygon), polygons + bool(polygon)
            points = [value * sides[place % 2] for place, value in enumerate(polygon)]
            outlines.append((names.get(label, f"class_{label}"), points))
        split = next((s for place, s in folders.items() if image.is_relative_to(place)), "")
        yield Drawing(text or image, "0", image, outlines, split)
    if boxes and not polygons:
        raise UserError(
            f"{root}: the labels are {boxes} boxes, no polygons: export the set for segmentation"
        )


def find_labels(root: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield each image below ``root`` and its file of labels; None where it has none."""
    for _, image in list_below(root, IMAGE_SUFFIXES):
        folder = f"/{below(root, image.parent)}/"
        head, found, tail = folder.rpartition("/images/")  # the innermost one
        folder = f"{head}/labels/{tail}" if found else folder
        text = root / folder.strip("/") / f"{image.stem}.txt"
        yield image, text if text.is_file() or text.is_symlink() else None


def _is_test(root: Path, image: Path) -> bool:
    return read_place(image.parent.relative_to(root).parts).split == "test"


def _read_line(line: str, path: Path | None, number: int) -> tuple[int, list[float]]:
    """Return the class and the polygon in shares of the sides, [] for a box."""
    try:
        label, *values = [float(word) for word in line.split()]
        if label % 1 or len(values) < 4 or len(values) % 2:
            raise ValueError(f"{len(values)} numbers behind the class")
        if not all(-0.5 <= value <= 1.5 for value in values):
            raise ValueError("a corner that is no share of a side")
    except ValueError as error:
        raise UserError(f"{path}, line {number}: no YOLO label ({error}): mend it") from error
    return int(label), values if len(values) > 4 else []


def read_names(root: Path) -> dict[int, str]:
    """Read the names of the classes from the YAML file, or the list, that has them."""
    names = _read_yaml(root).get("names")
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict):
        return {int(number): str(name) for number, name in names.items()}
    return dict(enumerate(read_classes(root)))


def read_folders_of_splits(root: Path) -> dict[Path, str]:
    """Return {folder: split} that the YAML file names with ``train``, ``val`` and ``test``.

    Of a path the longest end that is there counts: ``../datasets/x/images/a`` is ``images/a``.
    """
    content = _read_yaml(root)
    found: dict[Path, str] = {}
    for key in ("train", "val", "test"):
        said = content.get(key)
        for text in said if isinstance(said, list) else [said]:
            parts = [part for part in str(text or "").split("/") if part not in ("", ".", "..")]
            ends = (root.joinpath(*parts[start:]) for start in range(len(parts)))
            folder = next((end for end in ends if end.is_dir()), None)
            if folder:  # one that is both is divided by folds
                found.setdefault(folder, split_of_word(key))
    return found


def _read_yaml(root: Path) -> dict[str, Any]:
    """Read the YAML file that names classes, {} where there is none."""
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        try:
            content: Any = yaml.safe_load(read_text(path))
        except yaml.YAMLError:
            continue
        if isinstance(content, dict) and content.get("names"):
            return content
    return {}


def is_yolo(root: Path) -> bool:
    """Tell whether labels of YOLO lie below ``root``."""
    first = next((text for _, text in find_labels(root) if text), None)
    if first is None:
        return False
    lines = read_text(first).splitlines()[:1] or [""]
    try:
        return len([float(word) for word in lines[0].split()]) >= 5
    except ValueError:
        return False


SOURCE = drawing_source(
    "yolo", draw_labels, is_yolo, " holds no images: put them beside the folder labels/"
)
