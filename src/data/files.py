"""Listing of image files below a folder, and resolution of paths that a CSV names.

What a cell leaves unsaid is guessed with care: a file of the other split (``test/3.png`` for a
row of the train table) or one in a folder of masks is never meant unless the cell says so.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from src.classes import nfc
from src.script import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
LABEL_TABLES = ("train_labels.csv", "trainlabels.csv", "labels.csv")  # else train.csv is meant
_LITTER = frozenset({"__MACOSX", "$RECYCLE.BIN", "System Volume Information"})


def find_entry(root: Path, *names: str) -> Path | None:
    """Return the first of ``names`` (given in lower case) that lies in ``root`` in any case.

    Raises:
        UserError: ``root`` cannot be read.
    """
    try:
        entries = {name.casefold(): name for name in sorted(os.listdir(root))[::-1]}  # noqa: PTH208
    except OSError as error:
        raise UserError(f"folder {root} cannot be read ({error.strerror}): restore it") from error
    return next((root / entries[name] for name in names if name in entries), None)


def find_root(data_dir: Path | str) -> Path:
    """Return the data set's folder: ``data_dir`` itself, or its one child that is a data set.

    Raises:
        UserError: none or several; says what was looked for.
    """
    folder = Path(data_dir)
    if folder.is_file():
        raise UserError(
            f"data folder {folder} is a file: pass its folder, --data_dir {folder.parent}"
        )
    if not folder.is_dir():
        raise UserError(f"data folder {folder} is missing: unpack the data there, or --data_dir")
    if _is_data_set(folder):
        return folder
    children = sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    found = [child for child in children if _is_data_set(child)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"no data set in {folder}: looked there and one folder below for train/, train.csv, "
            f"test/ and test.csv; {name_classes(folder)}unpack the data there, or pass --data_dir"
        )
    names = ", ".join(child.name for child in found)
    raise UserError(f"{folder} holds several data sets ({names}): pass --data_dir {found[0]}")


def _is_data_set(folder: Path) -> bool:
    names = ("train", "training", "train.csv", *LABEL_TABLES, "test", "test.csv")
    return find_entry(folder, *names) is not None


def name_classes(folder: Path) -> str:
    """Return the remedy for class folders that lie in ``folder`` instead of train/, or ""."""
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    scanner = Scanner(folder)
    found = [name for name in names if not name.startswith((".", "test")) and scanner.holds(name)]
    if len(found) < 2:
        return ""
    shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    return f"if the folders {shown} are classes, move them into {folder / 'train'}, else "


class Scanner:
    """Walks folders below one root, each real folder once, however links point at it.

    ``notes`` collects, one line each, what was left out and why.
    """

    def __init__(self, root: Path):
        """Scan below ``root``; paths are reported relative to it."""
        self.root = root
        self.notes: list[str] = []
        self.folders: list[str] = []  # that were walked
        self._seen: set[tuple[int, int]] = set()
        self._is_new("")

    def images(self, folder: str = "") -> list[str]:
        """Return the POSIX paths, relative to the root, of the images below ``folder``, sorted.

        An image is a non-hidden file with an image extension in any case; a folder is a folder
        even when named ``x.jpg``. Links are followed.

        Raises:
            UserError: a folder that cannot be read, or a name that is not valid Unicode.
        """
        return self._walk(folder) if not folder or self._is_new(folder) else []

    def images_by_folder(self, parent: str) -> dict[str, list[str]]:
        """Return :meth:`images` for each folder directly in ``parent``, by its name, sorted.

        All of them are known before any is walked, so that a link inside one folder to another
        never carries images over.
        """
        self._is_new(parent)
        names = sorted(name for name, is_folder in self._entries(parent) if is_folder)
        names.sort(key=lambda name: (self.root / parent / name).is_symlink())
        new = {name for name in names if self._is_new(f"{parent}/{name}")}
        return {name: self._walk(f"{parent}/{name}") for name in sorted(new)}

    def holds(self, folder: str) -> bool:
        """Tell whether images lie directly in ``folder``."""
        entries = self._entries(folder)
        return any(
            Path(name).suffix.lower() in EXTENSIONS for name, is_folder in entries if not is_folder
        )

    def _walk(self, folder: str) -> list[str]:
        found: list[str] = []
        stack = [folder]
        while stack:
            folder = stack.pop()
            self.folders.append(folder)
            prefix = f"{folder}/" if folder else ""
            folders = []
            for name, is_folder in self._entries(folder):
                if is_folder:
                    folders.append(prefix + name)
                elif name[name.rfind(".") :].lower() in EXTENSIONS:
                    found.append(prefix + name)
            stack += [inner for inner in sorted(folders, reverse=True) if self._is_new(inner)]
        found.sort()
        return self._checked(found)

    def _entries(self, folder: str) -> Iterable[tuple[str, bool]]:
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.name[0] == "." or entry.name in _LITTER:
                        continue
                    try:
                        is_folder = entry.is_dir()
                    except OSError:  # a link that points at itself
                        self.notes.append(f"{folder}/{entry.name} is a broken link: left out")
                        continue
                    yield entry.name, is_folder
        except OSError as error:
            raise UserError(
                f"folder {self.root / folder} cannot be read ({error.strerror}): restore it"
            ) from error

    def _is_new(self, folder: str) -> bool:
        try:
            status = (self.root / folder).stat()
        except OSError as error:
            raise UserError(
                f"folder {self.root / folder} cannot be read ({error.strerror}): restore it"
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            self.notes.append(f"{folder} links to a folder that was read already: left out")
            return False
        self._seen.add(identity)
        return True

    def _checked(self, paths: list[str]) -> list[str]:
        try:
            "\n".join(paths).encode()
        except UnicodeEncodeError:
            bad = next(path for path in paths if not path.isprintable())
            raise UserError(f"{bad!a} in {self.root} is not a name in UTF-8: rename it") from None
        return paths


_OTHER = {"train": "test", "test": "train"}
_MASKS = ("mask", "annotation", "segmentation")
_MASK_WORDS = frozenset({"label", "labels", "seg", "gt", "groundtruth", "annot", "annots"})


class ImageFinder:
    """Finds the files that the cells of a CSV mean.

    A cell may lack its leading folders ("0001.jpg" for "train/images/0001.jpg"), its extension,
    or differ in case, Unicode form, slashes and a leading "./"; it may not leave the root.
    The check is on the text: links that the owner of the folder has laid are followed.
    """

    def __init__(self, root: Path, *, split: str, folder: str = "", allow_outside: bool = False):
        """Index the images below ``root``.

        Args:
            root: the data folder.
            split: ``train`` or ``test``: which of the two the cells are from.
            folder: where the images of that split lie by custom; it wins where several fit.
            allow_outside: accept files outside ``root``.
        """
        self.root = root
        self.split = split
        self.allow_outside = allow_outside
        self._inner = f"{posixpath.normpath(root.resolve().as_posix())}/"
        scanner = Scanner(root)
        self._paths = {nfc(path): path for path in reversed(scanner.images())}
        self.notes = scanner.notes
        own = [name for name in scanner.folders if _split_of(name.split("/")) == split]
        self._has_own = bool(own)
        self.place = f"{root}/{min(own, key=len)}/" if own else str(root)  # where they should be
        self._folder = nfc(folder or split)
        self._prefixes = ["", f"{self._folder}/"]
        self._by_name: dict[str, list[str]] | None = None
        self._only_masks = False

    def find(self, cell: str) -> str | None:
        """Return the path of the image, relative to the root where inside, None if missing.

        Raises:
            UserError: the path leaves the root, or several files fit it.
        """
        path = self._inside(cell)
        if path is None:  # outside, and allowed to be
            full = os.path.normpath(self.root / cell)
            return Path(full).as_posix() if Path(full).is_file() else None
        for prefix in self._prefixes:
            if prefix + path in self._paths:
                return self._paths[prefix + path]
        return self._find_by_name(path, cell)

    def _inside(self, cell: str) -> str | None:
        path = posixpath.normpath(nfc(cell.strip()).replace("\\", "/"))
        if path.startswith(self._inner):
            return path[len(self._inner) :]
        if not path.startswith(("/", "../")) and path != ".." and not re.match("[A-Za-z]:", path):
            return path
        if self.allow_outside:
            return None
        raise UserError(
            f"path {cell!r} leaves the data folder {self.root}: mend it, or pass --allow_outside"
        )

    def _find_by_name(self, path: str, cell: str) -> str | None:
        if self._by_name is None:
            self._by_name = self._index_names()
        near = self._by_name.get(posixpath.basename(path).casefold(), [])
        fits = [full for full in near if _ends_with(full, path)]
        if not fits:  # "a.JPG" for "a.jpg"
            fits = [full for full in near if _ends_with(full.casefold(), path.casefold())]
        fits = self._meant(fits, path.count("/") + 1)
        if len(fits) > 1:
            raise UserError(
                f"path {cell!r} fits {fits[0]} and {fits[1]} in {self.root}: write it in full"
            )
        if not fits:
            return path if (self.root / path).is_file() else None
        if "/" in path and fits[0].endswith(f"/{path}") and len(self._prefixes) < 8:
            self._prefixes.append(fits[0][: -len(path)])  # the next rows may lie there too
        return self._paths[fits[0]]

    def _index_names(self) -> dict[str, list[str]]:
        """Return name, with and without extension → paths in NFC."""
        by_name: dict[str, list[str]] = {}
        for known in self._paths:
            name = posixpath.basename(known)
            for key in (name, posixpath.splitext(name)[0]):
                by_name.setdefault(key.casefold(), []).append(known)
        folders = (known.split("/")[:-1] for known in self._paths)
        mine = (parts for parts in folders if _split_of(parts) != _OTHER[self.split])
        self._only_masks = all(map(_holds_masks, mine))
        return by_name

    def _meant(self, fits: Sequence[str], said: int) -> list[str]:
        """Return those of ``fits`` whose folders before the last ``said`` parts may be implied."""
        implied = {full: full.split("/")[:-said] for full in sorted(fits)}
        if not self._only_masks:
            implied = {full: part for full, part in implied.items() if not _holds_masks(part)}
        splits = {full: _split_of(part) for full, part in implied.items()}
        if self._has_own:
            splits = {full: s for full, s in splits.items() if s != _OTHER[self.split]}
        usual = [full for full in splits if full.startswith(f"{self._folder}/")]
        return usual or [full for full in splits if splits[full] != "val"] or list(splits)


def _split_of(folders: Sequence[str]) -> str:
    """Return train, test or val: what the outermost folder that names a split says, else ""."""
    for folder in folders:
        for word in re.findall("[a-z]+", folder.casefold()):
            for split in ("train", "test", "val"):
                if word.startswith(split):
                    return split
    return ""


def _holds_masks(folders: Sequence[str]) -> bool:
    """Tell whether the name of a folder says that it holds masks."""
    for folder in map(str.casefold, folders):
        if any(word in folder for word in _MASKS) or _MASK_WORDS & set(re.split("[^a-z]+", folder)):
            return True
    return False


def _ends_with(full: str, path: str) -> bool:
    """Tell whether ``path``, with or without its extension, is the end of ``full``."""
    return any(f"/{form}".endswith(f"/{path}") for form in (full, posixpath.splitext(full)[0]))
