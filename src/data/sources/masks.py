"""MaskIndex, the table of images and masks that every source returns, and how masks are read.

In: a raw folder, listed. Out: a :class:`MaskIndex`, so that a dataset reads VOC palettes, MATLAB
files and JSON polygons in the same way: ``index.decode(index.mask_path(row))``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd

from src.classes import nfc
from src.data.decode import look_into
from src.data.files import below
from src.data.sources.places import describe
from src.script import UserError

JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
_PNM = frozenset({".ppm", ".pgm", ".pbm", ".pnm"})
IMAGE_SUFFIXES = JPEG | _PNM | {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
MASK_SUFFIXES = _PNM | {".png", ".bmp", ".tif", ".tiff", ".gif", ".npy"}
_ORIENTATION = 274  # EXIF's tag
_LOOK_INTO = 32  # masks, to tell which of two classes is the larger
_LOOK_AT = 4000  # headers of images; as many as a disk gives in a second or two


class Row(NamedTuple):
    """One image; paths are POSIX and relative to the root, "" is unknown."""

    id: str
    image: str
    target: str = ""
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class MaskIndex:
    """Images, their masks, and the meaning of the labels."""

    root: Path  # the folder that the table's paths are relative to
    # text columns id, image, target (the mask), group and split (train, valid, test or ""). A
    # target may name a place inside a file: "labels.json#17"
    table: pd.DataFrame
    classes: tuple[str, ...]  # name of every label 0..K-1
    ignore_index: int | None  # the label of void pixels, None where there is none
    decode: Callable[[Path], np.ndarray]  # path of a target -> labels (H, W), uint8 where they fit
    notes: tuple[str, ...] = ()  # what is missing or odd, one line each
    # whether the groups are blocks of frames numbered on, which may be cut finer
    blocks: bool = False

    @property
    def num_classes(self) -> int:
        """K, void not counted."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.table)

    def take(self, *splits: str) -> MaskIndex:
        """Keep the rows of the given splits, in their order."""
        table = self.table[self.table["split"].isin(splits)].reset_index(drop=True)
        return replace(self, table=table)

    def image_path(self, row: int) -> Path:
        """Path of the image in the table's ``row``."""
        return self.root / str(self.table["image"].iat[row])

    def mask_path(self, row: int) -> Path:
        """Path of the mask in the table's ``row``, for :attr:`decode`."""
        return self.root / str(self.table["target"].iat[row])


class Source(NamedTuple):
    """A layout of mask data."""

    name: str  # as ``--source`` says it
    read: Callable[..., MaskIndex]  # folder (and options) → its index
    # whether a folder has the layout's sign; nothing but its name calls one without
    is_here: Callable[[Path], bool] = lambda _: False
    whole: bool = False  # whether ``read`` looks into a lone folder by itself


def has_folder(root: Path, *names: str) -> bool:
    """Tell whether a folder of one of these names lies in ``root``."""
    return any((root / name).is_dir() for name in names)


def has_file(root: Path, pattern: str) -> bool:
    """Tell whether a file fits ``pattern`` in ``root`` or in a folder in it."""
    return any(root.glob(pattern)) or any(root.glob(f"*/{pattern}"))


def index_images(paths: Sequence[str], classes: Sequence[str]) -> MaskIndex:
    """Return an index of photographs without masks, to predict them."""
    table = pd.DataFrame({"id": list(paths), "image": list(paths)}, dtype=str)
    table = table.assign(target="", group="", split="test")
    return MaskIndex(Path(), table, tuple(classes), None, decode_nothing)


def decode_nothing(path: Path) -> np.ndarray:
    """Refuse: photographs to predict have no masks."""
    raise UserError(f"{path}: no mask")


def build_index(
    root: Path,
    rows: Iterable[Row],
    classes: Sequence[str],
    decode: Callable[[Path], np.ndarray],
    *,
    ignore_index: int | None = None,
    notes: Iterable[str] = (),
    blocks: bool = False,
) -> MaskIndex:
    """Put ``rows`` into the table.

    Where two splits use the same file names, ids become "split/name".

    Raises:
        UserError: no rows, or an id twice within a split.
    """
    notes = tuple(notes)
    table = pd.DataFrame(list(rows), columns=list(Row._fields), dtype="str")
    if table.empty:
        why = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"no images below {root}: found {describe(root)}; point --data_dir at the unpacked "
            f"set{why}"
        )
    if table["id"].duplicated().any():
        table["id"] = table["split"] + "/" + table["id"]
    double = table["id"][table["id"].duplicated()]
    if len(double):
        raise UserError(f"{root}: the id {double.iat[0]} names two images: rename one")
    return MaskIndex(root, table, tuple(classes), ignore_index, decode, notes, blocks)


def refuse_size(
    mask: Sequence[int], image: Sequence[int], mask_path: object, image_path: object
) -> NoReturn:
    """Raise the UserError of a mask whose (H, W) is not its image's; EXIF is named if it is why."""
    what = f"mask {mask_path} is {mask[1]}x{mask[0]} pixels but its image {image_path} is "
    what += f"{image[1]}x{image[0]}"
    turn = image_header(Path(str(image_path)))[2]
    if turn and tuple(mask) == (image[1], image[0]):
        raise UserError(
            f"{what} as its EXIF orientation {turn} turns it, and the mask was drawn on the pixels "
            "as stored: remove the EXIF orientation from the image, or turn the mask"
        )
    raise UserError(f"{what}: give both the same size")


def image_header(path: Path) -> tuple[int, int, int]:
    """Read (width, height as decoded, EXIF orientation 2..8 or 0); (0, 0, 0) for no image."""
    return look_into(path, _read_header, (0, 0, 0))


def _read_header(image: Any) -> tuple[int, int, int]:
    (width, height), turn = image.size, 0
    if image.format != "PNG" or "exif" in image.info:  # else Pillow decodes it to look
        turn = int(image.getexif().get(_ORIENTATION, 0))
    turn = turn if 2 <= turn <= 8 else 0
    return (height, width, turn) if turn >= 5 else (width, height, turn)


def note_turned(index: MaskIndex) -> MaskIndex:
    """Add a note where images with masks have an EXIF orientation: the masks may not be turned.

    At most ``_LOOK_AT`` images are looked at.
    """
    images = index.table["image"][index.table["target"] != ""].tolist()
    step = max(1, len(images) // _LOOK_AT)
    turned = [name for name in images[::step] if image_header(index.root / name)[2]]
    notes: list[str] = []
    what = f"{index.root}: images with an EXIF orientation, which is applied"
    note_missing(notes, f"{what}; check that their masks were drawn on the turned image", turned)
    return replace(index, notes=(*index.notes, *notes))


def note_pages(index: MaskIndex) -> MaskIndex:
    """Add a note where TIFFs hold several pages of one size, as stacks of slices do."""
    images = [n for n in index.table["image"] if Path(n).suffix.lower() in (".tif", ".tiff")]
    step = max(1, len(images) // _LOOK_AT)
    stacks = [n for n in images[::step] if look_into(index.root / n, _is_stack, False)]
    notes: list[str] = []
    what = f"{index.root}: images of several pages, of which the first alone is read"
    note_missing(notes, f"{what}; save each page, and its mask, as an image", stacks)
    return replace(index, notes=(*index.notes, *notes))


def _is_stack(image: Any) -> bool:
    size = image.size
    if getattr(image, "n_frames", 1) < 2:
        return False
    image.seek(1)
    return bool(image.size == size)  # a smaller one is a preview


def check_any_labels(index: MaskIndex) -> None:
    """Look through the masks until they hold background and more, or of many classes any label.

    Raises:
        UserError: they are one class alone, so that there is nothing to learn.
    """
    targets = [target for target in index.table["target"].tolist() if target]
    void = -1 if index.ignore_index is None else index.ignore_index
    background, label = index.num_classes > 2, False
    for target in targets:
        mask = index.decode(index.root / target)
        background = background or bool((mask == 0).any())
        label = label or bool(((mask != 0) & (mask != void)).any())
        if background and label:
            return
    if targets:
        name = index.classes[1] if label else "background"
        check = (
            "0 (black) is background: renumber masks that count from 1"
            if label
            else "check that annotations and images belong together, and their units (pixels)"
        )
        raise UserError(
            f"{index.root}: all masks ({len(targets)}) are {name} alone, {targets[0]} for "
            f"instance: {check}"
        )


def note_inverted(index: MaskIndex) -> MaskIndex:
    """Add a note where the foreground of two classes is the larger part of most masks."""
    targets = [target for target in index.table["target"].tolist() if target]
    if index.num_classes != 2:
        return index
    step = max(1, len(targets) // _LOOK_INTO)
    shares = [(index.decode(index.root / target) == 1).mean() for target in targets[::step]]
    drawn = [share for share in shares if share]
    large = [share for share in drawn if share > 0.5]
    if 2 * len(large) <= len(drawn):
        return index
    note = (
        f"{index.classes[1]} covers {np.median(large):.0%} of the picture in {len(large)} of "
        f"{len(drawn)} masks; if the masks are inverted (the background white, what is sought "
        "black), invert them first"
    )
    return replace(index, notes=(*index.notes, note))


def list_files(
    folder: Path, suffixes: frozenset[str], key: Callable[[str], str] = str
) -> dict[str, Path]:
    """List the files of ``folder``, sorted, as {NFC id: path}.

    ``folder`` may be missing; ``suffixes`` are lower-case endings to keep; hidden files are left
    out. ``key`` makes an id of a stem.

    Raises:
        UserError: two files share an id (``7.jpg`` and ``7.png``).
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = key(nfc(path.stem))
        if name in found:
            raise UserError(f"{found[name]} and {path} are the same image twice: remove one")
        found[name] = path
    return found


def pair(
    root: Path,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    split: str = "",
    *,
    notes: list[str],
    group: Callable[[str], str] = lambda _: "",
) -> Iterator[Row]:
    """Join images and masks by id; an image without a mask stays only where it can be predicted.

    A split without any mask is to be predicted as a whole and becomes (or stays) ``test``;
    elsewhere an image without its mask is left out, and a note names it.
    """
    blind = not masks or split == "test"
    lone = [] if blind else [name for name in images if name not in masks]
    where = f"{root}, split {split or 'undivided'}"
    note_missing(notes, f"{where}: images without a mask, left out", lone)
    note_missing(notes, f"{where}: masks without an image", [m for m in masks if m not in images])
    for name, path in images.items():
        if name in masks or blind:
            target = below(root, masks[name]) if name in masks else ""
            part = "test" if not masks else split
            yield Row(name, below(root, path), target, group(name), part)


def note_missing(notes: list[str], what: str, names: Sequence[str]) -> None:
    """Add one line that counts ``names`` and shows the first three; nothing when empty."""
    if names:
        more = ", ..." if len(names) > 3 else ""
        notes.append(f"{what}: {len(names)} ({', '.join(names[:3])}{more})")


def note_count(notes: list[str], what: str, found: int, expected: int) -> None:
    """Add one line when a data set does not hold the number of files it is known to hold."""
    if found != expected:
        notes.append(
            f"{what}: {found} found, {expected} known: fine for a subset, else unpack again"
        )
