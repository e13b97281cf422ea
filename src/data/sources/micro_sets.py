"""Readers of the micro track's five sets in their own layouts: VOC, ETIS, CVPPP, CFD, CarDD.

Layouts: docs/layouts.md.
- PASCAL VOC 2012, or another year: palette masks, 255 is void.
  http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
- ETIS-LaribPolypDB: 196 colonoscopy frames with 0/255 masks, grouped by sequence.
  Silva et al. 2014, https://doi.org/10.1007/s11548-013-0926-3
- CVPPP 2017 leaf segmentation (LSC): plant against background, foreground is label > 0.
  Minervini et al. 2016, https://doi.org/10.1016/j.patrec.2015.10.013
- CrackForest (CFD): crack is 2 in MATLAB files.
  Shi et al. 2016, https://doi.org/10.1109/TITS.2016.2552248
- CarDD: COCO JSON of six kinds of car damage, as classes or as damage against none; handed out
  after signing a form. Wang, Li & Wu 2023, https://doi.org/10.1109/TITS.2023.3258480
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from src.data.decode import VOID, decode_mask
from src.data.files import below
from src.data.sources.annotations import load_annotations
from src.data.sources.coco import list_categories, list_images
from src.data.sources.folders import read_classes
from src.data.sources.frames import split_number
from src.data.sources.labels import decode_foreground
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    has_file,
    has_folder,
    list_files,
    note_count,
    note_missing,
    pair,
)
from src.data.sources.names import read_lines, read_split_lists
from src.files import is_of_the_system
from src.script import UserError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
decode_voc = partial(decode_mask, num_classes=len(VOC_CLASSES), ignore_index=VOID)
_VOC_LISTS = "ImageSets/Segmentation"
_VOC_KNOWN = {"train": 1464, "valid": 1449}  # the 1,456 test images come in an archive of their own


def read_voc(root: Path) -> MaskIndex:
    """List the images of ImageSets/Segmentation, in the order of its lists.

    Raises:
        UserError: no devkit below ``root``.
    """
    base = find_devkit(root)
    if base is None:
        raise UserError(f"{root} holds no VOC2012/ImageSets/Segmentation: unpack the devkit there")
    notes: list[str] = []
    others = [path for path in _find_devkits(root, "test.txt") if path != base]
    note_missing(notes, "test images of another archive, which --data_dir may name later",
                 [below(root, path) for path in others])  # fmt: skip
    rows: list[Row] = []
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines = read_lines(base / "ImageSets" / "Segmentation" / f"{name}.txt")
        ids = [line.split()[0] for line in lines]
        part = list(_list_voc(base, ids, split, notes))
        if split in _VOC_KNOWN:
            note_count(notes, f"VOC 2012 {name}", len(part), _VOC_KNOWN[split])
        rows += part
    return build_index(base, rows, VOC_CLASSES, decode_voc, ignore_index=VOID, notes=notes)


def find_devkit(root: Path) -> Path | None:
    """Find the folder that holds ImageSets/Segmentation/train.txt, None where there is none.

    Of several years it is 2012, else the last; a set that names classes of its own is none.
    """
    years = sorted(_find_devkits(root, "train.txt"), reverse=True)
    years.sort(key=lambda path: (path != root, path.name != "VOC2012"))
    return years[0] if years and not read_classes(years[0]) else None


def _find_devkits(root: Path, name: str) -> list[Path]:
    """List the folders down to three below ``root`` that have such a list."""
    paths = (p for depth in range(4) for p in root.glob("*/" * depth + f"{_VOC_LISTS}/{name}"))
    return [path.parents[2] for path in paths]


def _list_voc(base: Path, ids: list[str], split: str, notes: list[str]) -> Iterator[Row]:
    missing = []
    for name in ids:
        image, mask = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
        has_mask = (base / mask).is_file()
        if not (base / image).is_file() or not (has_mask or split == "test"):
            missing.append(name)
            continue
        yield Row(name, image, mask if has_mask else "", "", split)
    note_missing(notes, f"VOC 2012 {split}: listed, but image or mask is missing", missing)


VOC = Source("voc", read_voc, lambda root: find_devkit(root) is not None, whole=True)


ETIS_CLASSES = ("background", "polyp")
ETIS_KNOWN = 196

# First frame of each sequence. The set has 34 sequences but ships no list of them: this one was
# read off the frames, which are numbered in the order of the videos (mostly six to a polyp).
# Where two neighbouring sequences look alike or alternate they stay one group, hence 29 here:
# merging costs a little balance between folds, parting would leak.
_SEQUENCE_STARTS = (
    1, 7, 13, 19, 25, 37, 43, 49, 57, 63, 69, 75, 81, 87, 93, 99, 105, 113, 121, 133, 139, 147,
    153, 159, 165, 171, 177, 183, 191,
)  # fmt: skip


def read_etis(root: Path) -> MaskIndex:
    """List the frames; the set has no split of its own.

    Raises:
        UserError: no frames below ``root``.
    """
    notes: list[str] = []
    images, masks = _find_etis(root)
    if not images:
        raise UserError(f"{root} holds no N.tif or images/N.*: unpack ETIS-LaribPolypDB there")
    numbers = {split_number(name)[1] for name in images}
    absent = [str(n) for n in range(1, ETIS_KNOWN + 1) if n not in numbers]
    note_count(notes, "ETIS frames", len(images), ETIS_KNOWN)
    note_missing(notes, "ETIS frames that are missing", absent)
    rows = pair(root, images, masks, notes=notes, group=sequence_of)
    return build_index(root, list(rows), ETIS_CLASSES, decode_foreground, notes=notes)


def sequence_of(name: str) -> str:
    """Name the sequence of a frame by its first number: "ETIS_8" -> "seq007"; "" if unknown."""
    number = split_number(name)[1]
    if not 1 <= number <= ETIS_KNOWN:
        return ""
    return f"seq{_SEQUENCE_STARTS[bisect_right(_SEQUENCE_STARTS, number) - 1]:03d}"


def _find_etis(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    pairs = (("images", "masks"), ("ETIS-LaribPolypDB", "Ground Truth"), (".", "Ground Truth"))
    for image_folder, mask_folder in pairs:
        images = list_files(root / image_folder, IMAGE_SUFFIXES)
        if images:
            return images, list_files(
                root / mask_folder, MASK_SUFFIXES,
                lambda stem: stem.removeprefix("p") if stem[1:].isdigit() else stem,
            )  # fmt: skip
    return {}, {}


ETIS = Source(
    "etis", read_etis,
    lambda root: has_folder(root, "Ground Truth") and not has_folder(root, "Original"),
)  # fmt: skip


CVPPP_CLASSES = ("background", "plant")
_CVPPP_KNOWN = {"A1": 128, "A2": 31, "A3": 27, "A4": 624}  # labelled plants, 810 in all
_PNG = frozenset({".png"})
_CVPPP_TOPS = (".", "training", "testing", "CVPPP2017_LSC_training", "CVPPP2017_LSC_testing")


def read_cvppp(root: Path) -> MaskIndex:
    """List the plants; those without a label or fg file are the test split.

    Raises:
        UserError: no ``A*/plant*_rgb.png`` below ``root``.
    """
    notes: list[str] = []
    rows: list[Row] = []
    for top in _find_cvppp(root):
        part = list(_list_plants(root, top, notes))
        labelled = sum(bool(row.target) for row in part)
        if labelled and top.name in _CVPPP_KNOWN:
            note_count(notes, f"CVPPP {top.name} labelled", labelled, _CVPPP_KNOWN[top.name])
        rows += part
    if not rows:
        raise UserError(f"{root} holds no A1/plantNNN_rgb.png: unpack CVPPP2017_LSC there")
    present = {row.id.split("_")[0] for row in rows if row.target}
    note_missing(
        notes, "CVPPP folders that are missing", [a for a in _CVPPP_KNOWN if a not in present]
    )
    return build_index(root, rows, CVPPP_CLASSES, decode_plant, notes=notes)


def decode_plant(path: Path) -> np.ndarray:
    """Read leaf numbers, or the fg mask, as 1 where there is any plant: (H, W) uint8."""
    return (decode_mask(path) > 0).astype(np.uint8)


def _find_cvppp(root: Path) -> Iterator[Path]:
    for top in _CVPPP_TOPS:
        yield from sorted(path for path in (root / top).glob("A[0-9]*") if path.is_dir())


def _list_plants(root: Path, folder: Path, notes: list[str]) -> Iterator[Row]:
    files = list_files(folder, _PNG)
    images, labels, fgs = (
        {name.removesuffix(end): path for name, path in files.items() if name.endswith(end)}
        for end in ("_rgb", "_label", "_fg")
    )
    targets = fgs | labels
    lone = [name for name in images if name not in targets] if targets else []
    note_missing(notes, f"CVPPP {folder.name}: plants without _label or _fg, left out", lone)
    for name, path in images.items():
        identity = f"{folder.name}_{name}"
        if not targets:
            yield Row(identity, below(root, path), split="test")
        elif name in targets:
            yield Row(identity, below(root, path), below(root, targets[name]))


CVPPP = Source("cvppp", read_cvppp, lambda r: has_file(r, "A[0-9]*/*_rgb.png"), whole=True)


CFD_CLASSES = ("background", "crack")
CFD_KNOWN = 118
_CRACK = 2  # 1 is road; 22 of the 118 files also hold 3 and 4, which are no cracks


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
    note_count(notes, "CrackForest images", len(images), CFD_KNOWN)
    note_missing(notes, "CrackForest: listed but missing", [n for n in splits if n not in images])
    rows: list[Row] = []
    for split in dict.fromkeys(splits.get(name, "") for name in images):
        part = {name: path for name, path in images.items() if splits.get(name, "") == split}
        known = {name: path for name, path in masks.items() if name in part}
        rows += pair(root, part, known, split, notes=notes)
    return build_index(root, rows, CFD_CLASSES, decode_cracks, notes=notes)


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
    return (labels == _CRACK).astype(np.uint8)


CFD = Source(
    "cfd", read_cfd, lambda root: has_folder(root, "groundTruth") and has_folder(root, "image")
)


_DAMAGES = ("dent", "scratch", "crack", "glass shatter", "lamp broken", "tire flat")
_CARDD_KNOWN = {"train": 2816, "valid": 810, "test": 374}


def read_cardd(root: Path, *, binary: bool = False) -> MaskIndex:
    """List the photographs in the set's own split.

    With ``binary`` they are damage against none, instead of the six kinds.

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
        if name not in _DAMAGES:
            raise UserError(f"{base}: unknown category {category}: CarDD has {', '.join(_DAMAGES)}")
        labels[category] = 1 if binary else 1 + _DAMAGES.index(name)
    rows, decode = list_images(base, files, labels, notes)
    for split, known in _CARDD_KNOWN.items():
        note_count(notes, f"CarDD {split}", sum(row.split == split for row in rows), known)
    classes = ("background", "damage") if binary else ("background", *_DAMAGES)
    return build_index(base, rows, classes, decode, notes=notes)


CARDD = Source(
    "cardd", read_cardd, lambda root: has_folder(root, "CarDD_COCO", "CarDD_release"), whole=True
)
