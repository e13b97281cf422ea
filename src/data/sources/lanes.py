"""Road images with lanes in, the two-class index table with neighbouring frames grouped out.

Forms, recognised by what lies in the folder:
- TuSimple: ``label_data_*.json``, ``test_label.json`` (one JSON a line) and ``clips/``; the
  polylines are drawn. https://github.com/TuSimple/tusimple-benchmark
- COCO polygons, see ``coco.py``; every category is lane, and a note says so.
- ``images/`` + ``masks/`` folders, see ``folders.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.decode import read_bytes, read_size
from src.data.sources.coco import has_annotations, read_coco
from src.data.sources.folders import read_folders
from src.data.sources.frames import group_clips
from src.data.sources.masks import MaskIndex, Row, build_index, note_count, note_missing
from src.script import UserError

CLASSES = ("background", "lane")
KNOWN_TUSIMPLE = {"": 3626, "test": 2782}
LINE_WIDTH = 5  # pixels at 1280x720; the benchmark gives centre lines only


def read_lanes(root: Path | str, *, block: int = 50, line_width: int = LINE_WIDTH) -> MaskIndex:
    """List lane images of any of the three forms.

    Args:
        root: the unpacked folder.
        block: at most so many neighbouring frames form one group.
        line_width: of drawn polylines, in pixels of the original image.

    Raises:
        UserError: none of the forms, or damaged labels.
    """
    root = Path(root)
    if _label_files(root):
        return _read_tusimple(root, block, line_width)
    if has_annotations(root):
        return read_coco(root, merged=CLASSES[1], block=block)
    return read_folders(root, classes=CLASSES, labels="binary", frames=block)


@dataclass(frozen=True)
class PolylineDecoder:
    """Draw the lanes of one frame: "labels.json#line" below ``root`` -> (H, W) uint8.

    Attributes:
        root: the folder that targets are relative to.
        lanes: target -> (path of the image, polylines as ((x, y), ...)).
        line_width: pixels.
    """

    root: Path
    lanes: Mapping[str, tuple[str, tuple[tuple[tuple[int, int], ...], ...]]]
    line_width: int

    def __call__(self, path: Path) -> np.ndarray:
        """Draw every polyline with label 1."""
        import cv2

        image, polylines = self.lanes[path.relative_to(self.root).as_posix()]
        width, height, _ = read_size(read_bytes(self.root / image), self.root / image)
        mask = np.zeros((height, width), np.uint8)
        for points in polylines:
            line = np.array(points, np.int32).reshape(-1, 1, 2)
            cv2.polylines(mask, [line], False, 1, self.line_width)
        return mask


def _label_files(root: Path) -> list[Path]:
    files = {*root.glob("label_data_*.json"), *root.glob("*/label_data_*.json")}
    return sorted(files | {*root.glob("test_label.json"), *root.glob("*/test_label.json")})


def _read_tusimple(root: Path, block: int, line_width: int) -> MaskIndex:
    notes: list[str] = []
    rows: list[Row] = []
    lanes: dict[str, tuple[str, tuple[tuple[tuple[int, int], ...], ...]]] = {}
    for file in _label_files(root):
        split = "test" if file.name == "test_label.json" else ""
        missing = []
        for number, entry in _entries(file):
            image = file.parent / entry["raw_file"]
            if not image.is_file():
                missing.append(entry["raw_file"])
                continue
            target = f"{file.relative_to(root).as_posix()}#{number}"
            place = image.relative_to(root).as_posix()
            lanes[target] = (place, tuple(_polylines(entry)))
            name = entry["raw_file"].removeprefix("clips/").rsplit(".", 1)[0]
            rows.append(Row(name, place, target, image.parent.relative_to(root).as_posix(), split))
        note_missing(notes, f"{file.name}: labelled frames that are missing", missing)
    for split, known in KNOWN_TUSIMPLE.items():
        found = sum(row.split == split for row in rows)
        note_count(notes, f"TuSimple {split or 'train'}", found, known)
    groups = group_clips({row.group for row in rows}, block=block)
    rows = [row._replace(group=groups[row.group]) for row in rows]
    return build_index(root, rows, CLASSES, PolylineDecoder(root, lanes, line_width), notes=notes)


def _entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if any(len(lane) != len(entry["h_samples"]) for lane in entry["lanes"]):
                raise ValueError("a lane has not one x for every row")
            entry["raw_file"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}, line {number}: no TuSimple label ({error})") from error
        yield number, entry


def _polylines(entry: Mapping[str, Any]) -> Iterator[tuple[tuple[int, int], ...]]:
    for lane in entry["lanes"]:
        points = tuple((x, y) for x, y in zip(lane, entry["h_samples"], strict=True) if x >= 0)
        if len(points) > 1:  # -2 marks rows without this lane
            yield points
