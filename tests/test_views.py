"""Every view undone is the identity, bit for bit; the order is part of the contract."""

from __future__ import annotations

import pytest
import torch

from src.config import ViewsConfig
from src.views import VIEWS, View, base_view, by_scale, first_views, scaled_size, view_names


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 5, 5)])
def test_a_view_undone_is_the_identity(view: View, shape: tuple[int, ...]) -> None:
    image = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert torch.equal(view.invert(view.apply(image)), image)


def test_views_differ_and_come_in_order() -> None:
    image = torch.arange(9).reshape(1, 3, 3)
    seen = {tuple(view.apply(image).flatten().tolist()) for view in VIEWS}
    assert len(seen) == len(VIEWS)
    assert view_names()[:3] == ("identity", "hflip", "vflip") == view_names(3)
    assert len(view_names()) == ViewsConfig().tta_steps
    assert [view.name for view in first_views(3)] == ["identity", "hflip", "vflip"]
    assert VIEWS[4].apply(image)[0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]


def test_views_at_a_larger_size_are_grouped_by_it() -> None:
    names = view_names(3, 1.25)
    assert names == ("identity", "hflip", "vflip", "identity@1.25", "hflip@1.25")
    assert [base_view(name) for name in names[2:]] == ["vflip", "identity", "hflip"]
    groups = [(scale, [view.name for view in views]) for scale, views in by_scale(names)]
    assert groups == [(1.0, ["identity", "hflip", "vflip"]), (1.25, ["identity", "hflip"])]
    assert (scaled_size(129, 1.0), scaled_size(128, 1.25), scaled_size(100, 1.25)) == (
        129,
        160,
        128,
    )
