"""Lane data reader: two classes, neighbouring frames grouped.

Layouts: docs/layouts.md. Of annotations in any classes (``OUTLINES``, ``rle_table.py``) every
category is lane, and a note says so.
- TuSimple: the polylines are drawn. https://github.com/TuSimple/tusimple-benchmark
- CurveLanes and CULane, a source of its own: ``{"Lines": [[{"x": …, "y": …}, …], …]}``, or a lane a
  line, ``x y x y …``.
  https://github.com/SoulmateB/CurveLanes https://xingangpan.github.io/projects/CULane.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.decode import read_bytes, read_size
from src.data.files import below
from src.data.sources import coco, labelme, tools, yolo
from src.data.sources.annotations import naming_damage, read_json
from src.data.sources.folders import holds_masks, read_folders
from src.data.sources.frames import group_clips, group_rows
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    note_count,
    note_missing,
)
from src.data.sources.names import Locator, read_lines, read_text, split_by_lists
from src.data.sources.places import describe, list_below, walk
from src.data.sources.rle_table import is_rle_table, read_rle_table
from src.script import UserError

CLASSES = ("background", "lane")
# Layouts of outlines in any classes, which are taken as one.
OUTLINES = (
    *(coco.SOURCE, labelme.SOURCE, tools.LABEL_STUDIO, tools.SUPERVISELY, tools.VIA, tools.CVAT),
    *(tools.GEOJSON, yolo.SOURCE),
)
# Layouts of which a lane run sees two classes.
TWO_CLASSES = ("folders", "rle", *(source.name for source in OUTLINES))
KNOWN_TUSIMPLE = {"": 3626, "test": 2782}
LEAST_GROUPS = 5  # that a single drive is cut into
MAX_SIDE = 100_000  # pixels; no frame is wider
LINE_WIDTH = 5  # pixels at 1280x720; the benchmark gives centre lines only
_ENDINGS = (".lines.json", ".lines.txt")
Polyline = tuple[tuple[int, int], ...]  # (x, y)
Lanes = dict[str, tuple[str, tuple[Polyline, ...]]]


def read_lanes(root: Path) -> MaskIndex:
    """List lane images of any of the forms; neighbouring frames form groups.

    Raises:
        UserError: none of the forms, or damaged labels.
    """
    if files := _label_files(root):
        return _read_tusimple(root, files)
    for source in OUTLINES:
        if source.is_here(root):
            return source.read(root, merged=CLASSES[1])
    if is_rle_table(root):
        return read_rle_table(root, merged=CLASSES[1])
    return read_folders(root, classes=CLASSES, foreground=True, frames=True)


@dataclass(frozen=True)
class PolylineDecoder:
    """Draw the lanes of one frame: "labels.json#line" below ``root`` -> (H, W) uint8."""

    root: Path  # the folder that targets are relative to
    lanes: Lanes  # target -> (path of the image, polylines)

    def __call__(self, path: Path) -> np.ndarray:
        """Draw every polyline with label 1."""
        import cv2

        image, polylines = self.lanes[below(self.root, path)]
        width, height, _ = read_size(read_bytes(self.root / image), self.root / image)
        mask = np.zeros((height, width), np.uint8)
        for points in polylines:
            line = np.array(points, np.int32).reshape(-1, 1, 2)
            cv2.polylines(mask, [line], False, 1, LINE_WIDTH)
        return mask


def _label_files(root: Path) -> list[Path]:
    """Return the label files of TuSimple in ``root`` or one folder below."""
    names = ("label_data_*.json", "test_label*.json")
    return sorted({path for name in names for at in ("", "*/") for path in root.glob(at + name)})


def _read_tusimple(root: Path, files: Sequence[Path]) -> MaskIndex:
    notes: list[str] = []
    rows: list[Row] = []
    lanes: Lanes = {}
    first: dict[str, str] = {}
    locator = Locator(root)
    for file in files:
        split = "test" if file.name.startswith("test_label") else ""
        missing = []
        for number, said, polylines in _entries(file):
            place = locator.find(said, (file.parent, root), split)
            if place is None:
                missing.append(said)
                continue
            target = f"{below(root, file)}#{number}"
            if place in first:
                raise UserError(
                    f"{root / place} is labelled in {first[place]} and in {target} (# is the "
                    "line): remove one of the files, or the line"
                )
            first[place] = target
            lanes[target] = (place, polylines)
            name = said if place.endswith(said) else place
            name = name.rpartition("clips/")[2].rsplit(".", 1)[0]
            rows.append(Row(name, place, target, Path(place).parent.as_posix(), split))
        note_missing(notes, f"{file.name}: labelled frames that are missing", missing)
    if not rows:
        raise UserError(
            f"{files[0]} labels {missing[0] if missing else 'no frame'}, but none of the frames "
            f"lies below {root}: found {describe(root)}; put clips/ beside the file"
        )
    for split, known in KNOWN_TUSIMPLE.items():
        found = sum(row.split == split for row in rows)
        note_count(notes, f"TuSimple {split or 'train'}", found, known)
    clips = {row.group for row in rows}
    groups = group_clips(clips)
    if len(set(groups.values())) == 1 < len(clips):  # one group cannot be folded
        block = max(1, len(clips) // LEAST_GROUPS)
        groups = group_clips(clips, block=block)
        notes.append(f"one drive alone: grouped by at most {block} neighbouring clips")
    rows = [row._replace(group=groups[row.group]) for row in rows]
    return build_index(root, rows, CLASSES, PolylineDecoder(root, lanes), notes=notes)


def _entries(file: Path) -> Iterator[tuple[int, str, tuple[Polyline, ...]]]:
    """Yield (number, image, lanes) of a file with one JSON object a line, or one JSON list."""
    for number, entry in _read_objects(file):
        try:
            rows = [_coordinate(y, "h_samples") for y in entry["h_samples"]]
            lanes = [[_coordinate(x, "lanes") for x in lane] for lane in entry["lanes"]]
            if any(len(lane) != len(rows) for lane in lanes):
                raise ValueError("a lane has not one x for every row")
            if not isinstance(entry["raw_file"], str) or None in rows:
                raise ValueError("raw_file is no text, or a row of h_samples is missing")
        except KeyError as error:
            raise UserError(
                f"{file}, line {number}: no TuSimple label, it lacks {error}: mend or remove it"
            ) from error
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: no TuSimple label ({error}): mend or remove the line"
            ) from error
        yield number, entry["raw_file"], tuple(_polylines(lanes, rows))


def _read_objects(file: Path) -> Iterator[tuple[int, Any]]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        yield from enumerate(read_json(file), start=1)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: no TuSimple label ({error})") from error


def _coordinate(value: Any, what: str) -> int | None:
    """Read one number of a lane; None where there is no lane (null, as other tools write)."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isnan(number):
        return None
    if isinstance(value, bool) or abs(number) > MAX_SIDE:
        raise ValueError(f"{what} holds {value!r:.40}, which is no place in an image")
    return int(number)


def _polylines(
    lanes: Iterable[Sequence[int | None]], rows: Sequence[int | None]
) -> Iterator[Polyline]:
    for lane in lanes:
        both = zip(lane, rows, strict=True)
        points = tuple((x, y) for x, y in both if x is not None and y is not None and x >= 0)
        if len(points) > 1:  # -2 marks rows without this lane
            yield points


def read_lane_lines(root: Path) -> MaskIndex:
    """List the images with their lanes; those of a test folder without lines are to be predicted.

    Raises:
        UserError: no image with lines, or a damaged file.
    """
    rows, blind = [], []
    lanes: Lanes = {}
    for place, path in list_below(root, IMAGE_SUFFIXES):
        text = _find_lines(path)
        name, image = "/".join((*place.rest, path.stem)), below(root, path)
        if text:
            lanes[below(root, text)] = (image, _read_lines(text))
            rows.append(Row(name, image, below(root, text), "", place.split))
        elif place.split == "test":
            rows.append(Row(name, image, "", "", "test"))
        else:
            blind.append(name)
    if not lanes:
        raise UserError(
            f"{root} holds no image with a .lines.txt or .lines.json: unpack both there"
        )
    notes: list[str] = []
    note_missing(notes, "images without a file of lines, left out", blind)
    if not any(row.split for row in rows):
        rows = split_by_lists(root, rows, notes)
    rows = group_rows(rows, max_gap=30)
    return build_index(root, rows, CLASSES, PolylineDecoder(root, lanes), notes=notes, blocks=True)


def _find_lines(image: Path) -> Path | None:
    folders = (image.parent, image.parent.parent / "labels")
    paths = (folder / (image.stem + ending) for folder in folders for ending in _ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _read_lines(path: Path) -> tuple[Polyline, ...]:
    """Read the lanes of one image, in whole pixels.

    Raises:
        UserError: a point that is none.
    """
    with naming_damage(path, "mend or remove it"):
        if path.suffix == ".json":
            lanes = [[(p["x"], p["y"]) for p in lane] for lane in read_json(path)["Lines"]]
        else:
            words = [line.split() for line in read_lines(path)]
            lanes = [list(zip(line[::2], line[1::2], strict=True)) for line in words]
        found = tuple(tuple((round(float(x)), round(float(y))) for x, y in lane) for lane in lanes)
        if any(abs(value) > 2**20 for lane in found for point in lane for value in point):
            raise ValueError("a point that is no place in an image")
    return tuple(lane for lane in found if len(lane) > 1)


def is_lane_lines(root: Path) -> bool:
    """Tell whether such files lie below ``root``, and no masks that are drawn already."""
    found = any(file.endswith(_ENDINGS) for _, files in walk(root) for file in files)
    return found and not holds_masks(root)


SOURCE = Source("lanes", read_lanes, lambda root: bool(_label_files(root)))
LINES = Source("lane_lines", read_lane_lines, is_lane_lines)
