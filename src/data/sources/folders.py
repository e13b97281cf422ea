"""Any ``images/`` + ``masks/`` folders in, the index table out.

Layouts: ``{train,val,test}/{images,masks}``, or ``images`` + ``masks`` with optional lists
train.txt, val.txt, test.txt beside them. A mask has its image's stem (``7_mask.png`` is one of
``7.jpg`` too), and lies in a subfolder of the same name. ``classes.txt`` (one name a
line) names the labels. Masks: index PNG (255 void), PNG of two values, or ``.npy``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from src.data.sources.frames import group_neighbours
from src.data.sources.labels import settle_labels
from src.data.sources.lists import read_split_lists
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    MaskIndex,
    Row,
    build_index,
    list_files,
    note_missing,
    pair,
)
from src.data.sources.stems import match_masks
from src.script import UserError

_SPLITS = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}


def read_folders(
    root: Path | str,
    *,
    classes: Sequence[str] = (),
    labels: str = "auto",
    frames: int = 0,
) -> MaskIndex:
    """List images and masks below ``root``.

    Args:
        root: see the layouts above.
        classes: name of every label; from ``classes.txt``, or counted in the masks, when empty.
        labels: "index" (class numbers), "binary" (0/1 or 0/255) or "auto" (looked up in the
            masks: 0 and one other value is binary).
        frames: group frames with consecutive numbers, at most so many together; 0 = no groups.

    Raises:
        UserError: no images, or masks that fit neither form.
    """
    root = Path(root)
    notes: list[str] = []
    rows = list(list_pairs(root, notes))
    if frames:
        groups = group_neighbours((row.id for row in rows), block=frames)
        rows = [row._replace(group=groups[row.id]) for row in rows]
    if labels not in {"auto", "index", "binary"}:
        raise UserError(f"labels must be auto, index or binary, not {labels}")
    names = tuple(classes) or _read_classes(root)
    targets = [root / row.target for row in rows if row.target]
    names, decode, void = settle_labels(targets, names, labels, notes)
    return build_index(root, rows, names, decode, ignore_index=void, notes=notes, blocks=frames > 0)


def list_pairs(root: Path, notes: list[str]) -> Iterator[Row]:
    """Yield the rows of either layout; what is missing is added to ``notes``.

    Raises:
        UserError: neither layout, no mask that fits an image, or lists of other images.
    """
    divided = [name for name in _SPLITS if (root / name / "images").is_dir()]
    for name in divided:
        images, masks = _list_both(root / name, notes)
        yield from pair(root, images, masks, _SPLITS[name], notes=notes)
    if divided:
        return
    if not (root / "images").is_dir():
        raise UserError(f"{root} has no images/ and no train/images/: see the folder layouts")
    images, masks = _list_both(root, notes)
    splits = read_split_lists(root, images)
    note_missing(notes, f"{root}: listed but missing", [n for n in splits if n not in images])
    if not splits:
        yield from pair(root, images, masks, notes=notes)
        return
    note_missing(notes, f"{root}: in no list", [n for n in images if n not in splits])
    for split in dict.fromkeys(splits.values()):
        part = {n: path for n, path in images.items() if splits.get(n) == split}
        known = {n: path for n, path in masks.items() if n in part}
        yield from pair(root, part, known, split, notes=notes)


def _list_both(base: Path, notes: list[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """List images/ and masks/ below ``base``, subfolders too, the masks by their images' ids."""
    images = list_files(base / "images", IMAGE_SUFFIXES, deep=True)
    folder = base / "masks"
    masks = list_files(folder, MASK_SUFFIXES, deep=True)
    if not masks and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.rglob("*.*")):
        raise UserError(f"{folder} holds no .png or .npy: JPEG changes labels, save masks as PNG")
    return images, match_masks(images, masks, notes)


def _read_classes(root: Path) -> tuple[str, ...]:
    path = root / "classes.txt"
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
