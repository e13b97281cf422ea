"""Table of mask data sources: name of a layout → reader; with the micro track's five sets.

Layout of VOC, ETIS, CVPPP, CFD, CarDD at hand: ``VOC/{train,val,test}/{images/*.jpg,masks/*.png}``
(or ``images/{train,val,test}`` and so on), index masks (VOC 0..20, 255 void; the others 0/1, damage
or not for CarDD). A set in its original layout is read by its own source, in these classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from src.data.decode import VOID
from src.data.sources import folders, lanes, micro_sets, rle_table, street_sets
from src.data.sources.folders import is_divided, list_pairs
from src.data.sources.labels import decode_foreground
from src.data.sources.masks import MaskIndex, Source, build_index, note_count
from src.data.sources.places import find_inner, read_place
from src.script import UserError


class _MicroSet(NamedTuple):
    """How many images a set is known to have, its classes, and the reader of its own layout."""

    known: int
    classes: tuple[str, ...]
    read: Callable[[Path], MaskIndex]


_DAMAGE = partial(micro_sets.read_cardd, binary=True)
_MICRO = {
    "VOC": _MicroSet(2913, micro_sets.VOC_CLASSES, micro_sets.read_voc),
    "ETIS": _MicroSet(micro_sets.ETIS_KNOWN, micro_sets.ETIS_CLASSES, micro_sets.read_etis),
    "CVPPP": _MicroSet(810, micro_sets.CVPPP_CLASSES, micro_sets.read_cvppp),
    "CFD": _MicroSet(micro_sets.CFD_KNOWN, micro_sets.CFD_CLASSES, micro_sets.read_cfd),
    "CarDD": _MicroSet(4000, ("background", "damage"), _DAMAGE),
}
DATASETS = tuple(_MICRO)
MOST_SETS = 9  # more folders than this are sequences or patients


def read_micro(root: Path, dataset: str) -> MaskIndex:
    """List one of the five sets, named as in ``DATASETS``, below ``root`` or in ``root``.

    Raises:
        UserError: neither layout below ``root``.
    """
    folder = root / dataset
    if not folder.is_dir() and root.resolve().name == dataset:
        folder = root  # the folder of the set itself
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing: put {dataset} there, pass the folder that holds it with "
            "--data_dir, or choose another --dataset"
        )
    if not (folder / "train" / "images").is_dir() and not is_divided(folder):
        return _MICRO[dataset].read(folder)
    notes: list[str] = []
    parts: dict[Path, list[Path]] = {}
    rows = list(list_pairs(folder, notes, parts))
    if parts:
        first, others = next(iter(parts.items()))
        raise UserError(f"{first} and {others[0]} are of one image: draw one mask an image")
    if dataset == "ETIS":
        rows = [row._replace(group=micro_sets.sequence_of(row.id)) for row in rows]
    note_count(notes, f"{dataset} images", len(rows), _MICRO[dataset].known)
    has_void = dataset == "VOC"
    decode = micro_sets.decode_voc if has_void else decode_foreground
    void = VOID if has_void else None
    classes = _MICRO[dataset].classes
    return build_index(folder, rows, classes, decode, ignore_index=void, notes=notes)


def list_datasets(root: Path | str) -> tuple[str, ...]:
    """Name the sets that lie below ``root``, in the order of ``DATASETS``."""
    return tuple(name for name in DATASETS if (Path(root) / name).is_dir())


# In the order in which their signs are looked for.
_FOUND = (
    *(micro_sets.VOC, street_sets.CAMVID, micro_sets.CFD, micro_sets.CVPPP, micro_sets.CARDD),
    *(micro_sets.ETIS, lanes.SOURCE, *lanes.OUTLINES, lanes.LINES, street_sets.KITTI_ROAD),
    *(rle_table.SOURCE, folders.SOURCE, rle_table.ROWS, rle_table.COLUMNS),
    *(Source(f"micro/{n}", partial(read_micro, dataset=n), whole=True) for n in DATASETS),
)
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
    return _note_sets(source.read(root if source.whole else find_inner(root), **options))


def _note_sets(index: MaskIndex) -> MaskIndex:
    """Add a note where a few folders have folders of images, and masks, of their own.

    They may be sequences or cities, or data sets below a folder that was named by mistake.
    """
    rows = index.table[index.table["target"] != ""]
    sets: Counter[str] = Counter()
    for image, mask in zip(rows["image"], rows["target"], strict=True):
        folder = _folder_of_set(image.rpartition("/")[0])
        if folder is None or not mask.startswith(folder):
            return index
        sets[folder] += 1
    if not 1 < len(sets) <= MOST_SETS or max(sets.values()) == 1:
        return index
    shown = ", ".join(f"{name.strip('/') or '.'} ({number})" for name, number in sets.items())
    note = (
        f"{index.root}: {len(sets)} folders with masks of their own are read as one data set, "
        f"{shown} images: if they are several sets, pass one of them with --data_dir"
    )
    return replace(index, notes=(*index.notes, note))


@lru_cache(maxsize=4096)
def _folder_of_set(folder: str) -> str | None:
    """Return what lies before the first folder of a split or kind, "a/" or ""; None without one."""
    names = folder.split("/")
    places = [read_place([name]) for name in names]
    first = next((n for n, place in enumerate(places) if place.split or place.kind), None)
    return None if first is None else "".join(f"{name}/" for name in names[:first])


def detect_source(root: Path) -> str:
    """Name the source whose layout ``root`` or the lone folder in it has; else plain folders."""
    name = _find_sign(root)
    inner = find_inner(root)
    return name or (_find_sign(inner) if inner != root else "") or "folders"


def _find_sign(root: Path) -> str:
    return next((source.name for source in SOURCES.values() if source.is_here(root)), "")
