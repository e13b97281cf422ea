"""Split (train, valid, test) and kind (image, mask) that folders' names say.

``images/train/7.jpg``, ``train/images/7.jpg``, ``train_images/7.jpg`` and ``img_dir/train/7.jpg``
are all the image ``7`` of the train split. The layouts: docs/layouts.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from src.classes import nfc
from src.data.files import SPLIT_OF, Scanner, is_litter
from src.script import counted

_STRONG = frozenset({"image", "images", "img", "imgs", "mask", "masks", "이미지", "마스크"})
_IMAGES = frozenset({
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "rgb"),
    *("input", "inputs", "frames", "original", "originals"),
    *("이미지", "사진", "원본", "图像", "图片", "影像", "画像", "imagenes", "imágenes", "imagens"),
    *("bilder", "immagini", "изображения", "снимки"),
})  # fmt: skip
_MASKS = frozenset({
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots"),
    *("anno", "annos", "ann", "anns", "gt", "gts", "truth", "truths", "groundtruth", "laneseg"),
    *("seg", "segs", "segmentation", "segmentations", "target", "targets", "trimap", "trimaps"),
    *("lab", "labs", "마스크", "라벨", "정답", "掩码", "掩膜", "标签", "标注", "マスク"),
    *("ラベル", "mascaras", "máscaras", "masken", "masques", "maschere", "etiquetas"),
    *("маски", "разметка"),
})  # fmt: skip
_DATA = frozenset({"set", "sets", "data", "dataset"})
_FILL = _DATA | {
    *("dir", "dirs", "folder", "png", "jpg", "jpeg", "tif", "bmp", "class", "all", "ground"),
    *("raw", "stage", "full", "binary", "semantic", "index", "id", "ids", "crop", "crops"),
    *("cropped", "patch", "patches", "tile", "tiles", "resized"),
}  # words that say nothing of their own
_SPLITS = SPLIT_OF | {"tr": "train", "te": "test"}  # of names that say more, as DUTS-TE-Image
_WORDS = frozenset({*SPLIT_OF, *_IMAGES, *_MASKS, *_FILL})
_WHOLE = {  # split and kind
    **dict.fromkeys(("gtfine", "gtcoarse"), ("", "mask")),
    **dict.fromkeys(("laneseg_label_w16", "laneseg_label_w16_test"), ("", "mask")),
    "leftimg8bit": ("", "image"), "1st_manual": ("", "mask"), "2nd_manual": ("", "mask"),
    "manual1": ("", "mask"), "manual2": ("", "mask"), "imagestr": ("train", "image"),
    "labelstr": ("train", "mask"), "imagests": ("test", "image"), "labelsts": ("test", "mask"),
}  # fmt: skip
_PACKED = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2"})
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")


class Place(NamedTuple):
    """What a path says: split and kind ("" where it does not), and the other folders' names."""

    split: str
    kind: str
    rest: tuple[str, ...]


class _Name(NamedTuple):
    """What one folder's name says; ``strict``: it says nothing else."""

    split: str
    kind: str
    rest: str
    strict: bool
    strong: bool
    doubtful: bool


def read_place(folders: Sequence[str], *, loose: bool = True) -> Place:
    """Read the names of the folders of a file, outermost first.

    The kind is what the innermost ``images`` or ``masks`` says, else the outermost name that says
    one; the split is the outermost. With ``loose`` a name that says more, as ``polyps_with_GT``,
    may say a kind too.
    """
    names = [_read_name(folder) for folder in folders]
    kinds = [place for place, name in enumerate(names) if name.kind]
    strong = [place for place in kinds if names[place].strong]
    strict = [place for place in kinds if names[place].strict]
    chosen = (strong[-1:] or strict[:1] or (kinds[:1] if loose else []) or [-1])[0]
    split = next((name.split for name in names if name.split), "")
    rest = []
    for place, (folder, name) in enumerate(zip(folders, names, strict=True)):
        says = name.split == split != "" and (name.strict or place == chosen or not name.kind)
        part = name.rest if says or place == chosen else nfc(folder)
        rest += [part] if part else []
    return Place(split, names[chosen].kind if chosen >= 0 else "", tuple(rest))


def is_doubtful(folder: str) -> bool:
    """Tell whether a name holds the name of a split among words that are not known."""
    return _read_name(folder).doubtful


def split_of_name(stem: str) -> str:
    """Return the split that the name of an annotation file or a list says, else ""."""
    extra = {"instances", "instance", "coco", "default", "export", "list", "files", "lists"}
    tokens = [token for token in _tokens(stem) if not token.isdigit()]
    found = [SPLIT_OF[token] for token in tokens if token in SPLIT_OF]
    found = ["train"] if found == ["train", "valid"] else found  # "trainval"
    return found[0] if len(found) == 1 and set(tokens) <= _WORDS | extra else ""


def walk(root: Path, depth: int = 99) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the folders below ``root`` (as parts of their paths) with their files, sorted.

    Hidden files and the folders of operating systems and file servers are left out; links are
    followed, each real folder once.

    Raises:
        UserError: a folder that cannot be read.
    """
    for folder, files in Scanner(root).walk(depth=depth):
        yield tuple(folder.split("/")) if folder else (), files


def list_below(
    root: Path, endings: Collection[str], depth: int = 99
) -> Iterator[tuple[Place, Path]]:
    """Yield the files below ``root`` with such lower-case endings, and what their folders say."""
    for parts, files in walk(root, depth):
        place = read_place(parts)
        for file in files:
            if Path(file).suffix.lower() in endings:
                yield place, root.joinpath(*parts, file)


def describe(root: Path) -> str:
    """Say what lies below ``root``, for a refusal: "images/ (3 .jpg), annotations/ (1 .json)"."""
    found = []
    for parts, files in walk(root, depth=4):
        counts = Counter(Path(file).suffix.lower() or "without an ending" for file in files)
        shown = ", ".join(f"{count} {ending}" for ending, count in counts.most_common(3))
        found += [f"{'/'.join(parts) or '.'}/ ({shown})"] if shown else []
    more = f" and {counted(len(found) - 6, 'more folder')}" if len(found) > 6 else ""
    entries = sorted(root.iterdir())
    packed = [p.name for p in entries if p.suffix.lower() in _PACKED]
    unpack = f"; unpack {', '.join(packed[:3])} first" if packed else ""
    broken = [p.name for p in entries if p.is_symlink() and not p.exists()]
    restore = f"; restore {', '.join(broken[:3])}, a broken link" if broken else ""
    return ((", ".join(found[:6]) + more) or "nothing") + unpack + restore


def find_inner(root: Path) -> Path:
    """Return the folder that holds the set: ``root``, or the lone folder (of no role) in it."""
    for _ in range(3):
        entries = [p for p in root.iterdir() if not is_litter(p.name)]
        inner = [entry for entry in entries if entry.is_dir()]
        notes = {".md", ".txt", ".pdf", ".html", ".zip", ".gz", ".tar", ""}
        others = [e for e in entries if e.suffix.lower() not in notes and not e.is_dir()]
        if len(inner) != 1 or others or any(split_of_name(e.stem) for e in entries):
            return root
        name = _read_name(inner[0].name)
        if name.kind and name.strict:
            return root
        root = inner[0]
    return root


@lru_cache(maxsize=4096)
def _read_name(folder: str) -> _Name:
    folder = nfc(folder)
    if folder.casefold() in _WHOLE:
        return _Name(*_WHOLE[folder.casefold()], "", True, False, False)
    tokens = _tokens(folder)
    kinds = [token for token in tokens if token in _MASKS] or [t for t in tokens if t in _IMAGES]
    known = _SPLITS if kinds else SPLIT_OF
    splits = [known[token] for token in tokens if token in known]
    unknown = [token for token in tokens if token not in _WORDS]
    rest = "_".join(t for t in unknown if not (t.isdigit() and len(t) == 4))
    strict = all(token.isdigit() for token in unknown)
    says = strict or bool(kinds) or bool(_DATA & set(tokens))
    split = splits[0] if splits and says else ""
    kind = "" if not kinds else "mask" if kinds[0] in _MASKS else "image"
    if not split and not kind:
        glued = any(token.startswith(("train", "test")) for token in unknown)  # "trainpart"
        return _Name("", "", folder, strict, False, bool(splits) or glued)
    strong = strict and bool(kinds) and set(kinds) <= _STRONG
    return _Name(split, kind, rest, strict, strong, False)


def _tokens(name: str) -> list[str]:
    """Split a name into lower-case words and numbers: "JPEGImages" -> ["jpeg", "images"]."""
    found = []
    for token in map(str.casefold, _TOKEN.findall(name)):
        glued = [token[:cut] for cut in range(2, len(token) - 1)]  # "trainannot"
        head = next((h for h in glued if h in _WORDS and token[len(h) :] in _WORDS), "")
        found += [token] if token in _WORDS or not head else [head, token[len(head) :]]
    return found
