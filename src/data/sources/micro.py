"""Reader of the micro track's five sets: VOC, ETIS, CVPPP, CFD, CarDD.

Layout at hand: ``{VOC,ETIS,CVPPP,CFD,CarDD}/{train,val,test}/{images/*.jpg,masks/*.png}`` (or
``images/{train,val,test}`` and so on), index masks (VOC 0..20, 255 void; the others 0/1, damage or
not for CarDD). Where a set lies in its original layout its own source reads it, in these classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from src.data.decode import decode_mask
from src.data.sources import cardd, cfd, cvppp, etis, voc
from src.data.sources.folders import is_divided, list_pairs
from src.data.sources.labels import decode_foreground
from src.data.sources.masks import MaskIndex, build_index, note_count
from src.script import UserError

DATASETS = ("VOC", "ETIS", "CVPPP", "CFD", "CarDD")
KNOWN = {"VOC": 2913, "ETIS": etis.NUM_IMAGES, "CVPPP": 810, "CFD": 118, "CarDD": 4000}
_CLASSES = {
    "VOC": voc.CLASSES,
    "ETIS": etis.CLASSES,
    "CVPPP": cvppp.CLASSES,
    "CFD": cfd.CLASSES,
    "CarDD": ("background", "damage"),
}
_ORIGINAL: dict[str, Callable[[Path], MaskIndex]] = {
    "VOC": voc.read_voc,
    "ETIS": etis.read_etis,
    "CVPPP": cvppp.read_cvppp,
    "CFD": cfd.read_cfd,
    "CarDD": partial(cardd.read_cardd, binary=True),
}


def read_micro(root: Path | str, dataset: str) -> MaskIndex:
    """List one of the five sets, named as in ``DATASETS``, below ``root`` or in ``root``.

    Raises:
        UserError: an unknown set, or neither layout below ``root``.
    """
    if dataset not in DATASETS:
        raise UserError(f"--dataset {dataset} is unknown: choose {', '.join(DATASETS)} or all")
    folder = Path(root) / dataset
    if not folder.is_dir() and Path(root).resolve().name == dataset:
        folder = Path(root)  # the folder of the set itself
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: put {dataset} there, or choose another --dataset")
    if not (folder / "train" / "images").is_dir() and not is_divided(folder):
        return _ORIGINAL[dataset](folder)
    notes: list[str] = []
    parts: dict[Path, list[Path]] = {}
    rows = list(list_pairs(folder, notes, parts))
    if parts:
        first, others = next(iter(parts.items()))
        raise UserError(f"{first} and {others[0]} are of one image: draw one mask an image")
    if dataset == "ETIS":
        rows = [row._replace(group=etis.sequence_of(row.id)) for row in rows]
    note_count(notes, f"{dataset} images", len(rows), KNOWN[dataset])
    classes = _CLASSES[dataset]
    if dataset == "VOC":
        decode = partial(decode_mask, num_classes=len(classes), ignore_index=voc.VOID)
        return build_index(folder, rows, classes, decode, ignore_index=voc.VOID, notes=notes)
    return build_index(folder, rows, classes, decode_foreground, notes=notes)


def list_datasets(root: Path | str) -> tuple[str, ...]:
    """Name the sets that lie below ``root``, in the order of ``DATASETS``."""
    return tuple(name for name in DATASETS if (Path(root) / name).is_dir())
