"""Table of mask data sources: name of a layout → reader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from src.data.sources.camvid import read_camvid
from src.data.sources.cardd import read_cardd
from src.data.sources.cfd import read_cfd
from src.data.sources.coco import is_coco, read_coco
from src.data.sources.cvppp import read_cvppp
from src.data.sources.etis import read_etis
from src.data.sources.folders import holds_masks, read_folders
from src.data.sources.label_studio import is_label_studio, read_label_studio
from src.data.sources.labelme import is_labelme, read_labelme
from src.data.sources.lanes import is_tusimple, read_lanes
from src.data.sources.masks import MaskIndex
from src.data.sources.micro import DATASETS, read_micro
from src.data.sources.places import find_inner
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
    "labelme": read_labelme,
    "labelstudio": read_label_studio,
    "lanes": read_lanes,
    "folders": read_folders,
    **{f"micro/{name}": partial(read_micro, dataset=name) for name in DATASETS},
}

KNOW_THEIR_FOLDERS = ("voc", "cvppp", "cardd")  # readers that look into folders themselves


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
    whole = name in KNOW_THEIR_FOLDERS or name.startswith("micro/")
    return SOURCES[name](root if whole else find_inner(root), **options)


def detect_source(root: Path) -> str:
    """Name the source whose layout ``root`` or the lone folder in it has; else plain folders."""
    name = _find_sign(root)
    inner = find_inner(root)
    return name or (_find_sign(inner) if inner != root else "") or "folders"


def _find_sign(root: Path) -> str:
    signs: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("voc", lambda: find_devkit(root) is not None),
        ("camvid", lambda: _any(root, "trainannot", "LabeledApproved_full")),
        ("camvid", lambda: _holds(root, "train_labels/*_L.png")),
        ("cfd", lambda: _any(root, "groundTruth") and _any(root, "image")),
        ("cvppp", lambda: _holds(root, "A[0-9]*/*_rgb.png")),
        ("cardd", lambda: _any(root, "CarDD_COCO", "CarDD_release")),
        ("etis", lambda: _any(root, "Ground Truth") and not _any(root, "Original")),
        ("lanes", lambda: is_tusimple(root)),
        ("coco", lambda: is_coco(root)),
        ("labelme", lambda: is_labelme(root) and not holds_masks(root)),
        ("labelstudio", lambda: is_label_studio(root) and not holds_masks(root)),
    )
    return next((name for name, here in signs if here()), "")


def _any(root: Path, *folders: str) -> bool:
    return any((root / folder).is_dir() for folder in folders)


def _holds(root: Path, pattern: str) -> bool:
    return any(root.glob(pattern)) or any(root.glob(f"*/{pattern}"))
