"""Resolution of image names, as annotation files write them, to files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.data.sources.masks import IMAGE_SUFFIXES
from src.data.sources.places import read_place, walk
from src.script import UserError


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
        self._by_name: dict[str, list[_File]] | None = None

    def find(self, name: str, near: Sequence[Path], split: str = "") -> str | None:
        """Return the POSIX path below the root of the image, None where there is none.

        Args:
            name: as the annotation writes it.
            near: folders to look in first.
            split: of the annotation; a file of another split is not meant.

        Raises:
            UserError: two files fit equally well.
        """
        text = unicodedata.normalize("NFC", name).replace("\\", "/")
        inside = Path(text)
        if inside.is_absolute() and inside.is_relative_to(self.root.resolve()):
            near, text = [self.root], inside.relative_to(self.root.resolve()).as_posix()
        parts = [p for p in re.sub("^[A-Za-z]:", "", text).split("/") if p not in ("", ".", "..")]
        if not parts:
            return None
        for folder in near if text == "/".join(parts) else ():
            path = folder / text
            if path.is_relative_to(self.root) and path.is_file():
                return path.relative_to(self.root).as_posix()
        return self._find_elsewhere("/".join(parts).casefold(), name, split)

    def _find_elsewhere(self, wanted: str, name: str, split: str) -> str | None:
        if self._by_name is None:
            self._by_name = self._list()
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

    def _list(self) -> dict[str, list[_File]]:
        found: dict[str, list[_File]] = {}
        for parts, files in walk(self.root):
            place = read_place(parts)
            for file in files:
                if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                    known = unicodedata.normalize("NFC", file).casefold()
                    key = "/".join((*place.rest, known)).casefold()
                    entry = _File("/".join((*parts, file)), key, place.split, place.kind)
                    found.setdefault(known, []).append(entry)
        return found


def _ends(text: str, end: str) -> bool:
    """Tell whether ``end`` is the last folders and name of ``text``."""
    return f"/{unicodedata.normalize('NFC', text)}".endswith(f"/{end}")
