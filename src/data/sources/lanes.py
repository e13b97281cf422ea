"""Lane data reader: two classes, neighbouring frames grouped.

Forms, recognised by what lies in the folder:
- TuSimple: ``label_data_*.json``, ``test_label.json`` (one JSON a line) and ``clips/``, also below
  ``train_set/`` and ``test_set/``; the polylines are drawn.
  https://github.com/TuSimple/tusimple-benchmark
- Polygons and run lengths (``OUTLINES``, ``rle_table.py``); every category is lane, and a note says
  so.
- ``images/`` + ``masks/`` folders, see ``folders.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.decode import read_bytes, read_size
from src.data.sources import coco, cvat, label_studio, labelme, supervisely, via, yolo
from src.data.sources.folders import read_folders
from src.data.sources.frames import group_clips
from src.data.sources.masks import MaskIndex, Row, Source, build_index, note_count, note_missing
from src.data.sources.names import Locator, read_text
from src.data.sources.places import describe
from src.data.sources.rle_table import is_rle_table, read_rle_table
from src.files import Json
from src.script import UserError

CLASSES = ("background", "lane")
# Layouts of outlines in any classes, which are taken as one.
OUTLINES = tuple(
    layout.SOURCE for layout in (coco, labelme, label_studio, supervisely, via, cvat, yolo)
)
# Layouts of which a lane run sees two classes.
TWO_CLASSES = ("folders", "rle", *(source.name for source in OUTLINES))
KNOWN_TUSIMPLE = {"": 3626, "test": 2782}
LEAST_GROUPS = 5  # that a single drive is cut into
MAX_SIDE = 100_000  # pixels; no frame is wider
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
    if is_tusimple(root):
        return _read_tusimple(root, block, line_width)
    for source in OUTLINES:
        if source.is_here(root):
            return source.read(root, merged=CLASSES[1], block=block)
    if is_rle_table(root):
        return read_rle_table(root, merged=CLASSES[1])
    return read_folders(root, classes=CLASSES, labels="foreground", frames=block)


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


def is_tusimple(root: Path) -> bool:
    """Tell whether label files of TuSimple lie in ``root`` or one folder below."""
    return bool(_label_files(root))


def _label_files(root: Path) -> list[Path]:
    names = ("label_data_*.json", "test_label*.json")
    return sorted({path for name in names for at in ("", "*/") for path in root.glob(at + name)})


def _read_tusimple(root: Path, block: int, line_width: int) -> MaskIndex:
    notes: list[str] = []
    rows: list[Row] = []
    lanes: dict[str, tuple[str, tuple[tuple[tuple[int, int], ...], ...]]] = {}
    first: dict[str, str] = {}
    locator = Locator(root)
    for file in _label_files(root):
        split = "test" if file.name.startswith("test_label") else ""
        missing = []
        for number, entry in _entries(file):
            place = locator.find(entry["raw_file"], (file.parent, root), split)
            if place is None:
                missing.append(entry["raw_file"])
                continue
            target = f"{file.relative_to(root).as_posix()}#{number}"
            if place in first:
                raise UserError(
                    f"{root / place} is labelled in {first[place]} and in {target} (# is the "
                    "line): remove one of the files, or the line"
                )
            first[place] = target
            lanes[target] = (place, tuple(entry["lanes"]))
            name = entry["raw_file"] if place.endswith(entry["raw_file"]) else place
            name = name.rpartition("clips/")[2].rsplit(".", 1)[0]
            rows.append(Row(name, place, target, Path(place).parent.as_posix(), split))
        note_missing(notes, f"{file.name}: labelled frames that are missing", missing)
    if not rows:
        raise UserError(
            f"{_label_files(root)[0]} labels {missing[0] if missing else 'no frame'}, but none of "
            f"the frames lies below {root}: found {describe(root)}; put clips/ beside the file"
        )
    for split, known in KNOWN_TUSIMPLE.items():
        found = sum(row.split == split for row in rows)
        note_count(notes, f"TuSimple {split or 'train'}", found, known)
    clips = {row.group for row in rows}
    groups = group_clips(clips, block=block)
    if len(set(groups.values())) == 1 < len(clips):  # one group cannot be folded
        block = max(1, len(clips) // LEAST_GROUPS)
        groups = group_clips(clips, block=block)
        notes.append(f"one drive alone: grouped by at most {block} neighbouring clips")
    rows = [row._replace(group=groups[row.group]) for row in rows]
    return build_index(root, rows, CLASSES, PolylineDecoder(root, lanes, line_width), notes=notes)


def _entries(file: Path) -> Iterator[tuple[int, Json]]:
    """Yield (number, label) of a file with one JSON object a line, or one JSON list."""
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
        yield number, {"raw_file": entry["raw_file"], "lanes": list(_polylines(lanes, rows))}


def _read_objects(file: Path) -> Iterator[tuple[int, Any]]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), start=1)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is no JSON list ({error}): restore the file") from error
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
) -> Iterator[tuple[tuple[int, int], ...]]:
    for lane in lanes:
        both = zip(lane, rows, strict=True)
        points = tuple((x, y) for x, y in both if x is not None and y is not None and x >= 0)
        if len(points) > 1:  # -2 marks rows without this lane
            yield points


SOURCE = Source("lanes", read_lanes, is_tusimple)
