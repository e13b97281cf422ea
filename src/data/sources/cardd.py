"""CarDD reader: COCO JSON of six kinds of car damage, as classes or as damage against none.

Layout: ``CarDD_release/CarDD_COCO/{annotations,train2017,val2017,test2017}``; ``root`` may be any
of the upper folders. The data set is handed out after signing a form.
Wang, Li & Wu 2023, https://doi.org/10.1109/TITS.2023.3258480
"""

from __future__ import annotations

from pathlib import Path

from src.data.sources.annotations import load_annotations
from src.data.sources.coco import list_categories, list_images
from src.data.sources.masks import MaskIndex, Source, build_index, has_folder, note_count
from src.script import UserError

DAMAGES = ("dent", "scratch", "crack", "glass shatter", "lamp broken", "tire flat")
KNOWN = {"train": 2816, "valid": 810, "test": 374}


def read_cardd(root: Path, *, binary: bool = False) -> MaskIndex:
    """List the photographs in the set's own split.

    Args:
        root: see the layout above.
        binary: damage against none, instead of the six kinds.

    Raises:
        UserError: no annotations, or categories other than the six.
    """
    for base in (root, root / "CarDD_COCO", root / "CarDD_release" / "CarDD_COCO"):
        if (base / "annotations").is_dir():
            break
    else:
        raise UserError(f"{root} holds no CarDD_COCO/annotations: unpack CarDD there")
    notes: list[str] = []

    files = load_annotations(base, notes)
    labels = {}
    for category in list_categories(files):
        name = category.lower().replace("_", " ")
        if name not in DAMAGES:
            raise UserError(f"{base}: unknown category {category}: CarDD has {', '.join(DAMAGES)}")
        labels[category] = 1 if binary else 1 + DAMAGES.index(name)
    rows, decode = list_images(base, files, labels, notes)
    for split, known in KNOWN.items():
        note_count(notes, f"CarDD {split}", sum(row.split == split for row in rows), known)
    classes = ("background", "damage") if binary else ("background", *DAMAGES)
    return build_index(base, rows, classes, decode, notes=notes)


SOURCE = Source(
    "cardd", read_cardd, lambda root: has_folder(root, "CarDD_COCO", "CarDD_release"), whole=True
)
