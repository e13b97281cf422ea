"""A path written in a CSV in, the file that it means out.

What a cell leaves unsaid is guessed with care: a file of the other split (``test/3.png`` for a
row of the train table) or one in a folder of masks is never meant unless the cell says so.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from src.data.scan import Scanner
from src.data.tables import nfc
from src.script import UserError

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
