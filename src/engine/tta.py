"""Test-time augmentation: views of an image and their exact inverses, in the order they are added.

Flips and quarter turns only, because each has an inverse without resampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """Return the first ``tta_steps`` views (1 … 5)."""
    assert 1 <= tta_steps <= len(VIEWS), tta_steps
    return VIEWS[:tta_steps]
