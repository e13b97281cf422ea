"""Groups of neighbouring video frames, told by their names, so that they share a fold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.data.sources.masks import Row

BLOCK = 50  # neighbouring frames of one group, at most
LEAST_SERIES = 10  # from so many on, names of numbered series are taken for slices of subjects
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


def group_neighbours(
    names: Iterable[str], *, max_gap: int = 1, block: int = BLOCK
) -> dict[str, str]:
    """Group frames by the text before their last number, cut where that number jumps.

    Numbers that differ by more than ``max_gap`` are no neighbours. Longer runs are cut into equal
    parts of at most ``block`` frames, since one endless drive could not be folded; each such cut
    parts two neighbours, and a large block keeps that rare. Return {name: group}; a name without a
    number is a group of its own.
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


def group_rows(rows: Sequence[Row], *, max_gap: int = 1) -> list[Row]:
    """Give rows the groups of :func:`group_neighbours`.

    Where two splits use the same names, frames of different splits are no neighbours.
    """
    names = [row.id for row in rows]
    if len(set(names)) < len(names):
        names = [f"{row.split}/{row.id}" for row in rows]
    groups = group_neighbours(names, max_gap=max_gap)
    return [row._replace(group=groups[name]) for row, name in zip(rows, names, strict=True)]


def cut_finer(names: Sequence[str], groups: Sequence[str], least: int) -> tuple[list[str], int]:
    """Cut groups of neighbouring frames into smaller blocks, where they are too few to fold.

    The blocks are as large as they can be. A sequence that has a name of its own among others and
    one group is left whole. Return the groups of each frame and the size of the largest; the same
    groups and 0 where they are ``least`` or more, or where no block would be small enough.
    """
    if len(set(groups)) >= least:
        return list(groups), 0
    series: dict[str, set[str]] = {}
    members: dict[str, list[str]] = {}
    for name, group in sorted(zip(names, groups, strict=True), key=lambda i: natural_key(i[0])):
        series.setdefault(split_number(name)[0], set()).add(group)
        members.setdefault(group, []).append(name)
    whole = {min(of) for of in series.values() if len(of) == 1 and len(series) > 1}
    for block in range(max(map(len, members.values())) - 1, 0, -1):
        parts: dict[str, str] = {}
        for group, frames in members.items():
            parts |= _cut_into_blocks(frames, len(frames) if group in whole else block)
        if len(set(parts.values())) >= least:
            return [parts[name] for name in names], max(Counter(parts.values()).values())
    return list(groups), 0


def find_series(names: Sequence[str]) -> list[str]:
    """Tell slices of a patient, tiles of a scene, views of a car by their names.

    A series is what differs in the last number alone and has a number before it, as in
    "case012_slice3". Names are of series where there are ten or more of them and none has more than
    a fifth of the names; years, as in "2007_000032", are fewer. Return the series of each name, ""
    for none.
    """
    before = [split_number(name)[0] for name in names]
    count = Counter(text for text in before if _DIGITS.search(text))
    series = {text: size for text, size in count.items() if size > 1}
    if len(series) < LEAST_SERIES or 5 * max(series.values()) > len(names):
        return [""] * len(names)
    return [text if text in series else "" for text in before]


def group_clips(names: Iterable[str], *, block: int = BLOCK) -> dict[str, str]:
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
