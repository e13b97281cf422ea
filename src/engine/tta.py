"""Test-time augmentation: views of an image and their exact inverses, in the order they are added.

Flips and quarter turns only, because each has an inverse without resampling.
"""

from __future__ import annotations

from collections.abc import Callable
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


def first_views(tta_steps: int) -> tuple[View, ...]:
    """Return the first ``tta_steps`` views (1 … 5)."""
    assert 1 <= tta_steps <= len(VIEWS), tta_steps
    return VIEWS[:tta_steps]
