"""CurveLanes and CULane reader: a text of points for each image, drawn as lines of one class.

``labels/7.lines.json`` of ``images/7.jpg`` (CurveLanes: ``{"Lines": [[{"x": …, "y": …}, …], …]}``),
or ``7.lines.txt`` beside ``7.jpg`` (CULane: a lane a line, ``x y x y …``). Splits are folders, or
lists such as ``list/train.txt``. https://github.com/SoulmateB/CurveLanes https://xingangpan.github.io/projects/CULane.html
"""

from __future__ import annotations

from pathlib import Path

from src.data.sources.annotations import naming_damage, read_json
from src.data.sources.folders import holds_masks
from src.data.sources.frames import group_rows
from src.data.sources.lanes import CLASSES, LINE_WIDTH, PolylineDecoder
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    note_missing,
    relative,
)
from src.data.sources.names import read_lines, split_by_lists
from src.data.sources.places import read_place, walk
from src.script import UserError

_ENDINGS = (".lines.json", ".lines.txt")
Lines = tuple[tuple[tuple[int, int], ...], ...]


def read_lane_lines(
    root: Path | str, *, block: int = 50, line_width: int = LINE_WIDTH
) -> MaskIndex:
    """List the images with their lanes; those of a test folder without lines are to be predicted.

    Args:
        root: the unpacked folder.
        block: at most so many neighbouring frames form one group.
        line_width: of the drawn lanes, in pixels of the image.

    Raises:
        UserError: no image with lines, or a damaged file.
    """
    root = Path(root)
    rows, blind = [], []
    lanes: dict[str, tuple[str, Lines]] = {}
    for parts, files in walk(root):
        place = read_place(parts)
        for file in files:
            path = root.joinpath(*parts, file)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            text = _find_lines(path)
            name = "/".join((*place.rest, path.stem))
            if text is None and place.split != "test":
                blind.append(name)
                continue
            target = relative(root, text) if text else ""
            rows.append(Row(name, relative(root, path), target, "", place.split))
            if text:
                lanes[target] = (relative(root, path), _read_lines(text))
    if not lanes:
        raise UserError(
            f"{root} holds no image with a .lines.txt or .lines.json: unpack both there"
        )
    notes: list[str] = []
    note_missing(notes, "images without a file of lines, left out", blind)
    if not any(row.split for row in rows):
        rows = split_by_lists(root, rows, notes)
    rows = group_rows(rows, max_gap=30, block=block)
    decode = PolylineDecoder(root, lanes, line_width)
    return build_index(root, rows, CLASSES, decode, notes=notes, blocks=True)


def _find_lines(image: Path) -> Path | None:
    folders = (image.parent, image.parent.parent / "labels")
    paths = (folder / (image.stem + ending) for folder in folders for ending in _ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _read_lines(path: Path) -> Lines:
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


SOURCE = Source("lane_lines", read_lane_lines, is_lane_lines)
