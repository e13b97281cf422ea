"""Names of video frames in, groups of neighbours out: near-identical frames share a fold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

_DIGITS = re.compile(r"(\d+)")
# What Roboflow and Cityscapes write after the frame's number.
_EXPORTED = re.compile(r"(_(jpe?g|png|bmp))?\.rf\.[0-9a-fA-F]+$|_leftImg8bit$")


def split_number(name: str) -> tuple[str, int]:
    """Split "drive_0123" into ("drive_", 123) at its last number; without one it is -1."""
    name = _EXPORTED.sub("", name)
    digits = _DIGITS.findall(name)
    if not digits:
        return name, -1
    return name[: name.rindex(digits[-1])], int(digits[-1])


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which "clip9" comes before "clip10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def group_neighbours(names: Iterable[str], *, max_gap: int = 1, block: int = 50) -> dict[str, str]:
    """Group frames by the text before their last number, cut where that number jumps.

    Args:
        names: frame ids, in any order.
        max_gap: numbers that differ by more than this are no neighbours.
        block: longer runs are cut into equal parts of at most so many frames, since one endless
            drive could not be folded. Each such cut parts two neighbours; a large block keeps
            that rare.

    Returns:
        {name: group}; a name without a number is a group of its own.
    """
    series: dict[str, list[tuple[int, str]]] = {}
    groups: dict[str, str] = {}
    for name in names:
        prefix, number = split_number(name)
        if number < 0:
            groups[name] = name
        else:
            series.setdefault(prefix, []).append((number, name))
    for frames in series.values():
        for run in _cut_at_jumps(sorted(frames), max_gap):
            groups |= _cut_into_blocks([name for _, name in run], block)
    return groups


def group_clips(names: Iterable[str], *, block: int = 50) -> dict[str, str]:
    """Group "drive/clip" names: the clips of a drive in natural order, in blocks as above."""
    drives: dict[str, list[str]] = {}
    for name in names:
        drives.setdefault(name.rpartition("/")[0], []).append(name)
    groups: dict[str, str] = {}
    for clips in drives.values():
        groups |= _cut_into_blocks(sorted(clips, key=natural_key), block)
    return groups


def _cut_at_jumps(frames: Sequence[tuple[int, str]], max_gap: int) -> list[list[tuple[int, str]]]:
    runs = [[frames[0]]]
    for before, after in pairwise(frames):
        if after[0] - before[0] > max_gap:
            runs.append([])
        runs[-1].append(after)
    return runs


def _cut_into_blocks(run: list[str], block: int) -> dict[str, str]:
    """Name each of the equal parts of ``run`` by its first member."""
    num_parts = -(-len(run) // block)
    cuts = [part * len(run) // num_parts for part in range(num_parts + 1)]
    return {name: run[start] for start, end in pairwise(cuts) for name in run[start:end]}
