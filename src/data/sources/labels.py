"""Meaning of the values in mask files: labels, 0/255, palettes, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from src.data.decode import VOID, decode_image, decode_mask, read_bytes, read_size
from src.data.sources.colours import Colours, find_one_colour, has_alpha
from src.data.sources.masks import JPEG
from src.script import UserError, counted

MAX_LABELS = 64  # more distinct values than this are soft edges, not classes
_WHITE = 240
MAX_GAPS = 3  # more classes than this for each value that is there: greys, not class numbers


class Labels(NamedTuple):
    """The names of the labels 0..K-1, the reader of a mask, and the label of void pixels."""

    names: tuple[str, ...]
    decode: Callable[[Path], np.ndarray]
    void: int | None = None


def settle_labels(
    targets: Sequence[Path], names: tuple[str, ...], foreground: bool, notes: list[str]
) -> Labels:
    """Decide what the masks' values mean; all masks are looked at unless classes are named.

    Two values, 0 and any other, are background and foreground. 0..K-1 are class numbers and 255
    beside them is void. Empty ``names`` are counted. With ``foreground`` two labels are wanted: any
    number above 0 is foreground. ``notes`` receive what is odd.

    Raises:
        UserError: two labels but not two names, or values that are no class numbers.
    """
    if not targets or (len(names) > 2 and not foreground):
        return _pair(names) if foreground else _numbers(names or _default_names(2))
    look_at_all = not names and not foreground
    step = 1 if look_at_all else max(1, len(targets) // 32)
    first, void = _find_values(targets[::step])
    if step > 1 and set(first) <= {0}:
        first, void = _find_values(targets)
    decode = _find_foreground(set(first), void)
    numbered = _are_numbers(first)
    two = names or _default_names(2)
    if foreground and (numbered or (decode is None and not _are_soft(first, targets[::step]))):
        top = max(set(first) - {VOID}, default=0)
        void = void and (numbered or top < MAX_LABELS)
        if top > 1:
            also = " and 255 as void" if void else ""
            top = top if void else max(first)
            notes.append(
                f"masks hold numbers up to {top}: every number above 0 is read as {two[1]}{also}"
            )
        return Labels(two, partial(decode_any, void=void))
    if decode is None and (foreground or (names and _may_be_soft(first))):
        decode = decode_soft
        notes.append(f"masks hold greys, as soft edges do: from 128 on they are read as {two[1]}")
    if decode is not None:
        if {1, VOID} <= set(first) and not void and look_at_all:
            notes.append("some masks are 0/1 and some 0/255: both are read as foreground")
        return _pair(names, decode)
    return _numbers(names or _default_names(_count_classes(first)))


@dataclass(frozen=True)
class PartsDecoder:
    """Read masks that lie in several files: 1 where any part is."""

    decode: Callable[[Path], np.ndarray]  # of one file
    parts: Mapping[Path, Sequence[Path]]  # the first file → the others

    def describe(self) -> str:
        """Say what the labels depend on besides the first files, for a cache."""
        from src.data.canonical import describe_reader, fingerprint  # torch

        others = (str(path) for more in self.parts.values() for path in more)
        return fingerprint(others, describe_reader(self.decode))

    def __call__(self, path: Path) -> np.ndarray:
        """Read the parts of one mask; UserError where they differ in size."""
        mask = self.decode(path)
        for other in self.parts.get(path, ()):
            part = self.decode(other)
            if part.shape != mask.shape:
                raise UserError(f"masks {path} and {other} are of one image: give them its size")
            mask = np.maximum(mask, part)
        return mask


def join_parts(
    decode: Callable[[Path], np.ndarray],
    parts: Mapping[Path, Sequence[Path]],
    names: Sequence[str],
    notes: list[str],
) -> Callable[[Path], np.ndarray]:
    """Return the decoder of masks that lie in several files, ``decode`` itself where none does.

    Raises:
        UserError: they have more than two labels, so that parts may contradict each other.
    """
    if not parts:
        return decode
    first, others = next(iter(parts.items()))
    if len(names) > 2:
        raise UserError(
            f"{first} and {others[0]} are of one image, and hold {len(names)} labels: draw one "
            "mask an image"
        )
    notes.append(
        f"{counted(len(parts), 'image')} with several masks, which are joined: {first.parent.name}/"
    )
    return PartsDecoder(decode, parts)


def settle_blurred(targets: Sequence[Path], names: tuple[str, ...], notes: list[str]) -> Labels:
    """Decide what JPEG masks mean: black and white alone are background and foreground.

    Raises:
        UserError: more greys, colours, or more than two names.
    """
    if len(names or (0, 0)) != 2:
        raise UserError(
            f"mask {targets[0]} is a JPEG, which changes the numbers of {len(names)} classes: "
            "export the masks anew as PNG"
        )
    share = check_blurred(targets)
    found = names or _default_names(2)
    notes.append(
        f"masks are JPEG: greys from 128 on are read as {found[1]} ({share:.1%} of the pixels lie "
        "between black and white, which PNG would have kept apart)"
    )
    return Labels(found, decode_blurred)


def settle_colours(
    coloured: Path,
    targets: Sequence[Path],
    names: tuple[str, ...],
    foreground: bool,
    colours: Colours | None,
    notes: list[str],
) -> Labels:
    """Decide what the colours of masks mean: by a table, or one colour on black.

    ``coloured`` is a mask that holds colours; ``names`` are said elsewhere, if at all. With
    ``foreground`` every colour but black is foreground. ``notes`` receive what is assumed.

    Raises:
        UserError: several colours and no table.
    """
    if foreground:
        soft = _are_soft({255}, targets[:: max(1, len(targets) // 32)], read_brightness)
        notes.append(
            "masks hold colours with soft edges: from a brightness of 128 on they are foreground"
            if soft
            else "masks hold colours: every colour but black is read as foreground"
        )
        decode = partial(decode_any_colour, least=128 if soft else 1)
        return Labels(names or _default_names(2), decode)
    if colours is not None:
        return Labels(colours.names, colours.decode, VOID)
    one = find_one_colour(targets)
    if one is None or len(names or (0, 0)) != 2:
        clear = "; the mask may be its transparency, then save that" if has_alpha(coloured) else ""
        raise UserError(
            f"mask {coloured} holds colours, not class indices: name them in class_dict.csv in "
            "the data folder (a line name,r,g,b for each), or save masks as grey PNG (colours that "
            f"number single things, as panoptic ones, need the latter{clear})"
        )
    notes.append("masks hold one colour on black: it is read as foreground")
    return Labels(names or _default_names(2), one)


def decode_any_colour(path: Path, *, least: int) -> np.ndarray:
    """Read a mask of colours as labels 0 and 1, 1 where its brightest channel reaches ``least``."""
    return np.asarray(read_brightness(path) >= least, np.uint8)


def read_brightness(path: Path) -> np.ndarray:
    """Read the brightest channel (H, W) of a mask of colours."""
    return decode_image(path).max(axis=2)


def decode_foreground(path: Path) -> np.ndarray:
    """Read a two-class mask, stored as 0/1 or as 0/255 with soft edges, as labels 0 and 1.

    0, 1 and 255 together are labels with void, and stay.

    Raises:
        UserError: it holds none of these.
    """
    mask = decode_mask(path)
    top = int(mask.max())
    if top <= 1 or (top == VOID and set(np.unique(mask).tolist()) == {0, 1, VOID}):
        return mask
    if not 128 <= top <= VOID:
        raise UserError(f"mask {path} reaches {top}: a two-class mask is 0/1 or 0/255")
    return (mask >= 128).astype(np.uint8)


def decode_soft(path: Path) -> np.ndarray:
    """Read a two-class mask with soft edges, or one of 0 and 1, as labels 0 and 1."""
    mask = decode_mask(path)
    return mask if mask.max() <= 1 else (mask >= 128).astype(np.uint8)


def decode_any(path: Path, *, void: bool) -> np.ndarray:
    """Read a mask of numbers as labels 0 and 1, 1 where it is above 0.

    With ``void`` 255 is void; else it is foreground too.
    """
    mask = decode_mask(path)
    if mask.max() <= 1:
        return mask
    labels = (mask > 0).astype(np.uint8)
    if void:
        labels[mask == VOID] = VOID
    return labels


def decode_two(path: Path, foreground: int) -> np.ndarray:
    """Read a mask that holds 0 and ``foreground`` alone, as labels 0 and 1.

    Raises:
        UserError: it holds anything else.
    """
    mask = decode_mask(path)
    other = np.unique(mask[(mask != 0) & (mask != foreground)])
    if len(other):
        raise UserError(
            f"mask {path} holds {other[0]} where other masks hold 0 and {foreground} alone: "
            "renumber the masks to 0..K-1"
        )
    return (mask == foreground).astype(np.uint8)


def _pair(
    names: tuple[str, ...], decode: Callable[[Path], np.ndarray] = decode_foreground
) -> Labels:
    if names and len(names) != 2:
        raise UserError(f"masks hold two labels but {len(names)} classes are named: name two")
    return Labels(names or _default_names(2), decode)


def _numbers(names: tuple[str, ...]) -> Labels:
    return Labels(names, partial(decode_mask, num_classes=len(names)), VOID)


def _default_names(num_classes: int) -> tuple[str, ...]:
    if num_classes == 2:
        return ("background", "foreground")
    return ("background", *(f"class_{label}" for label in range(1, num_classes)))


def _find_values(targets: Iterable[Path]) -> tuple[dict[int, Path], bool]:
    """Return {value: first mask with it}, and whether one mask holds a number and ``VOID``."""
    first: dict[int, Path] = {}
    void = False
    for path in targets:
        values = np.unique(decode_mask(path)).tolist()
        void = void or (VOID in values and any(0 < value < 128 for value in values))
        for value in values:
            first.setdefault(value, path)
        if len(first) > MAX_LABELS:
            break
    return first, void


def _find_foreground(values: set[int], void: bool) -> Callable[[Path], np.ndarray] | None:
    """Choose the reader of two-class masks; None where there are more classes, or void."""
    if values <= {0, 1} or (values <= {0, 1, VOID} and not void):
        return decode_foreground
    top = max(values)
    if values != {0, top}:
        return None
    return decode_foreground if 128 <= top <= VOID else partial(decode_two, foreground=top)


def _are_numbers(values: Collection[int]) -> bool:
    """Tell whether values number things from 1 on; greys of soft edges and 0/255 do not.

    Soft edges lie around what is white, or nearly so; hundreds of numbered things need no white.
    """
    numbers = set(values) - {0, VOID}
    top = max(numbers, default=0)
    if top > VOID or (len(numbers) > 2 and max(values) < _WHITE):
        return True
    return _are_low(numbers)


def _are_low(numbers: set[int]) -> bool:
    """Tell whether values, 0 and void left out, are low and dense as class numbers are."""
    top = max(numbers, default=0)
    return 0 < top < 128 and top <= MAX_GAPS * len(numbers | {0})


def _may_be_soft(values: Collection[int]) -> bool:
    """Tell whether masks of two named classes may have soft edges, which reach 128 or more."""
    numbers = {*values} - {0, 1, VOID}
    return bool(numbers) and max(values) >= 128 and not _are_low(numbers)


def _are_soft(
    values: Collection[int],
    targets: Iterable[Path],
    read: Callable[[Path], np.ndarray] = decode_mask,
) -> bool:
    """Tell soft edges from numbers: greys of an edge lie beside brighter ones, numbers rarely."""
    top = max(values)
    if not 128 <= top <= VOID:
        return False
    greys = beside = 0
    for path in targets:
        mask = read(path)
        if mask.dtype == np.uint8:
            grey = (mask > 0) & (mask < top)
            greys += int(grey.sum())
            beside += int((cv2.dilate(mask, np.ones((3, 3), np.uint8)) > mask)[grey].sum())
    return 2 * beside > greys


def _count_classes(first: dict[int, Path]) -> int:
    """Return K of the values 0..K-1; UserError where they are no class numbers."""
    labels = set(first) - {VOID}
    top = max(labels, default=0)
    if len(first) > MAX_LABELS or 1 + top > MAX_GAPS * len(labels or {0}):
        shown = ", ".join(str(value) for value in sorted(first)[:8])
        raise UserError(
            f"masks hold {shown}{', ...' if len(first) > 8 else ''} ({first[top]} holds {top}): "
            "these are no class numbers 0..K-1; renumber them, or name every label in "
            "classes.txt, one a line (just two names: greys from 128 on are foreground); where all "
            "are one class, --source lanes reads them so"
        )
    return max(2, 1 + top)


# Two-class masks stored as JPEG, with blurred edges, are cut in the middle. JPEG changes class
# numbers; black and white it does not. Whether a set is black and white is told by the histogram
# of its greys: two peaks at the ends and none between.
_LOOK_AT = 64  # masks
_ENDS = 56  # greys this near to 0 or 255 are black or white: JPEG's ringing stays below
_MOST_BETWEEN = 0.1  # share of the pixels that edges may have
_PEAK = 0.4  # share of the greys between that one eighth of a dozen neighbours may have
_STRAY = 0.001  # share of all pixels that is no peak, however narrow
_COLOUR = 12  # mean difference of the channels that chroma subsampling does not reach


def is_blurred(path: Path) -> bool:
    """Tell whether a mask is a JPEG, whatever its name says."""
    if path.suffix.lower() == ".npy":
        return False
    try:
        return path.suffix.lower() in JPEG or read_size(read_bytes(path), path)[2] == "jpeg"
    except UserError:
        return False  # whoever decodes it says why


def check_blurred(targets: Sequence[Path]) -> float:
    """Return the share of pixels between black and white in JPEG masks.

    Raises:
        UserError: they hold a third grey, or soft edges everywhere: no black and white.
    """
    counts = np.zeros(256, np.int64)
    for path in targets[:: max(1, len(targets) // _LOOK_AT)]:
        counts += np.bincount(_read_grey(path).ravel(), minlength=256)
    between = counts[_ENDS : 256 - _ENDS]
    share = float(between.sum() / counts.sum())
    near = np.convolve(between, np.ones(8, np.int64), "valid")
    third = near.max() > max(_PEAK * between.sum(), _STRAY * counts.sum())
    if not counts[256 - _ENDS :].any() or share > _MOST_BETWEEN or third:
        grey = int(near.argmax()) + _ENDS + 4 if between.any() else int(np.flatnonzero(counts)[-1])
        raise UserError(
            f"the masks in {targets[0].parent} are JPEG and not black and white alone (many pixels "
            f"are near {grey}): JPEG changes class numbers; export the masks anew as PNG"
        )
    return share


def decode_blurred(path: Path) -> np.ndarray:
    """Read a JPEG mask as labels 0 and 1, 1 from the grey 128 on: (H, W) uint8.

    Raises:
        UserError: it holds colours.
    """
    return (_read_grey(path) >= 128).astype(np.uint8)


def _read_grey(path: Path) -> np.ndarray:
    pixels = decode_image(path)
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    if spread.mean() > _COLOUR:
        raise UserError(f"mask {path} is a JPEG of colours: export the masks anew as PNG")
    return pixels[..., 1]
