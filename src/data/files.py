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
from src.data.splits import split_of_word
from src.files import is_of_the_system, readable
from src.script import UserError

# Endings that are images without a look; files with others are opened.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
IMAGE_ENDINGS = EXTENSIONS | {
    *(".jfif", ".jpe", ".jif", ".jfi", ".pjpeg", ".pjp", ".apng", ".dib", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".avif", ".heic", ".heif", ".hif", ".jxl"),
    *(".dcm", ".dicom", ".ico", ".qoi", ".ras"),
}
_LITTER = re.compile(
    r"__macosx|__pycache__|\$recycle\.bin|recycler?|system volume information|found\.\d{3}"
    r"|@eadir|@tmp|@recycle|@__thumb|@sharebin|@recently-snapshot|#recycle|#snapshot|lost\+found"
    r"|network trash folder|temporary items|thumbnails?|thumbs\.db|ehthumbs(_vista)?\.db"
    r"|desktop\.ini|icon\r|.*:zone\.identifier"
)
# Files that lie beside images and are none; what has another ending may be an image.
BESIDE = frozenset({
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".rst"),
    *(".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".py", ".ipynb"),
    *(".sh", ".bat", ".m", ".log", ".ini", ".cfg", ".db", ".lnk", ".url", ".zip", ".tar", ".gz"),
    *(".tgz", ".7z", ".rar", ".md5", ".sha1", ".sha256", ".bak", ".orig", ".old", ".tmp", ".swp"),
    *(".parquet", ".pkl", ".h5", ".hdf5", ".names", ".data", ".lock", ".cache", ".xmp", ".aae"),
})  # fmt: skip
_RAW = frozenset({
    *(".cr2", ".cr3", ".nef", ".nrw", ".arw", ".dng", ".orf", ".rw2", ".pef", ".raf", ".srw"),
    *(".thm", ".raw"),
})  # fmt: skip
_CUT_SHORT = frozenset({".part", ".crdownload", ".download", ".partial"})
_BESIDE_NAMES = frozenset({"readme", "license", "licence", "notice", "changelog", "md5sums"})


def find_entry(root: Path, *names: str) -> Path | None:
    """Return the first of ``names`` (given in lower case) that lies in ``root`` in any case.

    Raises:
        UserError: ``root`` cannot be read.
    """
    with readable(f"folder {root}"):
        entries = {nfc(name).casefold(): name for name in sorted(os.listdir(root))[::-1]}  # noqa: PTH208
    return next((root / entries[name] for name in names if name in entries), None)


def is_litter(name: str) -> bool:
    """Tell whether an entry is hidden, or of a system: a bin, thumbnails, an index."""
    return name[0] == "." or _LITTER.fullmatch(name.casefold()) is not None


def _ending(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


class Scanner:
    """Walks folders below one root, each real folder once, however links point at it.

    ``notes`` collects, one line each, what was left out and why; files that are no images are
    counted for :meth:`left_out`.
    """

    def __init__(self, root: Path):
        """Scan below ``root``; paths are reported relative to it."""
        self.root = root
        self.notes: list[str] = []
        self.folders: list[str] = []  # that were walked
        self._litter: set[str] = set()
        self._others: dict[tuple[str, str], list[str]] = {}  # (ending, why) → paths
        self._seen: set[tuple[int, int]] = set()
        self._is_new("")

    def images(self, folder: str = "") -> list[str]:
        """Return the POSIX paths, relative to the root, of the images below ``folder``, sorted.

        An image is a non-hidden file with an image extension in any case, or one whose first bytes
        are those of an image that can be read; a folder is a folder even when named ``x.jpg``.
        Links are followed.

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
        names = self.subfolders(parent)
        names.sort(key=lambda name: (self.root / parent / name).is_symlink())
        new = {name for name in names if self._is_new(f"{parent}/{name}")}
        return {name: self._walk(f"{parent}/{name}") for name in sorted(new)}

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in ``folder``, sorted."""
        return sorted(name for name, is_folder in self._entries(folder) if is_folder)

    def loose(self, folder: str) -> list[str]:
        """Return the names of the images that lie directly in ``folder``."""
        entries = self._entries(folder)
        return [
            name for name, is_folder in entries
            if not is_folder and self._why_not(f"{folder}/{name}", name) is None
        ]  # fmt: skip

    def holds(self, folder: str) -> bool:
        """Tell whether images lie directly in ``folder``."""
        entries = self._entries(folder)
        return any(
            not is_folder and self._why_not(f"{folder}/{name}", name) is None
            for name, is_folder in entries
        )

    def left_out(self, *, doubtful: bool = False) -> list[str]:
        """Return one line for each kind of file that is no image here, with their number.

        Args:
            doubtful: only those that may be images, and not texts, tables, archives.
        """
        lines = []
        beside = []
        for (ending, why), paths in sorted(self._others.items()):
            files = f"{len(paths)} files {ending or 'without an ending'}"
            if why:
                lines.append(f"{files} are left out, first {paths[0]}: {why}")
            else:
                beside.append(files)
        if doubtful:
            return lines
        if beside:
            lines.append(f"{', '.join(beside)} are no images: left out")
        if self._litter:
            lines.append(f"folders of the system are left out: {', '.join(sorted(self._litter))}")
        return lines

    def _why_not(self, path: str, name: str) -> str | None:
        """Return why a file is no image that can be read: "" a text or table, None it is one."""
        ending = _ending(name)
        if ending in EXTENSIONS:
            return None
        if ending in BESIDE or ending.endswith("~") or name.casefold() in _BESIDE_NAMES:
            return ""
        if ending in _RAW:  # many begin like a TIFF, of which a decoder sees the thumbnail
            return "raw data of a camera: convert them to PNG or JPEG, or remove them"
        if ending in _CUT_SHORT:
            return "cut short, it seems: finish the download"
        from src.data.formats import HEAD, describe, find_kind, lacking

        if not (self.root / path).is_file():  # a pipe would never end
            return "no file: remove them"
        try:
            with (self.root / path).open("rb") as file:
                kind = find_kind(file.read(HEAD))
        except OSError as error:
            if is_of_the_system(error):
                raise
            return f"cannot be read ({error.strerror}): restore them"
        if not kind:
            return "not a format that is read here: convert them to PNG, or remove them"
        remedy = lacking(kind)
        return f"{describe(kind)}: {remedy}, or convert them to PNG" if remedy else None

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
                    continue
                why = self._why_not(prefix + name, name)
                if why is None:
                    found.append(prefix + name)
                else:
                    self._others.setdefault((_ending(name), why), []).append(prefix + name)
            stack += [inner for inner in sorted(folders, reverse=True) if self._is_new(inner)]
        found.sort()
        return self._checked(found)

    def _entries(self, folder: str) -> Iterable[tuple[str, bool]]:
        place = self.root / folder
        with readable(f"folder {place}"), os.scandir(place) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    if entry.name[0] != "." and entry.is_dir():
                        self._litter.add(entry.name)
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError as error:  # a link that points at itself
                    if is_of_the_system(error):
                        raise
                    self.notes.append(f"{folder}/{entry.name} is a broken link: left out")
                    continue
                yield entry.name, is_folder

    def _is_new(self, folder: str) -> bool:
        with readable(f"folder {self.root / folder}"):
            status = (self.root / folder).stat()
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
        self.left_out = [line for line in scanner.left_out(doubtful=True) if "pip install" in line]
        own = [name for name in scanner.folders if _split_of(name.split("/")) == split]
        self._has_own = bool(own)
        self.place = f"{root}/{min(own, key=len)}/" if own else str(root)  # where they should be
        self._folder = nfc(folder or split)
        self._prefixes = ["", f"{self._folder}/"]
        self._by_name: dict[str, list[str]] | None = None
        self._by_number: dict[int, list[str]] | None = None
        self._only_masks = False

    def names(self) -> list[str]:
        """Return what an image's id may be: its file name, with the ending and without."""
        whole = {posixpath.basename(path) for path in self._paths}
        return sorted(whole | {posixpath.splitext(name)[0] for name in whole})

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
        return self._find_by_name(path, cell) or self._find_end(path)

    def _find_end(self, path: str) -> str | None:
        """Return the image that is an end of ``path`` of two parts or more: folders above ours."""
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(1, len(parts) - 1))
        return next((self._paths[end] for end in ends if end in self._paths), None)

    def find_quietly(self, cell: str) -> str | None:
        """Return the path of the image as :meth:`find` does, None for what that refuses."""
        try:
            return self.find(cell) if cell.strip() else None
        except UserError:
            return None

    def finds(self, cell: str) -> bool:
        """Tell whether ``cell`` means an image."""
        return (self.find_quietly(cell) or self.find_number(cell)) is not None

    def find_number(self, cell: str) -> str | None:
        """Return the one image whose name is the number of ``cell``: 1 or 1.0 is ``0001.jpg``."""
        number = re.fullmatch(r"(\d+)(\.0+)?", cell.strip())
        if number is None:
            return None
        if self._by_number is None:
            self._by_number = {}
            for path in self._paths:
                stem = posixpath.splitext(posixpath.basename(path))[0]
                if stem.isdecimal():
                    self._by_number.setdefault(int(stem), []).append(path)
        fits = self._meant(self._by_number.get(int(number[1]), ()), 1)
        return self._paths[fits[0]] if len(fits) == 1 else None

    def parts(self, cell: str) -> list[str]:
        """Return the names of the images that begin with ``cell``, if several: ``7_red.png``."""
        stem = posixpath.basename(nfc(cell).strip())
        names = (posixpath.basename(path) for path in self._paths)
        found = sorted({name for name in names if re.match(re.escape(stem) + "[-_. ]", name)})
        return found if stem and len(found) > 1 else []

    def num_others(self, images: Sequence[str]) -> int:
        """Count the images of the split's own folders that are none of ``images``."""
        own: dict[str, bool] = {}
        mine = set()
        for path in self._paths.values():
            folder = posixpath.dirname(path)
            if folder not in own:
                own[folder] = _split_of(folder.split("/")) == self.split
            if own[folder]:
                mine.add(path)
        return len(mine - {*images})

    @property
    def like(self) -> str:
        """An image that is there, "" where there is none."""
        mine = [path for path in self._paths if _split_of(path.split("/")[:-1]) == self.split]
        return min(mine or self._paths, default="")

    def _inside(self, cell: str) -> str | None:
        path = posixpath.normpath(nfc(cell.strip()).replace("\\", "/"))
        if path.startswith(self._inner):
            return path[len(self._inner) :]
        if not path.startswith(("/", "../")) and path != ".." and not re.match("[A-Za-z]:", path):
            return path
        if self.allow_outside and (self.root / path).is_file():
            return None
        parts = re.sub("^[A-Za-z]:", "", path).strip("/").split("/")
        if ".." not in parts and not (self.root / path).exists():  # of another machine
            ends = ("/".join(parts[start:]) for start in range(len(parts)))
            known = next((end for end in ends if end in self._paths), None)
            if known is not None:
                return known
        if self.allow_outside:
            return None
        raise UserError(
            f"path {cell!r} leaves the data folder {self.root}, and no end of it is a file there: "
            "mend it, or pass --allow_outside"
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
        for word in re.findall(r"[^\W\d_]+", nfc(folder).casefold()):
            known = split_of_word(word)
            glued = next(
                (split for split in ("train", "test", "val") if word.startswith(split)), ""
            )
            if known or glued:  # "trainannot"
                return (known or glued).replace("valid", "val")
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
