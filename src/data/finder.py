"""Resolution of the cells of a table to image files.

What a cell leaves unsaid is guessed with care: a file of the other split (``test/3.png`` for a
row of the train table) or one in a folder of masks is never meant unless the cell says so.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from src.classes import nfc
from src.data.files import Scanner, below, split_of_word
from src.data.root import FILL, find_split
from src.script import UserError

_MAX_NAME = 255  # bytes of a file's name
_OTHER = {"train": "test", "test": "train"}
_MASKS = ("mask", "annotation", "segmentation")
_GLUED = ("training", "testing", "validation", "train", "test", "valid", "val")
_GLUES = FILL | {
    *("annot", "annots", "label", "labels", "mask", "masks", "crop", "resized", "part", "val"),
    *("frames", "patches", "tiles"),
}
_MASK_WORDS = frozenset({"label", "labels", "seg", "gt", "groundtruth", "annot", "annots"})


class ImageFinder:
    """Finds the files that the cells of a CSV mean.

    A cell may lack its leading folders ("0001.jpg" for "train/images/0001.jpg"), its extension,
    or differ in case, Unicode form, slashes and a leading "./"; it may not leave the root.
    The check is on the text: links that the owner of the folder has laid are followed.
    """

    def __init__(self, root: Path, *, split: str, allow_outside: bool = False):
        """Index the images below ``root``; of several that fit those of the split's folder win.

        ``split``, train or test, is that of the table the cells are from.
        """
        self.root = root
        self.split = split
        self.allow_outside = allow_outside
        forms = (root.resolve(), root.absolute())  # they differ below a link
        self._inner = tuple(f"{nfc(form.as_posix()).rstrip('/')}/" for form in forms)
        scanner = Scanner(root)
        self._paths = {nfc(path): path for path in reversed(scanner.images())}
        self.notes = scanner.notes
        self.left_out = [line for line in scanner.left_out(doubtful=True) if "pip install" in line]
        self._unread = scanner.no_images()
        self._split_of = partial(_split_of, glues=_find_glues(scanner.folders))
        own = [name for name in scanner.folders if self._split_of(name) == split]
        self._has_own = bool(own)
        self.place = f"{root}/{min(own, key=len)}/" if own else str(root)  # where they should be
        self._folder = nfc(below(root, find_split(root, split)) or split)
        self._prefixes = ["", f"{self._folder}/"]
        # (how many names a key has, is the last of an image?) → key → paths in NFC
        self._by_object: dict[tuple[int, bool], dict[str, dict[str, None]]] = {}

    def finds_all(self, cells: Iterable[str]) -> bool:
        """Tell whether each of ``cells`` means an image."""
        return all(self.find_quietly(cell) for cell in cells)

    @cached_property
    def widths(self) -> list[int]:
        """The numbers of digits at the ends of images' names."""
        ends = (re.search(r"\d*$", _stem(path)) for path in self._paths)
        return sorted({len(end[0]) for end in ends if end})

    def names(self) -> list[str]:
        """Return what an image's id may be: its file name, with the ending and without."""
        return sorted({*map(posixpath.basename, self._paths), *map(_stem, self._paths)})

    def find(self, cell: str) -> str | None:
        """Return the path of the image, relative to the root where inside, None if missing.

        Raises:
            UserError: the path leaves the root, or several files fit it.
        """
        if max(map(len, cell.encode(errors="replace").split(b"/"))) > _MAX_NAME:
            return None
        path = self._inside(cell)
        if path is None:  # outside, and allowed to be
            full = os.path.normpath(self.root / cell)
            return Path(full).as_posix() if Path(full).is_file() else None
        for prefix in self._prefixes:
            if prefix + path in self._paths:
                return self._paths[prefix + path]
        parts = path.split("/")  # folders above ours may come first
        return self._find_by_name(path, cell) or self._paths.get(self._find_end(parts[1:], 2) or "")

    def _find_end(self, parts: Sequence[str], least: int) -> str | None:
        """Return the longest path, in NFC, that the last ``least`` parts or more are, if any."""
        ends = ("/".join(parts[start:]) for start in range(len(parts) - least + 1))
        return next((end for end in ends if end in self._paths), None)

    def find_quietly(self, cell: str) -> str | None:
        """Return the path of the image as :meth:`find` does, None for what that refuses."""
        try:
            return self.find(cell) if cell.strip() else None
        except UserError:
            return None

    def finds(self, cell: str) -> bool:
        """Tell whether ``cell`` means an image."""
        return (self.find_quietly(cell) or self.find_core(cell, whole=True)) is not None

    def find_core(self, cell: str, *, whole: bool = False) -> str | None:
        """Return the image whose name is ``cell`` but for zeros, or for what all names have.

        1 or 1.0 is ``0001.jpg``, or ``ISIC_0001.jpg`` where all names of the split begin so, unless
        the ``whole`` name is meant.
        """
        wanted = _as_key(re.sub(r"^(\d+)\.0+$", r"\1", cell.strip()))
        fits = self._meant(self._by_core.get((whole, wanted), ()), 1)
        return self._paths[fits[0]] if len(fits) == 1 else None

    def parts(self, cell: str) -> list[str]:
        """Return the names of several images of ``cell``: ``7_red.png``, or in a folder ``7``."""
        stem = posixpath.basename(nfc(cell).strip())
        names = (posixpath.basename(path) for path in self._paths)
        found = sorted({name for name in names if re.match(re.escape(stem) + "[-_. ]", name)})
        found = found or sorted(path for path in self._paths if f"/{stem}/" in f"/{path}")
        return found if stem and len(found) > 1 else []

    def open_folders(self, cells: Sequence[str]) -> list[list[str]]:
        """Return the images of each cell, where few name one, but half of them several.

        These are in a folder, ``7/a.png``, or numbered, ``7_1.png`` and ``7-2.png``. Any other cell
        has itself. Folders that a cell begins with may be of another machine.
        """
        parted = [nfc(cell).strip().replace("\\", "/").strip("/").split("/") for cell in cells]
        known = 2 * sum(map(self.finds, cells[:20])) >= len(cells[:20])
        for start in range(0 if known else max(map(len, parted), default=0)):
            names = ["/".join(parts[min(start, len(parts) - 1) :]) for parts in parted]
            if len({*names}) < len({*cells}):  # 1 of patient 7 is not 1 of patient 8
                break
            for numbered in (False, True):  # 1.png of each folder is not of a folder 1
                meant = (self._meant([*self._inside_of(name, numbered)], 1) for name in names)
                inside = [[self._paths[full] for full in fits] for fits in meant]
                if max(map(len, inside)) > 1 and 2 * sum(map(bool, inside)) >= len(cells):
                    return [found or [cell] for cell, found in zip(cells, inside, strict=True)]
        return [[cell] for cell in cells]

    def _inside_of(self, name: str, numbered: bool) -> Iterable[str]:
        """Return the paths, in NFC, that lie in a folder, or have that name before a number."""
        depth = name.count("/") + 1
        if (depth, numbered) not in self._by_object:
            by_object = self._by_object.setdefault((depth, numbered), {})
            for known in self._paths:
                last = [re.sub(r"[-_. ]\d+$", "", _stem(known))] * numbered
                parts = [*posixpath.dirname(known).split("/"), *last]
                starts = range(len(parts) - depth, -1, -1)
                for start in starts[: 1 if numbered else None]:
                    key = "/".join(parts[start : start + depth])
                    by_object.setdefault(key, {})[known] = None
        return self._by_object[depth, numbered].get(name, ())

    def unread(self, cell: str) -> str | None:
        """Return the file of that name, up to its ending, that is no image read here, or None."""
        name = posixpath.basename(nfc(cell).strip()).casefold()
        named = ((f"{posixpath.basename(path).casefold()}.", path) for path in self._unread)
        return next((path for own, path in named if own.startswith(f"{name}.")), None)

    def is_of_other(self, cell: str, image: str) -> bool:
        """Tell whether ``image`` lies in a folder of the other split, which ``cell`` says not."""
        return "/" not in cell and self._split_of(posixpath.dirname(image)) == _OTHER[self.split]

    def num_others(self, images: Sequence[str]) -> int:
        """Count the images of the split's own folders that are none of ``images``."""
        return len({self._paths[path] for path in self._own} - {*images})

    @property
    def like(self) -> str:
        """An image that is there, "" where there is none."""
        return min(self._own or self._paths, default="")

    @cached_property
    def _own(self) -> list[str]:
        """Images of the split's own folders, in NFC."""
        return [
            path for path in self._paths if self._split_of(posixpath.dirname(path)) == self.split
        ]

    @cached_property
    def _by_core(self) -> dict[tuple[bool, int | str], list[str]]:
        """(whole?, name without zeros and what all names have) → paths in NFC."""
        by_core: dict[tuple[bool, int | str], list[str]] = {}
        stems = [*map(_stem, self._paths)]
        mine = {*map(_stem, self._own)}
        named = {stem for stem in stems if self._split_of(stem) == self.split}
        mine = next((some for some in (mine, named) if len(some) > 1), {*stems})
        start, end = (
            re.sub(r"\d+$", "", posixpath.commonprefix([stem[::step] for stem in mine]))
            for step in (1, -1)
        )
        for stem, path in zip(stems, self._paths, strict=True):
            both = {(True, _as_key(stem)), (False, _as_key(stem))}
            if len(mine) > 1:
                bare = stem.removesuffix(end[::-1])
                cores = (bare, stem.removeprefix(start), bare.removeprefix(start))
                both |= {(False, _as_key(core)) for core in cores}
            for key in both:
                by_core.setdefault(key, []).append(path)
        return by_core

    def _inside(self, cell: str) -> str | None:
        said = nfc(cell.strip())
        said = unquote(urlsplit(said).path) if "://" in said else said  # of the web, of a bucket
        path = posixpath.normpath(said.replace("\\", "/"))
        for inner in self._inner:  # c:\data is C:\Data, on Windows
            if os.path.normcase(path).startswith(os.path.normcase(inner)):
                return path[len(inner) :]
        if not path.startswith(("/", "../")) and path != ".." and not re.match("[A-Za-z]:", path):
            return path
        if self.allow_outside and (self.root / path).is_file():
            return None
        parts = re.sub(r"^[A-Za-z]:|^(\.\.(/|$))+", "", path).strip("/").split("/")
        if parts[-1] and not (self.root / path).exists():  # of another machine, or place there
            known = self._find_end(parts, 1) or self._find_by_name(parts[-1], cell)
            if known is not None:
                return nfc(known)
        if self.allow_outside:
            return None
        if "://" in cell:
            raise UserError(
                f"{cell!r} is an address, and no file of that name is in {self.root}: download the "
                "images there"
            )
        raise UserError(
            f"path {cell!r} leaves the data folder {self.root}, and no end of it is a file there: "
            "mend it, or pass --allow_outside"
        )

    def _find_by_name(self, path: str, cell: str) -> str | None:
        near = self._by_name.get(posixpath.basename(path).casefold(), [])
        fits = [full for full in near if _ends_with(full, path)]
        if not fits:  # "a.JPG" for "a.jpg"
            fits = [full for full in near if _ends_with(full.casefold(), path.casefold())]
        fits = self._meant(fits, path.count("/") + 1)
        if len(fits) > 1:
            raise UserError(
                f"path {cell!r} fits {fits[0]} and {fits[1]} in {self.root}: write it in full, or "
                "move one of them away"
            )
        if not fits:
            return path if (self.root / path).is_file() else None
        if "/" in path and fits[0].endswith(f"/{path}") and len(self._prefixes) < 8:
            self._prefixes.append(fits[0][: -len(path)])  # the next rows may lie there too
        return self._paths[fits[0]]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Name, with and without extension → paths in NFC."""
        by_name: dict[str, list[str]] = {}
        for known in self._paths:
            for key in (posixpath.basename(known), _stem(known)):
                by_name.setdefault(key.casefold(), []).append(known)
        return by_name

    @cached_property
    def _masks_are_images(self) -> bool:
        """Whether folders called as masks hold none of other images there: the masks are worn.

        Images of the other split do not count.
        """
        named: tuple[set[str], set[str]] = (set(), set())  # by whether they are called so
        for path in self._paths:
            folder = posixpath.dirname(path)
            if self._split_of(folder) != _OTHER[self.split]:
                name = re.sub(r"(?<=\w)[-_ ]+[a-z]+$", "", _stem(path).casefold())
                named[_holds_masks(folder)].add(name)
        return named[0].isdisjoint(named[1])

    def _meant(self, fits: Sequence[str], said: int) -> list[str]:
        """Return those of ``fits`` whose folders before the last ``said`` parts may be implied."""
        implied = {full: "/".join(full.split("/")[:-said]) for full in sorted(fits)}
        if not self._masks_are_images:
            implied = {full: part for full, part in implied.items() if not _holds_masks(part)}
        splits = {full: self._split_of(part) for full, part in implied.items()}
        own = {full: s for full, s in splits.items() if s != _OTHER[self.split]}
        splits = own if own or self._has_own else splits
        usual = [full for full in splits if full.startswith(f"{self._folder}/")]
        return usual or [full for full in splits if splits[full] != "valid"] or list(splits)


def _as_key(name: str) -> int | str:
    return int(name) if name.isdecimal() else name.casefold()


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _find_glues(folders: Iterable[str]) -> frozenset[str]:
    """Return what follows a split's name at once: trainhq and testhq are splits, no testudo."""
    words = {word for name in folders for word in _words(name)}
    rests = {part: {w[len(part) :] for w in words if w.startswith(part)} for part in _GLUED}
    first = rests["train"] | rests["training"]
    others = (rests[part] for part in _GLUED if not part.startswith("train"))
    return frozenset(_GLUES.union(*(first & other for other in others)) - {""})


@lru_cache(maxsize=1 << 16)  # thousands of images lie in each folder
def _split_of(path: str, glues: frozenset[str]) -> str:
    """Return train, test or valid: what the first word that names a split says, else ""."""
    for word in _words(path):
        parts = ((name, word.removeprefix(name)) for name in _GLUED)
        glued = next((name for name, rest in parts if rest != word and rest in glues), "")
        if found := split_of_word(word) or split_of_word(glued):  # "trainannot"
            return found
    return ""


def _words(path: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", nfc(path).casefold())


@lru_cache(maxsize=1 << 16)
def _holds_masks(folder: str) -> bool:
    """Tell whether the names of a path say that it is a folder of masks."""
    name = folder.casefold()
    return any(word in name for word in _MASKS) or not _MASK_WORDS.isdisjoint(
        re.split("[^a-z]+", name)
    )


def _ends_with(full: str, path: str) -> bool:
    """Tell whether ``path``, with or without its extension, is the end of ``full``."""
    return any(f"/{form}".endswith(f"/{path}") for form in (full, posixpath.splitext(full)[0]))
