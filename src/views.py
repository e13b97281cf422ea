"""Test-time augmentation: views of an image and their exact inverses, in the order they are added.

Flips and quarter turns only, because each has an inverse without resampling. A new line in
``VIEWS`` is all that a new view needs; ``--tta_steps`` counts them. Torch is not imported: the
functions call methods of tensors, and options want the names alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class View:
    """A transform of (..., H, W) tensors; ``invert(apply(x))`` is ``x``."""

    name: str
    apply: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]


VIEWS = (
    View("identity", lambda x: x, lambda x: x),
    View("hflip", lambda x: x.flip(-1), lambda x: x.flip(-1)),
    View("vflip", lambda x: x.flip(-2), lambda x: x.flip(-2)),
    View("both", lambda x: x.flip((-2, -1)), lambda x: x.flip((-2, -1))),
    View("rot90", lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(-1, (-2, -1))),
)
NUM_SCALED = 2  # of them are shown at a larger size too, where --tta_scale asks for it


def view_names(tta_steps: int = len(VIEWS), tta_scale: float = 1.0) -> tuple[str, ...]:
    """Return the names of the first views, then of those at a larger size: ``hflip@1.25``."""
    names = tuple(view.name for view in VIEWS)
    larger = () if tta_scale == 1 else tuple(f"{n}@{tta_scale:g}" for n in names[:NUM_SCALED])
    return (*names[:tta_steps], *larger)


def base_view(name: str) -> str:
    """Return the name of a view without its size."""
    return name.partition("@")[0]


def by_scale(names: Sequence[str]) -> list[tuple[float, tuple[View, ...]]]:
    """Return the views called ``names`` with the scale each run of them is shown at, in order."""
    known = {view.name: view for view in VIEWS}
    parts = [name.partition("@") for name in names]
    scaled = [(float(scale or 1), known[name]) for name, _, scale in parts]
    return [
        (scale, tuple(view for _, view in group))
        for scale, group in itertools.groupby(scaled, key=lambda pair: pair[0])
    ]


def scaled_size(image_size: int, scale: float) -> int:
    """Return the side of the images of a view at ``scale``, a multiple of 8 where it differs."""
    return image_size if scale == 1 else round(image_size * scale / 8) * 8


def first_views(tta_steps: int) -> tuple[View, ...]:
    """Return the first ``tta_steps`` views (1 … all)."""
    assert 1 <= tta_steps <= len(VIEWS), tta_steps
    return VIEWS[:tta_steps]
