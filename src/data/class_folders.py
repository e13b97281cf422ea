"""Training images in folders named by their classes, or in files so named (``cat.0.jpg``)."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from src.classes import is_number, nfc
from src.data.columns import SUBJECTS, check_labels, repeats_much, splits_classes
from src.data.files import Scanner, below
from src.data.root import find_sample, find_split, find_split_table, name_tables, read_name
from src.data.rows import Index, find_classes, make_columns
from src.data.sample import asked_of
from src.data.sources.frames import find_series
from src.data.sources.places import read_place
from src.data.tables import other_tables
from src.script import UserError, counted

_MASK = re.compile(r"[-_ ]+(masks?|segmentation|seg|gt)([-_ ]?\d+)?$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*[^\W\d_].*?)[-_. ]*\(?\d+\)?")  # cat.0, Abyssinian_12, dog (3)


def read_class_folders(root: Path, train: str, known: Collection[str] = ()) -> Index:
    """Index the images of ``train`` (below ``root``, or ".") by the folders, else names, they have.

    ``known`` are the classes of the data that these images are added to: one of them is enough.

    Raises:
        UserError: no images, or only one class where two are needed.
    """
    scanner, least = Scanner(root), 1 if known else 2
    place = _class_parent(scanner, train)
    notes = [f"the class folders lie in {place}/"] if place != train else []
    folders = scanner.images_by_folder(place)
    again = _leave_again_out(root, place, folders)
    pairs = {image: nfc(folder) for folder, found in folders.items() for image in found}
    loose = sorted(f"{place}/{name}" for name in scanner.loose(place))
    deeper = _asked_level(root, place, pairs)
    lone = len(set(pairs.values())) < 2 and not {*pairs.values()} & {*known}
    named = _classes_of_names(loose or [*pairs]) if lone else {}
    if named:
        counts = Counter(named.values()).most_common(3)
        shown = ", ".join(f"{name} ({count})" for name, count in counts)
        notes = [f"no class folders in {train}/: the files' names say the classes: {shown}, …"]
        masks = [name for name in scanner.subfolders("") if read_place([name]).kind == "mask"]
        if any(map(scanner.holds, masks)):
            notes.append(
                f"{', '.join(masks)}: are these masks? train_lane.py learns one class of them, "
                "train_distill.py several"
            )
        pairs, loose = named, []
    else:
        notes += again + (deeper or _note_folders(scanner, place, folders))
    if not pairs:
        left = "".join(f"; {line}" for line in scanner.left_out(doubtful=True))
        raise UserError(
            f"no images in class folders below {root / train}: {name_tables(root)}expected "
            f"{train}/<class>/*.jpg{left}"
        )
    only = {*pairs.values()}
    if {"image", "mask"} <= {read_place([name]).kind for name in only}:
        raise UserError(
            f"{root / place} holds images and masks ({', '.join(sorted(only))}), which "
            "train_lane.py learns; classes are folders, train/<class>/"
        )
    cases = not known and all(re.search(r"\d", name) for name in only)
    if cases and len(pairs) == len(only) >= 20:
        raise UserError(
            f"{root / place}: each of its {len(only)} folders has one image, first {min(pairs)}: "
            f"where they are cases and no classes, name their classes in {root / 'train.csv'} "
            "(image,label)"
        )
    if len(only) < least:
        raise UserError(
            f"{root / train} has only one class, {only.pop()!r}: at least two are needed: "
            f"{name_tables(root)}lay the images of each class in {train}/<class>/, or name them in "
            f"{root / 'train.csv'} (image,label)"
        )
    pairs |= _validation_images(root, scanner, only, notes)
    pairs = {posixpath.normpath(image): name for image, name in pairs.items()}
    drawn = find_masks(root, pairs, notes)
    pairs = {image: name for image, name in pairs.items() if image not in drawn}
    notes += _note_unused(root, scanner) if train != "." else []
    if loose:
        notes.append(f"{counted(len(loose), 'image')} directly in {place}/ without class: left out")
    return _to_index(root, root / train, pairs, notes + scanner.left_out(), scanner)


def _asked_level(root: Path, place: str, pairs: dict[str, str]) -> list[str]:
    """Make the deeper folders the classes that the sample submission asks for; return a note."""
    names, cells, _ = asked_of(root)
    asked = {*map(nfc, cells if len(names) == 1 else names)}
    vague = not asked or (len(names) == 1 and all(map(is_number, asked)))
    if vague or not asked.isdisjoint(pairs.values()):
        return []
    parts = {image: nfc(image[len(place) + 1 :]).split("/")[:-1] for image in pairs}
    for level in range(1, min(map(len, parts.values()), default=0)):
        inner = {image: names[level] for image, names in parts.items()}
        if asked.issubset(inner.values()):
            pairs |= inner
            first = min(inner.values())
            return [f"classes are the folders in those of {place}/, as the sample asks: {first}, …"]
    return []


def find_masks(root: Path, images: Mapping[str, str], notes: list[str]) -> set[str]:
    """Return those of ``images`` (path → class) that are masks of others; ``notes`` says them.

    ``7_mask.png`` lies beside ``7.png``, ``cat/masks/7.png`` by ``cat/images/7.png``; masks have
    few different values.
    """
    folders = {*map(posixpath.dirname, images)}
    folders = {name for name in folders if any(read_place([p]).kind for p in name.split("/"))}
    named = [
        name
        for name in images
        if _MASK.search(posixpath.splitext(name)[0]) or posixpath.dirname(name) in folders
    ]
    bare = {_unmasked(image, images[image]) for image in images} if named else set()
    found = {
        image for image in named
        if (plain := _unmasked(image, images[image], deep=True)) in bare
        and plain != _unmasked(image, images[image])
    }  # fmt: skip
    if not found:
        return set()
    said = f"{counted(len(found), 'file')} named as masks of images there, first {min(found)}"
    if not all(_is_drawn(root / image) for image in sorted(found)[:8]):
        notes.append(f"{said}: taken for images; if they are masks, move them away")
        return set()
    notes.append(
        f"{said}: left out; train_lane.py learns masks of one class, train_distill.py of several"
    )
    return found


def _unmasked(image: str, name: str, *, deep: bool = False) -> tuple[str, ...]:
    """Return the parts of a path without folders such as images/, or ``deep`` masks/ and _mask."""
    *folders, file = posixpath.splitext(image)[0].split("/")
    kinds = ("image", "mask") if deep else ("image",)
    kept = [part for part in folders if nfc(part) == name or read_place([part]).kind not in kinds]
    return (*kept, _MASK.sub("", file) or file if deep else file)


def _is_drawn(path: Path) -> bool:
    from src.data.decode import decode_image

    with contextlib.suppress(UserError):
        return len(np.unique(decode_image(path))) <= 16
    return False


def _to_index(
    root: Path, train: Path, pairs: dict[str, str], notes: list[str], scanner: Scanner
) -> Index:
    """Return the index of image → class, sorted by path in NFC."""
    images = sorted(pairs, key=lambda image: (nfc(image), image))
    targets = [pairs[image] for image in images]
    ids = [nfc(image) for image in images]
    if len(set(ids)) < len(ids):  # twins with files of the same name keep their own spelling
        count = Counter(ids)
        ids = [key if count[key] == 1 else image for key, image in zip(ids, images, strict=True)]
    notes += check_labels(targets, train)
    groups = group_by_name(images, targets, notes)
    columns = make_columns(ids, images, targets, groups, split="train")
    notes += scanner.notes
    return Index(root, columns, find_classes(targets, train, least=1), tuple(notes))


def _leave_again_out(root: Path, place: str, folders: dict[str, list[str]]) -> list[str]:
    """Leave folders out that hold but copies of the class folders beside them; return notes."""
    notes = []
    for name, found in [*folders.items()]:
        twins = (root / place / path[len(f"{place}/{name}/") :] for path in found)
        if found and all(map(_are_as_long, twins, map(root.joinpath, found))):
            notes.append(
                f"{place}/{name}/ holds copies of the classes beside it: {len(folders.pop(name))} "
                "images are left out; move it away"
            )
    return notes


def _are_as_long(one: Path, other: Path) -> bool:
    return one.is_file() and one.stat().st_size == other.stat().st_size


def _note_folders(scanner: Scanner, place: str, folders: dict[str, list[str]]) -> list[str]:
    """Return notes on class folders that are empty, twins, or hold nothing but folders."""
    notes = [
        f"class folder {place}/{folder} has no images: no such class is trained"
        for folder, found in folders.items() if not found
    ]  # fmt: skip
    twins = Counter(map(nfc, folders))
    notes += [
        f"class {name} lies in {count} folders that differ in Unicode form only: merged"
        for name, count in twins.items()
        if count > 1
    ]
    full = [folder for folder, found in folders.items() if found]
    inner = [
        f"{folder}/{name}" for folder in full for name in scanner.subfolders(f"{place}/{folder}")
    ]
    if len(inner) > len(full) and not any(scanner.holds(f"{place}/{folder}") for folder in full):
        notes.append(
            f"folders inside the class folders ({', '.join(inner[:3])}, …) are taken together: if "
            f"they are the classes, move them into {place}/"
        )
    return notes


def _classes_of_names(images: list[str]) -> dict[str, str]:
    """Return image → class where all names are words and a number, and each class has several."""
    found = {image: _NUMBERED.fullmatch(Path(nfc(image)).stem) for image in images}
    named = {image: match[1].strip("-_. ") for image, match in found.items() if match}
    counts = Counter(named.values())
    sure = len(named) == len(images) and len(counts) > 1 and min(counts.values()) > 1
    return named if sure else {}


def _note_unused(root: Path, scanner: Scanner) -> list[str]:
    """Return notes on tables and folders of images in ``root`` that are no split."""
    used = {find_split(root, split) for split in ("train", "valid", "test")}
    names = {path.relative_to(root).parts[0] for path in used if path is not None}
    rows = find_sample(root) or find_split_table(root, "test")  # where a folder's name says test
    others = [
        name for name in scanner.subfolders("")
        if name not in names
        and not (rows and read_name(name)[0] == "test")
        and (scanner.holds(name) or any(scanner.holds(f"{name}/{inner}")
                                        for inner in scanner.subfolders(name)[:20]))
    ]  # fmt: skip
    notes = [f"folders of images that are not used: {', '.join(others[:5])}"] if others else []
    unused = other_tables(root, None)
    if unused:
        notes.append(
            f"{', '.join(unused)} is not used: the classes are the folders; if it says the "
            "classes, or groups of images, rename it to train.csv"
        )
    return notes


def _class_parent(scanner: Scanner, folder: str) -> str:
    """Return the folder whose folders are the classes: ``folder``, or the lone one inside it."""
    for _ in range(3):
        inner = scanner.subfolders(folder)
        deeper = f"{folder}/{inner[0]}" if len(inner) == 1 else ""
        if not deeper or scanner.holds(folder) or scanner.holds(deeper):
            break
        if not scanner.subfolders(deeper):
            break
        folder = deeper
    return folder


def _validation_images(
    root: Path, scanner: Scanner, classes: set[str], notes: list[str]
) -> dict[str, str]:
    """Return image → class of a validation folder with class folders of the same names.

    They are trained on like the others: folds hold out rows of their own.
    """
    valid = find_split(root, "valid")
    if valid is None:
        return {}
    valid_name = below(root, valid)
    found = scanner.images_by_folder(_class_parent(scanner, valid_name))
    pairs = {image: nfc(name) for name, images in found.items() for image in images}
    strange = sorted({*pairs.values()} - classes)
    if not pairs or strange:
        why = f"it has classes that train/ has not ({', '.join(strange[:3])})"
        if len(found) < 2:  # val/images/
            why = f"it has no images in class folders ({valid_name}/<class>/)"
        notes.append(f"{valid_name}/ is not used: {why}")
        return {}
    notes.append(
        f"{counted(len(pairs), f'image of {valid_name}/ is', f'images of {valid_name}/ are')} "
        "trained on too, for the folds hold out images of their own: move "
        f"{valid_name}/ away to train without them"
    )
    return pairs


_WORD_NUMBER = re.compile(r"([^\W\d_]+)[-_ ]?(\d+)")  # person12, house 7
_SIDE = re.compile(r"(.+)[-_ ](?:left|right|od|os|[lr])\.\w+")  # 10_left.jpeg, 10_right.jpeg
_VERSION = re.compile(r"(.+)\.rf\.[0-9a-f]{20,}\.[^.]+")  # Roboflow's names of altered copies


def group_by_name(images: Sequence[str], labels: Sequence[str], notes: list[str]) -> list[str]:
    """Return the groups that paths tell of, "" for none; ``notes`` says which.

    The copies that a tool made of one picture, and the images of one subject ("person12_virus3").
    """
    found = [_VERSION.fullmatch(image) for image in images]
    sources = Counter(match[1] for match in found if match)
    groups = [match[1] if match and sources[match[1]] > 1 else "" for match in found]
    if count := len({*groups} - {""}):
        said = counted(count, "picture")
        notes.append(f"{said} with altered copies (.rf. in their names): those share a fold")
    subjects = _find_subjects(images, labels)
    if subjects:
        number, first = len({*subjects} - {""}), next(filter(None, subjects))
        notes.append(f"file names tell of {number} subjects, such as {first}: each is in one fold")
        groups = [subject or group for subject, group in zip(subjects, groups, strict=True)]
    series = find_series([posixpath.splitext(image)[0] for image in images])
    if not count and not subjects and splits_classes(series, labels):
        first = next(image for image, name in zip(images, series, strict=True) if name)
        notes.append(
            f"{len({*series} - {''})} series of names differ in their last number alone, such as "
            f"{first}: if the images of one belong together, give train.csv (image, label) a "
            "column group"
        )
    return groups


def _find_subjects(images: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return the subject that each path names by a word and a number, "" for none.

    As in "person12_virus3" or "patient 7/scan.png". The word is one that could name a column of
    groups, its numbers are many enough for one; of several words the one with the fewest. Else
    names that differ in their side alone ("10_left", "10_right"). Empty where there is none.
    """
    found: dict[str, dict[int, str]] = {}  # numbers by row, by word
    sides: dict[int, str] = {}
    for row, image in enumerate(images):
        for word, number in _WORD_NUMBER.findall(image.casefold()):
            if word in SUBJECTS:
                found.setdefault(word, {}).setdefault(row, f"{word}{number}")
        if side := _SIDE.fullmatch(image.casefold()):
            sides[row] = side[1]

    def fits(named: dict[int, str]) -> bool:
        own = [named.get(row, image) for row, image in enumerate(images)]
        return repeats_much([*named.values()]) and splits_classes(own, labels)

    fit = [*filter(fits, found.values())] or [*filter(fits, [sides])]
    best = min(fit, key=lambda rows: len({*rows.values()}), default={})
    return [best.get(row, "") for row in range(len(images))] if best else []
