"""ETIS-LaribPolypDB reader: 196 colonoscopy frames with 0/255 masks, grouped by sequence.

Layouts: the original ``N.tif`` + ``Ground Truth/pN.tif`` (also ``ETIS-LaribPolypDB/N.tif``), or
``images/N.*`` + ``masks/N.*``. Silva et al. 2014, https://doi.org/10.1007/s11548-013-0926-3
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from src.data.sources.frames import split_number
from src.data.sources.labels import decode_foreground
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    MaskIndex,
    Source,
    build_index,
    has_folder,
    list_files,
    note_count,
    note_missing,
    pair,
)
from src.script import UserError

CLASSES = ("background", "polyp")
NUM_IMAGES = 196

# First frame of each sequence. The set has 34 sequences but ships no list of them: this one was
# read off the frames, which are numbered in the order of the videos (mostly six to a polyp).
# Where two neighbouring sequences look alike or alternate they stay one group, hence 29 here:
# merging costs a little balance between folds, parting would leak.
SEQUENCE_STARTS = (
    1, 7, 13, 19, 25, 37, 43, 49, 57, 63, 69, 75, 81, 87, 93, 99, 105, 113, 121, 133, 139, 147,
    153, 159, 165, 171, 177, 183, 191,
)  # fmt: skip


def read_etis(root: Path) -> MaskIndex:
    """List the frames; the set has no split of its own.

    Raises:
        UserError: no frames below ``root``.
    """
    notes: list[str] = []
    images, masks = _find_files(root)
    if not images:
        raise UserError(f"{root} holds no N.tif or images/N.*: unpack ETIS-LaribPolypDB there")
    numbers = {split_number(name)[1] for name in images}
    absent = [str(n) for n in range(1, NUM_IMAGES + 1) if n not in numbers]
    note_count(notes, "ETIS frames", len(images), NUM_IMAGES)
    note_missing(notes, "ETIS frames that are missing", absent)
    rows = pair(root, images, masks, notes=notes, group=sequence_of)
    return build_index(root, list(rows), CLASSES, decode_foreground, notes=notes)


def sequence_of(name: str) -> str:
    """Name the sequence of a frame by its first number: "ETIS_8" -> "seq007"; "" if unknown."""
    number = split_number(name)[1]
    if not 1 <= number <= NUM_IMAGES:
        return ""
    return f"seq{SEQUENCE_STARTS[bisect_right(SEQUENCE_STARTS, number) - 1]:03d}"


def _find_files(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    pairs = (("images", "masks"), ("ETIS-LaribPolypDB", "Ground Truth"), (".", "Ground Truth"))
    for image_folder, mask_folder in pairs:
        images = list_files(root / image_folder, IMAGE_SUFFIXES)
        if images:
            return images, list_files(
                root / mask_folder, MASK_SUFFIXES,
                lambda stem: stem.removeprefix("p") if stem[1:].isdigit() else stem,
            )  # fmt: skip
    return {}, {}


SOURCE = Source(
    "etis", read_etis,
    lambda root: has_folder(root, "Ground Truth") and not has_folder(root, "Original"),
)  # fmt: skip
