"""CVPPP 2017 leaf segmentation (LSC) reader: plant against background, foreground is label > 0.

Layout: ``A1 .. A4/plantNNN_{rgb,label,fg}.png`` below ``root`` or its ``training`` and ``testing``
folders (also with the archive's ``CVPPP2017_LSC_`` prefix). Minervini et al. 2016,
https://doi.org/10.1016/j.patrec.2015.10.013
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.data.decode import decode_mask
from src.data.sources.masks import (
    MaskIndex,
    Row,
    Source,
    build_index,
    has_file,
    list_files,
    note_count,
    note_missing,
    relative,
)
from src.script import UserError

CLASSES = ("background", "plant")
KNOWN = {"A1": 128, "A2": 31, "A3": 27, "A4": 624}  # labelled plants, 810 in all
_PNG = frozenset({".png"})
_TOPS = (".", "training", "testing", "CVPPP2017_LSC_training", "CVPPP2017_LSC_testing")


def read_cvppp(root: Path) -> MaskIndex:
    """List the plants; those without a label or fg file are the test split.

    Raises:
        UserError: no ``A*/plant*_rgb.png`` below ``root``.
    """
    notes: list[str] = []
    rows: list[Row] = []
    for top in _folders(root):
        part = list(_list_plants(root, top, notes))
        labelled = sum(bool(row.target) for row in part)
        if labelled and top.name in KNOWN:
            note_count(notes, f"CVPPP {top.name} labelled", labelled, KNOWN[top.name])
        rows += part
    if not rows:
        raise UserError(f"{root} holds no A1/plantNNN_rgb.png: unpack CVPPP2017_LSC there")
    present = {row.id.split("_")[0] for row in rows if row.target}
    note_missing(notes, "CVPPP folders that are missing", [a for a in KNOWN if a not in present])
    return build_index(root, rows, CLASSES, decode_plant, notes=notes)


def decode_plant(path: Path) -> np.ndarray:
    """Read leaf numbers, or the fg mask, as 1 where there is any plant: (H, W) uint8."""
    return (decode_mask(path) > 0).astype(np.uint8)


def _folders(root: Path) -> Iterator[Path]:
    for top in _TOPS:
        yield from sorted(path for path in (root / top).glob("A[0-9]*") if path.is_dir())


def _list_plants(root: Path, folder: Path, notes: list[str]) -> Iterator[Row]:
    images, labels, fgs = (
        list_files(folder, _PNG, lambda stem, end=end: _strip(stem, end))  # type: ignore[misc]
        for end in ("_rgb", "_label", "_fg")
    )
    targets = fgs | labels
    lone = [name for name in images if name not in targets] if targets else []
    note_missing(notes, f"CVPPP {folder.name}: plants without _label or _fg, left out", lone)
    for name, path in images.items():
        identity = f"{folder.name}_{name}"
        if not targets:
            yield Row(identity, relative(root, path), split="test")
        elif name in targets:
            yield Row(identity, relative(root, path), relative(root, targets[name]))


def _strip(stem: str, end: str) -> str | None:
    return stem[: -len(end)] if stem.endswith(end) else None


SOURCE = Source("cvppp", read_cvppp, lambda r: has_file(r, "A[0-9]*/*_rgb.png"), whole=True)
