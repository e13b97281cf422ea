"""CrackForest (CFD) reader: MATLAB ground truth in which crack is 2.

Layout: ``image/NNN.jpg``, ``groundTruth/NNN.mat``, optional ``seg/``, and where somebody divided
it train.txt, val.txt, test.txt. Shi et al. 2016, https://doi.org/10.1109/TITS.2016.2552248
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    has_folder,
    list_files,
    note_count,
    note_missing,
    pair,
)
from src.data.sources.names import read_split_lists
from src.files import is_of_the_system
from src.script import UserError

CLASSES = ("background", "crack")
NUM_IMAGES = 118
CRACK = 2  # 1 is road; 22 of the 118 files also hold 3 and 4, which are no cracks


def read_cfd(root: Path) -> MaskIndex:
    """List the road images in their own split where lists exist, else undivided.

    Raises:
        UserError: no ``image`` folder with images below ``root``.
    """
    images = list_files(root / "image", IMAGE_SUFFIXES)
    if not images:
        raise UserError(f"{root} holds no image/NNN.jpg: unpack CrackForest there")
    masks = list_files(root / "groundTruth", frozenset({".mat"}))
    splits = read_split_lists(root, images)
    notes: list[str] = []
    note_count(notes, "CrackForest images", len(images), NUM_IMAGES)
    note_missing(notes, "CrackForest: listed but missing", [n for n in splits if n not in images])
    rows: list[Row] = []
    for split in dict.fromkeys(splits.get(name, "") for name in images):
        part = {name: path for name, path in images.items() if splits.get(name, "") == split}
        known = {name: path for name, path in masks.items() if name in part}
        rows += pair(root, part, known, split, notes=notes)
    return build_index(root, rows, CLASSES, decode_cracks, notes=notes)


def decode_cracks(path: Path) -> np.ndarray:
    """Read ``groundTruth.Segmentation == 2`` of a MATLAB file: (H, W) uint8, 1 is crack.

    Raises:
        UserError: not a MATLAB file of this form.
    """
    from scipy.io import loadmat

    try:
        labels = loadmat(path, simplify_cells=True)["groundTruth"]["Segmentation"]
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        if is_of_the_system(error):
            raise
        raise UserError(f"{path} holds no groundTruth.Segmentation: restore the file") from error
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "uif" or not labels.size:
        raise UserError(f"{path}: groundTruth.Segmentation is not a 2-D array: restore the file")
    return (labels == CRACK).astype(np.uint8)


SOURCE = Source(
    "cfd", read_cfd, lambda root: has_folder(root, "groundTruth") and has_folder(root, "image")
)
