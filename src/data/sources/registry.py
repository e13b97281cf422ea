"""Name of a data set and its folder in, its :class:`MaskIndex` out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from src.data.sources.camvid import read_camvid
from src.data.sources.cardd import read_cardd
from src.data.sources.cfd import read_cfd
from src.data.sources.coco import has_annotations, read_coco
from src.data.sources.cvppp import read_cvppp
from src.data.sources.etis import read_etis
from src.data.sources.folders import read_folders
from src.data.sources.lanes import read_lanes
from src.data.sources.masks import MaskIndex
from src.data.sources.micro import DATASETS, read_micro
from src.data.sources.voc import find_devkit, read_voc
from src.script import UserError

SOURCES: dict[str, Callable[..., MaskIndex]] = {
    "voc": read_voc,
    "etis": read_etis,
    "cvppp": read_cvppp,
    "cfd": read_cfd,
    "cardd": read_cardd,
    "camvid": read_camvid,
    "coco": read_coco,
    "lanes": read_lanes,
    "folders": read_folders,
    **{f"micro/{name}": partial(read_micro, dataset=name) for name in DATASETS},
}


def read_source(name: str, root: Path | str, **options: Any) -> MaskIndex:
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
    return SOURCES[name](root, **options)


def detect_source(root: Path) -> str:
    """Name the source whose layout ``root`` has; plain folders where none is special."""
    signs: tuple[tuple[str, bool], ...] = (
        ("voc", find_devkit(root) is not None),
        ("camvid", (root / "trainannot").is_dir() or (root / "LabeledApproved_full").is_dir()),
        ("camvid", (root / "train_labels").is_dir()),
        ("cfd", (root / "groundTruth").is_dir() and (root / "image").is_dir()),
        ("cvppp", _holds(root, "A[0-9]*/*_rgb.png")),
        ("cardd", (root / "CarDD_COCO").is_dir() or (root / "CarDD_release").is_dir()),
        ("etis", (root / "Ground Truth").is_dir()),
        ("lanes", _holds(root, "label_data_*.json")),
        ("coco", has_annotations(root)),
    )
    return next((name for name, here in signs if here), "folders")


def _holds(root: Path, pattern: str) -> bool:
    return any(root.glob(pattern)) or any(root.glob(f"*/{pattern}"))
