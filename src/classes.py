"""Class names: Unicode normal form, aliases and their merging, several labels an image.

Two names for one thing cannot be told apart, so each of its images costs about ln 2 nats however
good the model. Merged, they cost nothing.

Several labels an image are one text in tables, joined by ``|``; "" is an image without any. They
are blended as pairs: a sigmoid of a logit z is the softmax of (0, z), so N images with K labels are
N · K rows, image by image, of the two classes absent and present. Their mean log loss is the mean
binary cross-entropy, and what pools and calibrates distributions over classes takes them as is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")


def is_number(text: str) -> bool:
    """Tell whether text is a number, with or without a fraction or an exponent."""
    return _NUMBER.fullmatch(text) is not None


@dataclass(frozen=True)
class Aliases:
    """Which class is trained under which name.

    ``classes`` are all K names; ``trained`` the T <= K names that remain, in the same order;
    ``trained_of`` (K,) gives for each class its position in ``trained``.
    ``outside`` are names that no image has, such as a column of the sample submission, each with
    the position of the class that it stands for.
    """

    classes: tuple[str, ...]
    trained: tuple[str, ...]
    trained_of: tuple[int, ...]
    outside: tuple[tuple[str, int], ...] = ()

    def targets(self, names: Iterable[str]) -> np.ndarray:
        """Return the trained class index (N,) int64 of class names."""
        index = dict(zip(self.classes, self.trained_of, strict=True))
        return np.array([index[name] for name in names], np.int64)

    def members(self) -> tuple[tuple[str, ...], ...]:
        """Return for each trained class the names it stands for, its own first."""
        return tuple(
            (name, *(c for c, t in (*zip(self.classes, self.trained_of, strict=True), *self.outside)
                     if t == place and c != name))
            for place, name in enumerate(self.trained)
        )  # fmt: skip


def nfc(text: str) -> str:
    """Return ``text`` in Unicode normal form C (macOS stores file names decomposed)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def join_groups(groups: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the connected groups of names, in NFC, each in order of first appearance."""
    named = [[nfc(name) for name in group] for group in groups]
    leader = {name: name for group in named for name in group}
    met = {name: place for place, name in enumerate(leader)}
    for group in named:
        leaders = {leader[name] for name in group}
        keep = min(leaders, key=met.__getitem__, default="")
        leader = {name: keep if own in leaders else own for name, own in leader.items()}
    joined: dict[str, list[str]] = {}
    for name, own in leader.items():
        joined.setdefault(own, []).append(name)
    return [tuple(names) for names in joined.values()]


def merge_classes(classes: Sequence[str], groups: Iterable[Sequence[str]]) -> Aliases:
    """Merge the classes that alias groups name; the name met first leads its group.

    ``classes`` are K names, compared in NFC. Names of a group that are no class merge nothing.
    """
    own_name = {nfc(name): name for name in classes}
    joined = join_groups(groups)
    leader: dict[str, str] = {}
    for group in joined:
        present = [own_name[name] for name in group if name in own_name]
        leader |= dict.fromkeys(present, next(iter(present), ""))
    trained = tuple(name for name in classes if leader.get(name, name) == name)
    place = {name: number for number, name in enumerate(trained)}
    outside = (
        (name, place[leader[own_name[met]]])
        for group in joined
        if (met := next((name for name in group if name in own_name), None))
        for name in group
        if name not in own_name
    )
    return Aliases(
        tuple(classes),
        trained,
        tuple(place[leader.get(name, name)] for name in classes),
        tuple(outside),
    )


def split_lines(
    keys: Sequence[str], ids: Sequence[str]
) -> tuple[list[str], list[tuple[int, int]]] | None:
    """Split the first cells of a long table (``id_class``, one line for each image and class).

    A key is one of ``ids``, a separator (``_ - : |`` or a blank) and a class's name, or the name
    first. Return the names, and for each line its id's and its name's number; None unless each id
    that occurs has each of two or more names once.
    """
    place = {key: row for row, key in enumerate(ids)}
    names: dict[str, int] = {}
    pairs = []
    for key in keys:
        split = _split_key(key, place) if key not in place else None
        if split is None:
            return None
        pairs.append((place[split[0]], names.setdefault(split[1], len(names))))
    count = len({row for row, _ in pairs}) * len(names)
    whole = len(names) > 1 and len(set(pairs)) == len(pairs) == count
    return (list(names), pairs) if whole else None


def _split_key(key: str, ids: Mapping[str, int]) -> tuple[str, str] | None:
    """Split a key at the last separator that leaves a known id, before it or else behind it."""
    places = [(match.start(), match.end()) for match in re.finditer(r"[_\-:| ]", key)]
    for start, end in reversed(places):
        if key[:start] in ids and end < len(key):
            return key[:start], key[end:]
    return next(((key[end:], key[:start]) for start, end in places if key[end:] in ids), None)


STATES = ("absent", "present")
SEPARATOR = "|"


def to_hot(targets: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return (N, K) int64, 1 where an image has the label, of N joined texts.

    Names that are none of the K ``labels`` are passed over.
    """
    place = {name: k for k, name in enumerate(labels)}
    hot = np.zeros((len(targets), len(labels)), np.int64)
    for row, text in enumerate(targets):
        for name in text.split(SEPARATOR):
            if name in place:
                hot[row, place[name]] = 1
    return hot


class PairedLogits:
    """Logits (V, N, K) of labels, read as those of pairs, (V, N · K, 2); nothing is copied."""

    def __init__(self, logits: Any) -> None:
        """Take an array or memory map."""
        self.logits = logits

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, N · K, 2)."""
        views, rows, labels = self.logits.shape
        return views, rows * labels, 2

    def __getitem__(self, key: tuple[int, Any]) -> np.ndarray:
        """Return (R, 2) float32 of (view, rows), rows a slice or numbers (R,)."""
        view, rows = key
        num_labels = self.logits.shape[2]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[1]))
        present = np.asarray(
            self.logits[view][rows // num_labels, rows % num_labels], dtype=np.float32
        )
        return np.stack([np.zeros_like(present), present], axis=-1)
