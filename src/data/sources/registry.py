"""Table of mask data sources: name of a layout → reader."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

from src.data.sources.masks import MaskIndex, Source
from src.data.sources.micro import DATASETS, read_micro
from src.data.sources.places import find_inner
from src.data.sources.rle_table import ROWS as RLE_ROWS
from src.script import UserError

# Files beside this one that hold a ``SOURCE``, in the order in which their signs are looked for.
FILES = (
    *("voc", "camvid", "cfd", "cvppp", "cardd", "etis", "lanes", "coco", "labelme"),
    *("label_studio", "supervisely", "via", "cvat", "yolo", "lane_lines", "kitti_road"),
    *("rle_table", "folders"),
)
_FOUND: list[Source] = [import_module(f"src.data.sources.{file}").SOURCE for file in FILES]
_FOUND.append(RLE_ROWS)
_FOUND += [Source(f"micro/{n}", partial(read_micro, dataset=n), whole=True) for n in DATASETS]
SOURCES = {source.name: source for source in _FOUND}


def read_source(name: str, root: Path | str, **options: object) -> MaskIndex:
    """Read ``root`` as the data set ``name`` ("auto" looks at its folders).

    Raises:
        UserError: an unknown name, a missing folder, or what the source refuses.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: point --data_dir at the unpacked data set")
    name = detect_source(root) if name == "auto" else name
    if name not in SOURCES:
        raise UserError(f"data set {name} is unknown: choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    return source.read(root if source.whole else find_inner(root), **options)


def detect_source(root: Path) -> str:
    """Name the source whose layout ``root`` or the lone folder in it has; else plain folders."""
    name = _find_sign(root)
    inner = find_inner(root)
    return name or (_find_sign(inner) if inner != root else "") or "folders"


def _find_sign(root: Path) -> str:
    return next((source.name for source in SOURCES.values() if source.is_here(root)), "")
