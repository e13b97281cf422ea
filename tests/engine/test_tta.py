"""Every view undone is the identity, bit for bit; the order is part of the contract."""

from __future__ import annotations

import pytest
import torch

import src.config
from src.engine.tta import VIEWS, View, first_views


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 5, 5)])
def test_a_view_undone_is_the_identity(view: View, shape: tuple[int, ...]) -> None:
    image = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert torch.equal(view.invert(view.apply(image)), image)


def test_views_differ_and_come_in_order() -> None:
    image = torch.arange(9).reshape(1, 3, 3)
    seen = {tuple(view.apply(image).flatten().tolist()) for view in VIEWS}
    assert len(seen) == 5
    assert tuple(view.name for view in VIEWS) == src.config.VIEWS
    assert [view.name for view in first_views(3)] == ["identity", "hflip", "vflip"]
    assert VIEWS[4].apply(image)[0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
