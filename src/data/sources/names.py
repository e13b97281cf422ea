"""Matching of names to image files: of masks, in split lists, and as annotation files write them.

A line of a split list is an image, or an image and its mask. The rules: docs/layouts.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from src.classes import nfc
from src.data.decode import look_into
from src.data.files import below
from src.data.sources.masks import IMAGE_SUFFIXES, JPEG, MASK_SUFFIXES, Row, note_missing
from src.data.sources.places import list_below, split_of_name
from src.script import UserError

_MASK_WORD = (
    "masks?|labels?|lab|seg|segmentation|gt|anno|annotation|matte|1stHO|2ndHO|gtFine_labelIds|"
    "gtFine_labelTrainIds"
)
_WORD = f"image|img|rgb|sat|leftImg8bit|{_MASK_WORD}"
# Also words of splits, DRIVE's 21_manual1, and nnU-Net's number of the channel.
_DEEP = rf"{_WORD}|manual\d?|train|training|test|testing|val|validation|0000"
_AFFIX, _MASK_AFFIX, _DEEP_AFFIX = (
    re.compile(rf"^(?:{words})[-_. ]+|[-_. ]+(?:{words}|masks?[-_. ]?\d\d?)$", re.IGNORECASE)
    for words in (_WORD, _MASK_WORD, _DEEP)
)
_IMAGE_NAME = re.compile("image|img|rgb|photo", re.IGNORECASE)
_MASK_NAME = re.compile(_MASK_WORD, re.IGNORECASE)
_LISTED = IMAGE_SUFFIXES | {".json", ".xml", ".txt"}  # of an image, or of its annotation
_KINDS = "kinds of things are numbers in one mask, as 0 for background, 1 and 2"
_NUMBERED = re.compile(r"[-_. ]masks?[-_. ]?\d\d?$", re.IGNORECASE)


def match_masks(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    notes: list[str],
    parts: dict[Path, list[Path]],
) -> dict[str, Path]:
    """Give every mask the id of its image, where that is found.

    An equal id counts first; then an id that is equal in any case and without words such as in
    ``7_mask`` or ``img_7``; then such a name in another folder; then one with other zeros before
    its numbers; then an affix that all masks have; then the one image of its folder. ``7_mask_1``,
    ``7_mask_2``, and masks of such a folder, are parts of one. Return {id: path of the mask}; a
    mask without an image keeps its own id. ``notes`` receive what was matched by the other rules,
    ``parts`` the further parts of a mask, by its first.

    Raises:
        UserError: two masks for one image, or no mask has an image at all.
    """
    lone = [name for name in images if name not in masks]
    forms = (_strip, strip_all, lambda name: strip_all(name.rpartition("/")[2]), _unpad)
    tables = [(form, _unique(form, lone)) for form in forms]
    found: dict[str, Path] = {}
    renamed: list[str] = []
    if not any(_near(name, tables) or name in images for name in masks):
        tables.append((_unpad, _find_affix(lone, list(masks))))
    for name, path in masks.items():
        image = name if name in images else _near(name, tables) or name
        if image in found and _NUMBERED.search(name) and image in images:
            parts.setdefault(found[image], []).append(path)
            continue
        if image in found:
            stem = Path(image).name
            raise UserError(
                f"{found[image]} and {path} are two masks of {image}: remove one, or its folder "
                f"in every split (parts of one mask are named {stem}_mask_1, {stem}_mask_2; "
                f"{_KINDS})"
            )
        found[image] = path
        if image != name:
            renamed.append(f"{path.name} of {images[image].name}")
    renamed += _match_alone(images, [name for name in lone if name not in found], found, parts)
    note_missing(notes, "masks matched by their names without words such as mask", renamed)
    if images and masks and not any(name in images for name in found):
        _refuse_twins(images, masks)
        kinds = _kinds(images, masks)
        if 1 < len(kinds) < len(masks):
            raise UserError(
                f"each image has masks of {len(kinds)} kinds ({', '.join(kinds[:3])}), and one is "
                f"read here: move all but one kind away ({_KINDS})"
            )
        raise UserError(
            f"no mask has the name of an image, as {next(iter(images.values()))} and "
            f"{next(iter(masks.values()))} show: a mask has its image's name up to the ending"
        )
    return found


def _kinds(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str]:
    """Return what stands behind the images' names in those of the masks, if all are named so."""
    stems = {PurePosixPath(name).name.lstrip("0") for name in images}
    kinds = set()
    for name in masks:
        words = PurePosixPath(name).name.split("_")
        ends = [n for n in range(1, len(words)) if "_".join(words[:n]).lstrip("0") in stems]
        kinds.add("_".join(words[ends[-1] :]) if ends else "")
    return [] if "" in kinds else sorted(kinds)


_Table = tuple[Callable[[str], str], Mapping[str, str]]


def _near(name: str, tables: Sequence[_Table]) -> str | None:
    """Return the image whose name is that of a mask in one of the forms, None where none is."""
    return next(filter(None, (bare.get(form(name).casefold()) for form, bare in tables)), None)


def _find_affix(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """Return {form of a mask: image} where one affix makes every mask the name of an image.

    ``7_drawn`` or ``drawn_7`` is of ``7``, ``drawn_7`` of ``frame_7`` if all masks are named so.
    An affix never parts a number.
    """
    forms = {name: _unpad(name).casefold() for name in masks}
    bare = _unique(_unpad, images)
    if len(masks) < 2 or len(set(forms.values())) < len(masks):
        return {}
    first = forms[masks[0]]
    for image in bare:
        for long, short, of_mask in ((first, image, True), (image, first, False)):
            head, inside, tail = long.partition(short)
            if not short or not inside or (head and tail) or _parts_number(head, short, tail):
                continue
            found = {}
            for stem in forms.values():
                fits = not of_mask or (stem.startswith(head) and stem.endswith(tail))
                cut = stem[len(head) : len(stem) - len(tail)] if of_mask else head + stem + tail
                if not fits or cut not in bare:
                    break
                found[stem] = bare[cut]
            if len(set(found.values())) == len(masks):
                return found
    return {}


def _parts_number(head: str, stem: str, tail: str) -> bool:
    left = head[-1:].isdigit() and stem[:1].isdigit()
    return left or (tail[:1].isdigit() and stem[-1:].isdigit())


def _refuse_twins(images: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
    """Refuse masks that fit images in two folders, as of sets that compare two photographs."""
    of: dict[str, list[Path]] = {}
    for name, path in images.items():
        of.setdefault(strip_all(name.rpartition("/")[2]).casefold(), []).append(path)
    for name, path in masks.items():
        near = of.get(strip_all(name.rpartition("/")[2]).casefold(), [])
        if len(near) > 1:
            raise UserError(
                f"{path} may be the mask of {near[0]} or of {near[1]}: give the masks the folders "
                "of their images, or remove the other images (two images a mask are not read)"
            )


def _match_alone(
    images: Mapping[str, Path],
    lone: Sequence[str],
    found: dict[str, Path],
    parts: dict[Path, list[Path]],
) -> list[str]:
    """Give the masks of a folder to the one image in it, if it has none; return what was done."""
    count = Counter(name.rpartition("/")[0] for name in lone)
    alone = {f: name for name in lone if count[f := name.rpartition("/")[0]] == 1 and f}
    renamed = []
    for name in [name for name in found if name not in images]:
        image = alone.get(name.rpartition("/")[0])
        if image is None:
            continue
        path = found.pop(name)
        if image in found:
            parts.setdefault(found[image], []).append(path)
        else:
            found[image] = path
            renamed.append(f"{path.name} of {images[image].name}")
    return renamed


def _unpad(name: str) -> str:
    """Return a name without words, folders and the zeros before its numbers: 7 of masks/0007."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", strip_all(name.rpartition("/")[2]))


def _unique(form: Callable[[str], str], names: Sequence[str]) -> dict[str, str]:
    """Return form of a name → name, where no two names have one form."""
    formed = [(form(name).casefold(), name) for name in names]
    count = Counter(key for key, _ in formed)
    return {key: name for key, name in formed if count[key] == 1}


def strip_all(name: str) -> str:
    """Take words off both ends of a name until none is left, also of splits and ``manual1``."""
    while (shorter := _strip(name, _DEEP_AFFIX)) != name:
        name = shorter
    return name


def part_masks(files: Sequence[Path], *, twins: bool) -> set[Path]:
    """Return the masks among files that lie beside their images: ``7_mask.png`` of ``7.jpg``.

    With ``twins`` ``7.png`` is the mask of ``7.jpg``, too; it is where all have a grey one.
    """
    worded = {path for path in files if _strip(path.stem, _MASK_AFFIX) != path.stem}
    plain = {path.parent for path in files if _IMAGE_NAME.fullmatch(path.stem)}
    named = {path for path in files if path.parent in plain and _MASK_NAME.fullmatch(path.stem)}
    bare = {(path.parent, _strip(path.stem)) for path in files if path not in worded}
    lossy = {path for path in files if path.suffix.lower() in JPEG}
    blurred = {path.with_suffix("") for path in lossy}
    found = {path for path in worded if (path.parent, _strip(path.stem)) in bare} | named
    pairs = {path for path in files if path.with_suffix("") in blurred and path not in lossy}
    whole = len(pairs) == len(blurred) and all(map(_is_grey, sorted(pairs)[:8]))
    found |= pairs if twins or whole else set()
    drawn = {path for path in found if path.suffix.lower() in MASK_SUFFIXES}
    return drawn or {path for path in found & worded if path.suffix.lower() in JPEG}


def _is_grey(path: Path) -> bool:
    return look_into(path, lambda image: image.mode in ("1", "L", "P"), False)


def _strip(name: str, affix: re.Pattern[str] = _AFFIX) -> str:
    """Take such words off either end of the last part of an id."""
    folder, slash, stem = name.rpartition("/")
    return folder + slash + (affix.sub("", stem) or stem)


class _File(NamedTuple):
    """A file: its path, what it says without folders such as images/, its split and kind."""

    path: str
    key: str
    split: str
    kind: str


class Locator:
    r"""Finds images below ``root`` by a name with too many, too few or other folders before it.

    ``sub\\1.jpg``, ``/home/me/set/images/1.jpg`` and ``1.jpg`` may all mean ``images/1.jpg``; a
    folder that is neither a split nor images/ is never passed over.
    """

    def __init__(self, root: Path) -> None:
        """Look below ``root``; nothing is listed before the first name that lies elsewhere."""
        self.root = root

    def find(self, name: str, near: Sequence[Path], split: str = "") -> str | None:
        """Return the POSIX path below the root of the image, None where there is none.

        ``name`` is as the annotation writes it; folders ``near`` are looked in first. A file of
        another split than the annotation's is not meant.

        Raises:
            UserError: two files fit equally well.
        """
        text = nfc(name).replace("\\", "/")
        inside = Path(text)
        if inside.is_absolute() and inside.is_relative_to(self.root.resolve()):
            near, text = [self.root], below(self.root.resolve(), inside)
        parts = [p for p in re.sub("^[A-Za-z]:", "", text).split("/") if p not in ("", ".", "..")]
        if not parts:
            return None
        for folder in near if text == "/".join(parts) else ():
            path = folder / text
            if path.is_relative_to(self.root) and path.is_file():
                return below(self.root, path)
        return self._find_elsewhere("/".join(parts).casefold(), name, split)

    def find_file(self, name: str, near: Sequence[Path]) -> Path | None:
        """Return the path of the image that :meth:`find` finds."""
        place = self.find(name, near)
        return self.root / place if place else None

    def _find_elsewhere(self, wanted: str, name: str, split: str) -> str | None:
        near = self._by_name.get(wanted.rpartition("/")[2], [])
        fits = [f for f in near if _ends(f.path.casefold(), wanted) or _ends(wanted, f.key)]
        fits = [f for f in fits if not split or f.split in ("", split)]
        fits = [f for f in fits if f.kind != "mask"] or fits
        fits = [f for f in fits if _ends(f.path.casefold(), wanted)] or fits
        if len(fits) > 1:
            raise UserError(
                f"{self.root}: the image {name} may be {fits[0].path} or {fits[1].path}: write its "
                "path in full"
            )
        return fits[0].path if fits else None

    @cached_property
    def _by_name(self) -> dict[str, list[_File]]:
        found: dict[str, list[_File]] = {}
        for place, path in list_below(self.root, IMAGE_SUFFIXES):
            known = nfc(path.name).casefold()
            key = "/".join((*place.rest, known)).casefold()
            entry = _File(below(self.root, path), key, place.split, place.kind)
            found.setdefault(known, []).append(entry)
        return found


def _ends(text: str, end: str) -> bool:
    """Tell whether ``end`` is the last folders and name of ``text``."""
    return f"/{nfc(text)}".endswith(f"/{end}")


FOLDERS = (".", "list", "lists", "splits", "ImageSets/Segmentation", "annotations")


def read_text(path: Path) -> str:
    """Read a text file in NFC, "" where there is no such file.

    Raises:
        UserError: it is not UTF-8, or a broken link.
    """
    if not path.is_file():
        if path.is_symlink():
            raise UserError(f"{path} is a broken link, it cannot be read: restore or remove it")
        return ""
    try:
        return nfc(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} in line {line}): save it "
            "as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank; [] where there is no such file."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def find_lists(root: Path) -> list[tuple[Path, str]]:
    """Return the lists of the first folder that has any, as (path, split)."""
    for folder in FOLDERS:
        paths = sorted((root / folder).glob("*.txt")) if (root / folder).is_dir() else []
        found = [(path, split_of_name(path.stem)) for path in paths]
        found = [(path, split) for path, split in found if split]
        if sum(split == "train" for _, split in found) > 1:  # train and valid are said apart
            found = [item for item in found if "trainval" not in item[0].stem.casefold()]
        if found:
            return sorted(found, key=lambda item: ("train", "valid", "test").index(item[1]))
    return []


def read_split_lists(root: Path, known: Collection[str]) -> dict[str, str]:
    """Read the lists of ``root`` as {id: split}; {} where none exists.

    A line names an image by its id, its file name or a path; a blank may be part of the name, or
    part it from what follows. ``known`` are ids of the images, or {id: path}, by which they may be
    listed too; a line that names none of them is kept by its first word.

    Raises:
        UserError: one image stands in two lists, or no line names an image.
    """
    splits: dict[str, str] = {}
    lists: dict[str, str] = {}
    by_path = _by_path(root, known)
    for path, split in find_lists(root):
        for line in read_lines(path):
            ids = list(_ids(line)) or [line]
            key = next((place for place in ids if place in known), None)
            key = key or next((by_path[place] for place in ids if place in by_path), ids[-1])
            if splits.setdefault(key, split) != split:
                raise UserError(
                    f"{path.parent}: {key} is in {lists[key]} and {path.name}: pick one"
                )
            lists.setdefault(key, path.name)
    if splits and known and not any(key in known for key in splits):
        bare = {PurePosixPath(name).name: name for name in known}  # in folders that no list says
        named = {bare[key]: split for key, split in splits.items() if key in bare}
        if named and len(bare) == len(known):
            return named
        raise UserError(
            f"{root}: the lists name none of the images, {next(iter(splits))} for instance, "
            f"where images are like {next(iter(known))}: write their names, or remove the lists"
        )
    return splits


def split_by_lists(root: Path, rows: list[Row], notes: list[str]) -> list[Row]:
    """Give rows without a split the one of their list; where there are lists, others are left out.

    Raises:
        UserError: as :func:`read_split_lists` says.
    """
    splits = read_split_lists(root, {row.id: root / row.image for row in rows})
    if not splits:
        return rows
    note_missing(notes, f"{root}: in no list", [row.id for row in rows if row.id not in splits])
    return [row._replace(split=splits[row.id]) for row in rows if row.id in splits]


def _by_path(root: Path, known: Collection[str]) -> dict[str, str]:
    """Return {path below the root without its ending: id}, {} of ids alone."""
    items = known.items() if isinstance(known, Mapping) else ()
    return {path.relative_to(root).with_suffix("").as_posix(): name for name, path in items}


def read_pair_lists(root: Path) -> dict[Path, Path]:
    """Read the lists whose lines name an image and its mask: {image: mask}, both existing."""
    pairs = {}
    for path, _ in find_lists(root):
        for line in read_lines(path):
            words = line.replace("\\", "/").replace(",", " ").split()
            if len(words) < 2 or ".." in line:
                continue
            image, mask = (root / word.lstrip("/") for word in words[:2])
            if mask.suffix.lower() in IMAGE_SUFFIXES and image.is_file() and mask.is_file():
                pairs[image] = mask
    return pairs


def _ids(line: str) -> Iterator[str]:
    """Yield what ``line`` may mean, likeliest first: the whole line, then its first word."""
    for text in (line, line.split()[0].split(",")[0]):
        path = PurePosixPath(text.replace("\\", "/"))
        path = path.with_suffix("") if path.suffix.lower() in _LISTED else path
        parts = path.parts[1:] if path.is_absolute() else path.parts
        for start in range(len(parts)):  # a folder may be part of the id
            yield "/".join(parts[start:])
