"""Listing of the image files below a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from src.classes import nfc
from src.files import is_of_the_system, readable
from src.script import UserError, counted

# Endings that are images without a look; files with others are opened.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
IMAGE_ENDINGS = EXTENSIONS | {
    *(".jfif", ".jpe", ".jif", ".jfi", ".pjpeg", ".pjp", ".apng", ".dib", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".avif", ".heic", ".heif", ".hif", ".jxl"),
    *(".dcm", ".dicom", ".ico", ".qoi", ".ras"),
}
_LITTER = re.compile(
    r"__macosx|__pycache__|\$recycle\.bin|system volume information|found\.\d{3}"
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


def below(root: Path, path: Path | None) -> str:
    """Return the POSIX path of what lies below ``root``, "" for none."""
    return path.relative_to(root).as_posix() if path else ""


def is_litter(name: str) -> bool:
    """Tell whether an entry is hidden, or of a system: a bin, thumbnails, an index."""
    # "recycle" is a class of waste
    return name[0] == "." or name == "RECYCLER" or _LITTER.fullmatch(name.casefold()) is not None


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
        if parent not in ("", "."):
            self._is_new(parent)
        names = self.subfolders(parent)
        names.sort(key=lambda name: (self.root / parent / name).is_symlink())
        new = {name for name in names if self._is_new(f"{parent}/{name}")}
        return {name: self._walk(f"{parent}/{name}") for name in sorted(new)}

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in ``folder``, sorted."""
        return sorted(name for name, is_folder in self._entries(folder) if is_folder)

    def loose(self, folder: str) -> Iterator[str]:
        """Yield the names of the images that lie directly in ``folder``."""
        for name, is_folder in self._entries(folder):
            if not is_folder and self._why_not(f"{folder}/{name}", name) is None:
                yield name

    def holds(self, folder: str) -> bool:
        """Tell whether images lie directly in ``folder``."""
        return any(self.loose(folder))

    def holds_any(self) -> bool:
        """Tell whether there is any image; stops at the first."""
        return any(self.holds(place) for place, _ in Scanner(self.root).walk())

    def left_out(self, *, doubtful: bool = False) -> list[str]:
        """Return one line for each kind of file that is no image here, with their number.

        With ``doubtful`` only those that may be images, and not texts, tables, archives.
        """
        lines = []
        beside = []
        for (ending, why), paths in sorted(self._others.items()):
            files = f"{counted(len(paths), 'file')} {ending or 'without an ending'}"
            if why:
                lines.append(f"{files} left out, first {paths[0]}: {why}")
            else:
                beside.append(files)
        if doubtful:
            return lines
        if beside:
            lines.append(f"left out as no images: {', '.join(beside)}")
        if self._litter:
            lines.append(f"folders of the system are left out: {', '.join(sorted(self._litter))}")
        return lines

    def no_images(self) -> list[str]:
        """Return the files of the folders walked that may be scans or films, and are not read."""
        found = (paths for (end, why), paths in self._others.items() if why or end == ".gz")
        return [path for paths in found for path in paths]

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

    def walk(self, folder: str = "", depth: int = 99) -> Iterator[tuple[str, list[str]]]:
        """Yield ``folder`` and those up to ``depth`` levels below it with the names of their files.

        Raises:
            UserError: a folder that cannot be read.
        """
        stack = [(folder, depth, False)]
        while stack:
            folder, depth, is_link = stack.pop()
            if is_link and not self._is_new(folder):
                continue
            entries = sorted(self._entries(folder))
            yield folder, [name for name, is_folder in entries if not is_folder]
            prefix = f"{folder}/" if folder else ""
            inner = [prefix + name for name, is_folder in entries if is_folder and depth]
            for path in reversed(inner):
                is_link = (self.root / path).is_symlink()  # never read instead of a folder beside
                if is_link or self._is_new(path):
                    stack.append((path, depth - 1, is_link))

    def _walk(self, folder: str) -> list[str]:
        found: list[str] = []
        for place, names in self.walk(folder):
            self.folders.append(place)
            prefix = f"{place}/" if place else ""
            for name in names:
                why = self._why_not(prefix + name, name)
                if why is None:
                    found.append(prefix + name)
                else:
                    self._others.setdefault((_ending(name), why), []).append(prefix + name)
        found.sort()
        return self._checked(found)

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        place = self.root / folder
        with readable(f"folder {place}"), os.scandir(place) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                except OSError as error:  # a link that points at itself
                    if is_of_the_system(error):
                        raise
                    self.notes.append(f"{folder}/{entry.name} is a broken link: left out")
                    continue
                if is_litter(entry.name):
                    if entry.name[0] != "." and is_folder:
                        self._litter.add(entry.name)
                    continue
                yield entry.name, is_folder

    def _is_new(self, folder: str) -> bool:
        with readable(f"folder {self.root / folder}"):
            status = (self.root / folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen and status.st_ino:  # some network drives number no file
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


# Words that name the splits in folders, files and columns, by language.
SPLITS = {
    "train": (
        *("train", "training", "trn", "entrenamiento", "treino", "treinamento", "entrainement"),
        *("entraînement", "apprentissage", "addestramento", "обучение", "학습", "훈련"),
        *("训练", "训练集", "訓練", "訓練集", "学習"),
    ),
    "valid": (
        *("val", "valid", "validation", "dev", "validierung", "validacion", "validación"),
        *("validacao", "validação", "convalida", "검증", "验证", "验证集", "驗證", "検証"),
    ),
    "test": (
        *("test", "testing", "tst", "prueba", "pruebas", "teste", "тест", "테스트", "시험"),
        *("测试", "测试集", "測試", "測試集", "テスト"),
    ),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}


def split_of_word(word: str) -> str:
    """Return the split that one word names, in any case; "" none."""
    return SPLIT_OF.get(nfc(word).strip().casefold(), "")
