"""Reader of any folders of images and masks.

Folders' names say which files are images and which are masks, and the split where they are divided;
else lists may. A mask has its image's stem. The rules: docs/layouts.md.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from src.classes import nfc
from src.data.csv_io import first_lines, read_csv
from src.data.files import BESIDE as BESIDE_FILES
from src.data.files import SPLIT_OF, split_of_word
from src.data.sources.colours import find_coloured, find_odd_palette, read_colours
from src.data.sources.frames import group_rows
from src.data.sources.labels import (
    is_blurred,
    join_parts,
    settle_blurred,
    settle_colours,
    settle_labels,
)
from src.data.sources.masks import (
    IMAGE_SUFFIXES,
    JPEG,
    MASK_SUFFIXES,
    MaskIndex,
    Row,
    Source,
    build_index,
    note_missing,
    pair,
)
from src.data.sources.names import (
    match_masks,
    part_masks,
    read_lines,
    read_pair_lists,
    read_split_lists,
    strip_all,
)
from src.data.sources.places import describe, is_doubtful, read_place, split_of_name, walk
from src.script import UserError, counted

NAMES = ("classes.txt", "class_names.txt", "labels.txt", "codes.txt")  # labelme, PaddleSeg, fast.ai
_FORMATS = frozenset({"png", "jpg", "jpeg", "tif", "tiff", "bmp"})
# What lies beside images by custom and is no image; other endings are counted aloud.
BESIDE = BESIDE_FILES | {".mat", ".npy"}
_ASIDE = re.compile(r".*_superpixels|label_viz")  # ISIC's, labelme's pictures of labels
_ORDER = ("train", "valid", "test", "")

Files = dict[str, Path]  # by id


class _File(NamedTuple):
    """An image or a mask."""

    split: str
    id: str
    path: Path


def read_folders(
    root: Path, *, classes: Sequence[str] = (), foreground: bool = False, frames: bool = False
) -> MaskIndex:
    """List images and masks below ``root``.

    Args:
        root: the data folder.
        classes: name of every label; from ``classes.txt``, or counted in the masks, when empty.
        foreground: whether every number or colour above 0 is the one class against background;
            else the masks say it: 0 and one other value.
        frames: whether frames with consecutive numbers form groups.

    Raises:
        UserError: no images, or masks that fit neither form.
    """
    notes: list[str] = []
    parts: dict[Path, list[Path]] = {}
    rows = list(list_pairs(root, notes, parts))
    if frames:
        rows = group_rows(rows)
    names = tuple(classes) or read_classes(root)
    targets = [root / row.target for row in rows if row.target]
    targets += [path for more in parts.values() for path in more]
    colours = read_colours(root)
    if targets and is_blurred(targets[0]):
        names, decode, void = settle_blurred(targets, names, notes)
    elif coloured := find_coloured(targets) or find_odd_palette(targets, colours):
        names, decode, void = settle_colours(coloured, targets, names, foreground, colours, notes)
    else:
        known = names or (colours.of_numbers if colours else ())
        names, decode, void = settle_labels(targets, known, foreground, notes)
    decode = join_parts(decode, parts, names, notes)
    return build_index(root, rows, names, decode, ignore_index=void, notes=notes, blocks=frames)


def list_pairs(root: Path, notes: list[str], parts: dict[Path, list[Path]]) -> Iterator[Row]:
    """Yield the rows of any layout; what is missing is added to ``notes``.

    ``parts`` receives the further parts of masks, by their first.

    Raises:
        UserError: no images, no mask that fits an image, or lists of other images.
    """
    images, masks = _list_files(root, notes)
    if not images:
        raise UserError(
            f"{root} holds no images/ with images ({', '.join(sorted(IMAGE_SUFFIXES))}): found "
            f"{describe(root)}; the layouts are in docs/layouts.md"
        )
    _refuse_copies(images)
    pairs, said = read_pair_tables(root)
    pairs |= read_pair_lists(root)
    named = {*pairs.values()}
    images, masks = (
        {split: {n: p for n, p in part.items() if p not in named} for split, part in files.items()}
        for files in (images, masks)
    )
    loose = _match_loose(images, masks.pop("", {}), pairs, notes, parts)
    if set(images) == {""}:
        images = _divide(root, images[""], masks, said, notes)
    known = {
        split: masks.get(split, {}) | {n: p for n, p in loose.items() if n in part}
        for split, part in images.items()
    }
    blind = Counter(name for split, part in images.items() if not known[split] for name in part)
    for split in sorted(images, key=_ORDER.index):
        part, drawn = images[split], known[split]
        if not drawn and (loose or masks):
            _tell_blind(root, split, notes)
        for row in pair(root, part, match_masks(part, drawn, notes, parts), split, notes=notes):
            twice = not drawn and blind[row.id] > 1  # in two splits that both become test
            yield row._replace(id=f"{split}/{row.id}") if twice else row
    lone = [n for n in loose if not any(n in part for part in images.values())]
    note_missing(notes, f"{root}: masks without an image", lone)


def _tell_blind(root: Path, split: str, notes: list[str]) -> None:
    """Refuse a train split without masks where another has some; note a valid split without."""
    if split == "train":
        raise UserError(
            f"{root}: the train split has images but no masks, other splits have some: found "
            f"{describe(root)}; name its folder of masks as the others', or remove its images"
        )
    if split == "valid":
        notes.append(f"{root}, split valid: no masks, so its images are to be predicted")


def holds_masks(root: Path, suffixes: Collection[str] = MASK_SUFFIXES) -> bool:
    """Tell whether folders of masks with masks (of such endings) in them lie below ``root``."""
    return any(
        read_place(parts).kind == "mask"
        and any(Path(file).suffix.lower() in suffixes for file in files)
        for parts, files in walk(root)
    )


def is_divided(root: Path) -> bool:
    """Tell whether a folder's name below ``root`` says masks and their split."""
    places = (read_place(parts) for parts, _ in walk(root))
    return any(place.kind == "mask" and place.split for place in places)


def read_classes(root: Path) -> tuple[str, ...]:
    """Read the names of the labels 0..K-1 from the file that lists them; () where none does.

    Raises:
        UserError: it is not UTF-8.
    """
    for table in (root / "_classes.csv", root / "train" / "_classes.csv"):  # Roboflow
        rows = [line.rsplit(",", 1) for line in read_lines(table)[1:]]
        if rows and [row[0].strip() for row in rows] == [str(n) for n in range(len(rows))]:
            return tuple(row[-1].strip() for row in rows)
    lines = read_lines(root / "objectInfo150.txt")  # ADE20K: 0 is everything else
    if lines:
        return ("other", *(line.split("\t")[-1].split(",")[0].strip() for line in lines[1:]))
    for name in NAMES:
        lines = [line for line in read_lines(root / name) if line != "__ignore__"]
        names_files = name != "classes.txt" and any("/" in line or "." in line for line in lines)
        if lines and not names_files:
            return tuple("background" if line == "_background_" else line for line in lines)
    return ()


def _list_files(
    root: Path, notes: list[str], *, loose: bool = True
) -> tuple[dict[str, Files], dict[str, Files]]:
    """List images and masks as {split: {id: path}}."""
    aside: list[str] = []
    found: dict[str, list[_File]] = {"image": [], "mask": [], "": []}
    skipped: dict[str, list[_File]] = {"image": [], "mask": [], "": []}
    for parts, files in walk(root):
        place = read_place(parts, loose=loose)
        suffixes = MASK_SUFFIXES if place.kind == "mask" else IMAGE_SUFFIXES
        for path in (root.joinpath(*parts, file) for file in files):
            name = nfc("/".join((*place.rest, path.stem)))
            if _ASIDE.fullmatch(path.stem):
                aside.append(name)
            elif path.suffix.lower() in suffixes:
                found[place.kind].append(_File(place.split, name, path))
            elif path.suffix.lower() not in BESIDE:
                skipped[place.kind].append(_File(place.split, name, path))
    if loose and not found["image"] and not found[""]:
        return _list_files(root, notes, loose=False)
    note_missing(notes, f"{root}: pictures of labels, left out", aside)
    blurred = [file for file in skipped["mask"] if file.path.suffix.lower() in JPEG]
    found["mask"] = found["mask"] or blurred  # JPEG counts where nothing else is there
    _tell_blurred(root, blurred, found["mask"], notes)
    named = {file.split for file in found["image"]}
    others = [file for file in found[""] if not named or file.split not in named | {""}]
    images, masks = found["image"] + others, found["mask"]
    if not masks:
        beside = part_masks([file.path for file in images], twins=not named)
        masks = [file for file in images if file.path in beside]
        images = [file for file in images if file.path not in beside]
    left = skipped["image"] + ([] if named else skipped[""])
    _tell_skipped(root, left, blind=not masks, notes=notes)
    doubtful = {part for parts, _ in walk(root) for part in parts if is_doubtful(part)}
    note_missing(notes, f"{root}: read as plain folders, not as splits", sorted(doubtful))
    return _group(images), _align(_group(images), _group(masks))


def _tell_blurred(
    root: Path, blurred: Sequence[_File], drawn: Sequence[_File], notes: list[str]
) -> None:
    """Count the JPEG masks beside others; a split that has no others is refused."""
    left = [file for file in blurred if file not in drawn]
    splits = {file.split for file in drawn}
    for file in left:
        if file.split not in splits:
            raise UserError(
                f"{file.path.parent} holds no .png or .npy, other splits do: JPEG changes labels, "
                "save masks as PNG"
            )
    what = f"{root}: masks left out, for JPEG changes labels: save as PNG"
    note_missing(notes, what, [file.path.as_posix() for file in left])


def _tell_skipped(root: Path, skipped: Sequence[_File], *, blind: bool, notes: list[str]) -> None:
    """Count the files beside the images that are not read; one to be predicted is refused."""
    for file in skipped:
        if blind or file.split == "test":
            raise UserError(
                f"{file.path} is to be predicted, but is no {', '.join(sorted(IMAGE_SUFFIXES))}: "
                "convert it, or move it away"
            )
    endings = Counter(file.path.suffix.lower() or "without an ending" for file in skipped)
    for ending, count in endings.items():
        notes.append(
            f"{root}: {counted(count, 'file')} {ending} among the images, left out: convert them"
        )


def _refuse_copies(images: Mapping[str, Files]) -> None:
    """Refuse a set that lies there twice, as ``png/`` and ``tiff/``: folds would share images."""
    for part in images.values():
        first: dict[str, tuple[str, Path]] = {}
        for name, path in part.items():
            head, _, rest = name.partition("/")
            if head.casefold() not in _FORMATS:
                continue
            other, known = first.setdefault(rest, (head, path))
            if other != head:
                raise UserError(
                    f"{known} and {path} are one image in two formats: remove the folder {head} or "
                    f"{other}, for held-out images would be trained on"
                )


def _match_loose(
    images: Mapping[str, Files],
    masks: Files,
    pairs: Mapping[Path, Path],
    notes: list[str],
    parts: dict[Path, list[Path]],
) -> Files:
    """Match masks that lie in no split, by the lists that name pairs and else by names.

    Raises:
        UserError: such a mask may belong to images of two splits.
    """
    union: Files = {}
    for part in images.values():
        for name, path in part.items():
            if name in masks and name in union:
                raise UserError(
                    f"{masks[name]} may be the mask of {union[name]} or of {path}: divide the "
                    "masks into the same folders as the images"
                )
            union[name] = path
    said = {name: pairs[path] for name, path in union.items() if path in pairs}
    taken = set(said.values())
    masks = {name: path for name, path in masks.items() if path not in taken and name not in said}
    rest = {name: path for name, path in union.items() if name not in said}
    return said | (match_masks(rest, masks, notes, parts) if rest else masks)


def _group(files: list[_File]) -> dict[str, Files]:
    groups: dict[str, Files] = {}
    for split, name, path in sorted(files, key=lambda file: file.path.parts):
        group = groups.setdefault(split, {})
        other = group.get(name)
        if other is not None and other.parent == path.parent:
            raise UserError(
                f"{other} and {path} are the same image twice: remove one (a mask lies in masks/)"
            )
        arrays = [p for p in (other, path) if p is not None and p.suffix.lower() == ".npy"]
        if other is not None and not arrays:
            raise UserError(f"{other} and {path} have one name: remove one of them, or its folder")
        if other is None or path not in arrays:  # the same labels as .npy and as .png
            group[name] = path
    return groups


def _align(images: dict[str, Files], masks: dict[str, Files]) -> dict[str, Files]:
    """Exchange the outer folders that all masks share for those of the images, where none fits."""
    names = {name for part in images.values() for name in part}
    known = {name for part in masks.values() for name in part}
    forms = {strip_all(name).casefold() for name in names}
    if not known or any(strip_all(name).casefold() in forms for name in known):
        return masks
    head, tail = _common(names), _common(known)
    return {
        split: {head + name.removeprefix(tail): path for name, path in part.items()}
        for split, part in masks.items()
    }


def _common(names: Collection[str]) -> str:
    """Return the folders that all names share: "a/b/" or ""."""
    heads = {name.rpartition("/")[0] for name in names}
    shared = posixpath.commonpath(heads) if heads and "" not in heads else ""
    return f"{shared}/" if shared else ""


def _divide(
    root: Path,
    images: Files,
    masks: Mapping[str, Files],
    said: Mapping[Path, str],
    notes: list[str],
) -> dict[str, Files]:
    """Part images that lie in no split: by the split of their masks, else by tables and lists."""
    splits = {n: s for s, part in masks.items() if s for n in part if n in images}
    splits = splits or {name: said[path] for name, path in images.items() if path in said}
    if not splits:
        splits = read_split_lists(root, images)
        note_missing(notes, f"{root}: listed but missing", [n for n in splits if n not in images])
        rest = [name for name in images if name not in splits]
        if splits and "train" not in splits.values():  # lists of the images held out alone
            splits |= dict.fromkeys(rest, "train" if "valid" in splits.values() else "")
        if splits:
            note_missing(notes, f"{root}: in no list", [n for n in images if n not in splits])
            images = {name: path for name, path in images.items() if name in splits}
    splits = splits or _name_splits(images, notes)
    parts: dict[str, Files] = {}
    for name, path in images.items():
        parts.setdefault(splits.get(name, ""), {})[name] = path
    return parts


def _name_splits(images: Files, notes: list[str]) -> dict[str, str]:
    """Return {id: split} where every file's name begins with a split's, {} elsewhere."""
    words = {name: re.match("[a-z]*", path.stem) for name, path in images.items()}
    found = {name: SPLIT_OF.get(word[0], "") for name, word in words.items() if word}
    splits = {*found.values()}
    if "" in splits or not splits - {"train"} or "train" not in splits:
        return {}
    notes.append("files are divided by the split that their names begin with, as in train_1")
    return found


# Tables whose lines name an image and its mask: train.csv, metadata.csv … in the data folder.
_MASK = re.compile(r"mask|label|annot|gt|truth|target|seg", re.IGNORECASE)
_FILE = re.compile(
    rf"\w({'|'.join(map(re.escape, IMAGE_SUFFIXES | MASK_SUFFIXES))})\b", re.IGNORECASE
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "phase")


def read_pair_tables(root: Path) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Return {image: mask} and {image: split} of the tables in ``root``, of files that exist."""
    pairs: dict[Path, Path] = {}
    splits: dict[Path, str] = {}
    for path in sorted(root.glob("*.csv")):
        head, first = first_lines(path)
        if not _MASK.search(head) or len(_FILE.findall(first)) < 2:
            continue
        table = read_csv(path)
        columns = _path_columns(table)
        if columns is None:
            continue
        split = next((name for name in table.columns if name.casefold() in SPLIT_COLUMNS), None)
        words = table[split] if split else [split_of_name(path.stem)] * len(table)
        for names, word in zip(table[list(columns)].itertuples(index=False), words, strict=True):
            image, mask = (root / name.replace("\\", "/").lstrip("/") for name in names)
            if all(names) and image.is_file() and mask.is_file():
                pairs[image] = mask
                splits |= {image: said} if (said := split_of_word(word)) else {}
    return pairs, splits


def _path_columns(table: pd.DataFrame) -> tuple[str, str] | None:
    """Return the columns of images and of masks; None where either is missing."""
    paths = {
        name: suffix
        for name in table.columns
        if (suffix := Path(next(filter(None, table[name]), "")).suffix.lower())
        in IMAGE_SUFFIXES | MASK_SUFFIXES
    }
    masks = [name for name in paths if _MASK.search(name)]
    images = [name for name in paths if name not in masks]
    return (images[0], masks[0]) if images and masks else None


SOURCE = Source("folders", read_folders)
