"""Matching of masks to images by file name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.data.sources.masks import JPEG, MASK_SUFFIXES, note_missing
from src.script import UserError

_MASK_WORD = "masks?|labels?|seg|segmentation|gt|annotation|gtFine_labelIds|gtFine_labelTrainIds"
_WORD = f"image|img|rgb|sat|leftImg8bit|{_MASK_WORD}"
_AFFIX = re.compile(rf"^(?:{_WORD})[-_. ]+|[-_. ]+(?:{_WORD})$", re.IGNORECASE)
_MASK_AFFIX = re.compile(rf"^(?:{_MASK_WORD})[-_. ]+|[-_. ]+(?:{_MASK_WORD})$", re.IGNORECASE)


def match_masks(
    images: Mapping[str, Path], masks: Mapping[str, Path], notes: list[str]
) -> dict[str, Path]:
    """Give every mask the id of its image, where that is found.

    An equal id counts first; then an id that is equal in any case and without words such as in
    ``7_mask`` or ``img_7``.

    Args:
        images: {id: path}.
        masks: {id: path}.
        notes: receives what was matched by the second rule.

    Returns:
        {id: path of the mask}; a mask without an image keeps its own id.

    Raises:
        UserError: two masks for one image, or no mask has an image at all.
    """
    lone = [(_strip(name).casefold(), name) for name in images if name not in masks]
    count = Counter(name for name, _ in lone)
    bare = {name: image for name, image in lone if count[name] == 1}
    found: dict[str, Path] = {}
    renamed: list[str] = []
    for name, path in masks.items():
        image = name if name in images else bare.get(_strip(name).casefold(), name)
        if image in found:
            raise UserError(f"{found[image]} and {path} are two masks of {image}: remove one")
        found[image] = path
        if image != name:
            renamed.append(f"{path.name} of {images[image].name}")
    note_missing(notes, "masks matched by their names without words such as mask", renamed)
    if images and masks and not any(name in images for name in found):
        raise UserError(
            f"no mask has the name of an image, as {next(iter(images.values()))} and "
            f"{next(iter(masks.values()))} show: a mask has its image's name up to the ending"
        )
    return found


def part_masks(files: Sequence[Path], *, twins: bool) -> set[Path]:
    """Return the masks among files that lie beside their images: ``7_mask.png`` of ``7.jpg``.

    Args:
        files: images and masks.
        twins: whether ``7.png`` is the mask of ``7.jpg``, too.
    """
    worded = {path for path in files if _strip(path.stem, _MASK_AFFIX) != path.stem}
    bare = {(path.parent, _strip(path.stem)) for path in files if path not in worded}
    blurred = {path.with_suffix("") for path in files if path.suffix.lower() in JPEG}
    found = {path for path in worded if (path.parent, _strip(path.stem)) in bare}
    found |= {path for path in files if twins and path.with_suffix("") in blurred}
    return {path for path in found if path.suffix.lower() in MASK_SUFFIXES}


def _strip(name: str, affix: re.Pattern[str] = _AFFIX) -> str:
    """Take such words off either end of the last part of an id."""
    folder, slash, stem = name.rpartition("/")
    return folder + slash + (affix.sub("", stem) or stem)
