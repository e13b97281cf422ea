"""Masks stored in colours: the tables that name them, and their decoding to labels.

Tables: ``labelmap.txt`` of CVAT (``name:r,g,b::``), ``class_dict.csv`` (``name,r,g,b``),
``label_colors.txt`` of CamVid (``r g b name``), ``classes.json`` of Supervisely.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.decode import VOID, decode_image, look_into
from src.data.sources.names import read_lines, read_text
from src.script import UserError

MAX_STRAY = 0.01  # share of pixels in no listed colour that still counts as void
_LOOK_AT, _MOST = 32, 256  # masks whose palettes are compared with others', and all of these
_VOID_NAMES = frozenset({"void", "ignore", "ignored"})
_BACKGROUND = frozenset({"background", "_background_", "bg"})
_LINES = {
    "labelmap.txt": re.compile(r"(?P<name>[^:#]+):(?P<rgb>\d+,\d+,\d+):.*"),
    "label_colors.txt": re.compile(r"(?P<rgb>\d+\s+\d+\s+\d+)\s+(?P<name>.+)"),
    "*class_dict*.csv": re.compile(r"(?P<name>[^,;]+)[,;]\s*(?P<rgb>\d+[,;]\s*\d+[,;]\s*\d+)\s*"),
}


class Colours(NamedTuple):
    """The classes that a table names, background first where it is named, and their decoder.

    Masks that hold numbers count the lines of the table, so that ``of_numbers`` has their order and
    void among them; of two classes background is first there too.
    """

    names: tuple[str, ...]
    decode: ColourDecoder
    of_numbers: tuple[str, ...]


@dataclass(frozen=True)
class ColourDecoder:
    """Read a mask stored in colours: path -> labels (H, W) uint8."""

    table: tuple[tuple[int, ...], ...]  # (red, green, blue, label) of every class, void included
    void: int  # label of the few pixels that have no listed colour
    what: str = "listed"  # whose colours they are, for messages

    def describe(self) -> str:
        """Say what the labels depend on besides the files, for a cache."""
        return repr(self)

    def __call__(self, path: Path) -> np.ndarray:
        """Decode ``path``; UserError if over 1 % of its pixels have no listed colour."""
        codes = _codes(path)
        known = np.array(sorted((r << 16 | g << 8 | b, k) for r, g, b, k in self.table))
        place = np.searchsorted(known[:, 0], codes).clip(max=len(known) - 1)
        stray = known[place, 0] != codes
        if stray.mean() > MAX_STRAY:
            odd = int(codes[stray][0])
            raise UserError(
                f"mask {path}: {stray.mean():.0%} of the pixels have no {self.what} colour, such "
                f"as {odd >> 16},{odd >> 8 & 255},{odd & 255}: add it to the table; masks must be "
                "stored without loss (PNG)"
            )
        return np.where(stray, self.void, known[place, 1]).astype(np.uint8)


def read_colours(root: Path) -> Colours | None:
    """Read the table of colours in ``root``, None where there is none.

    Raises:
        UserError: it is not UTF-8, or two classes have one colour.
    """
    for pattern, form in _LINES.items():
        for path in sorted(root.glob(pattern)):
            found = [match for line in read_lines(path) if (match := form.fullmatch(line))]
            if found:
                numbers = [re.findall(r"\d+", match["rgb"]) for match in found]
                named = [match["name"].strip() for match in found]
                return _to_colours(named, [tuple(map(int, rgb)) for rgb in numbers], path)
    path = root / "classes.json"
    listed = _listed(path)
    colours = [tuple(bytes.fromhex(item["color"][1:])) for item in listed]
    return _to_colours([item["title"] for item in listed], colours, path) if listed else None


def _listed(path: Path) -> list[dict[str, str]]:
    """Return the classes of Supervisely's JSON that have a title and a colour ``#3C1098``."""
    try:
        content = json.loads(read_text(path) or "{}")
        items = content["classes"] if isinstance(content, dict) else []
        return [i for i in items if re.fullmatch("#[0-9A-Fa-f]{6}", i["color"]) and i["title"]]
    except (KeyError, TypeError, ValueError):
        return []  # of another tool


def _to_colours(listed: Sequence[str], colours: Sequence[tuple[int, ...]], path: Path) -> Colours:
    if len(set(colours)) < len(colours):
        twice = next(rgb for rgb in colours if colours.count(rgb) > 1)
        raise UserError(f"{path}: two classes have the colour {twice}: give each its own")
    named = list(zip(listed, colours, strict=True))
    kept = [(name, rgb) for name, rgb in named if name.casefold() not in _VOID_NAMES]
    kept.sort(key=lambda item: item[0].casefold() not in _BACKGROUND)  # stable
    table = [(*rgb, label) for label, (_, rgb) in enumerate(kept)]
    table += [(*rgb, VOID) for name, rgb in named if name.casefold() in _VOID_NAMES]
    decoder = ColourDecoder(tuple(table), VOID, f"{path.name}'s")
    names = tuple(name for name, _ in kept)
    return Colours(names, decoder, names if len(listed) == 2 else tuple(listed))


def find_coloured(targets: Sequence[Path]) -> Path | None:
    """Return the first mask that is not black if it holds colours other than greys, else None."""
    for path in targets:
        kind = look_into(path, _find_kind, "grey")  # whoever decodes it says why
        if kind != "black":
            return path if kind == "coloured" else None
    return None


def _find_kind(image: Any) -> str:
    """Tell black, which says nothing, from greys and colours."""
    if image.mode not in ("RGB", "RGBA"):
        return "black" if image.mode == "L" and image.getextrema() == (0, 0) else "grey"
    pixels = np.asarray(image)[..., :3]
    if not pixels.any():
        return "black"
    return "coloured" if (pixels != pixels[..., :1]).any() else "grey"


def find_odd_palette(targets: Sequence[Path], colours: Colours | None) -> Path | None:
    """Return a mask whose palette has other colours than another's, or the table, at its numbers.

    Tools that make a palette for each picture order its colours as they like: then indices mean
    nothing, and colours count. None where all agree, or a mask has no palette.
    """
    firsts: dict[bytes, Path] = {}
    for path in targets:
        palette = look_into(path, _read_palette, b"")
        if not palette:
            return None
        firsts.setdefault(palette, path)
    said = _name_codes(colours) if colours else {}
    seen: dict[int, int] = {}
    for path in [*firsts.values(), *targets[:: max(1, len(targets) // _LOOK_AT)]][:_MOST]:
        nothing: dict[int, int] = {}
        for index, code in look_into(path, _find_used, nothing).items():
            if seen.setdefault(index, code) != code:
                return path
    named = [said.get(code) for code in seen.values()]
    lines = dict(enumerate(colours.of_numbers if colours else ()))
    other = any(lines.get(index) != name for index, name in zip(seen, named, strict=True))
    return targets[0] if other and all(named) else None


def _name_codes(colours: Colours) -> dict[int, str]:
    """Return {code of a colour: name of its class} of the table, void left out."""
    table = [(r << 16 | g << 8 | b, label) for r, g, b, label in colours.decode.table]
    return {code: colours.names[label] for code, label in table if label != VOID}


def _read_palette(image: Any) -> bytes:
    form, colours = image.palette.getdata() if image.mode == "P" else ("", b"")
    return colours if form == "RGB" else b""


def _find_used(image: Any) -> dict[int, int]:
    """Return {number: code of its colour} of what a mask with a palette holds."""
    colours = _read_palette(image)
    used = [index for _, index in image.getcolors(256) or ()]
    return {n: int.from_bytes(colours[3 * n : 3 * n + 3], "big") for n in used}


def has_alpha(path: Path) -> bool:
    """Tell whether a mask has a transparency that varies."""
    extremes = look_into(path, lambda image: image.getchannel("A").getextrema(), ())
    return len({*extremes}) > 1


def find_one_colour(targets: Sequence[Path]) -> ColourDecoder | None:
    """Return the decoder of masks that hold black and the same one colour, None for others."""
    seen: set[int] = set()
    for path in targets:
        seen |= set(np.unique(_codes(path)).tolist())
        if len(seen - {0}) > 1:
            return None
    code = max(seen, default=0)
    rgb = (code >> 16, code >> 8 & 255, code & 255)
    return ColourDecoder(((0, 0, 0, 0), (*rgb, 1)), VOID) if code else None


def _codes(path: Path) -> np.ndarray:
    image = decode_image(path).astype(np.int32)
    return np.asarray(image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2])
