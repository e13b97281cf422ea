"""A folder in, the images below it out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

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
