"""GeM against hand-worked means, in every layout and at the ends of its range."""

import math
from types import SimpleNamespace

import pytest
import torch

from src.models.classifier import GeM, MeanPool, pool_to_one_cell
from src.script import UserError

NCHW = (2, 3)


@pytest.mark.parametrize("p", [1.5, 3.0, 6.0])
def test_exponent_starts_where_it_is_told(p: float) -> None:
    assert GeM(p).p.item() == pytest.approx(p, rel=1e-6)


def test_exponent_must_be_above_one() -> None:
    with pytest.raises(UserError, match="--gem_p 1"):
        GeM(1.0)


def test_gem_by_hand() -> None:
    features = torch.tensor([1.0, 2.0, 3.0, 0.0]).view(1, 1, 2, 2)
    assert GeM(3.0)(features, NCHW).item() == pytest.approx((36 / 4) ** (1 / 3), rel=1e-5)
    assert GeM(2.0)(features, NCHW).item() == pytest.approx(math.sqrt(14 / 4), rel=1e-5)


def test_signed_gem_by_hand() -> None:
    """Measured from -1, the values are 0, 1 and 3: their cubic mean is (28 / 3)^(1/3)."""
    values = torch.tensor([-1.0, 0.0, 2.0]).view(1, 1, 1, 3)
    pooled = GeM(3.0, signed=True)(values, NCHW)
    assert pooled.item() == pytest.approx((28 / 3) ** (1 / 3) - 1, rel=1e-5)


def test_signed_gem_near_one_is_the_mean() -> None:
    torch.manual_seed(0)
    features = 3.0 * torch.randn(2, 5, 7, 7)
    pooled = GeM(1.0001, signed=True)(features, NCHW)
    torch.testing.assert_close(pooled, features.mean(NCHW, keepdim=True), atol=1e-3, rtol=1e-3)


def test_signed_gem_keeps_the_negative_half() -> None:
    """The plain form gives eps for both maps; the signed one a mean of each."""
    shallow, deep = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), -3.0)
    plain, signed = GeM(3.0), GeM(3.0, signed=True)
    assert torch.equal(plain(shallow, NCHW), plain(deep, NCHW))
    assert signed(shallow, NCHW).item() == pytest.approx(-1.0, abs=1e-5)
    assert signed(deep, NCHW).item() == pytest.approx(-3.0, abs=1e-5)
    deep.requires_grad_()
    signed(deep, NCHW).sum().backward()
    assert (deep.grad > 0.1).all()


@pytest.mark.parametrize("signed", [False, True])
def test_gem_stays_between_the_extremes_and_its_gradient_finite(signed: bool) -> None:
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 30.0, 3e4):
        features = torch.randn(2, 3, 4, 4) * scale
        features = features if signed else features.relu()
        features.requires_grad_()
        pool = GeM(9.0, signed=signed)
        pooled = pool(features, NCHW)[:, :, 0, 0]
        slack = 1e-5 + 1e-5 * scale
        assert (pooled <= features.amax(NCHW) + slack).all()
        assert (pooled >= features.amin(NCHW) - slack).all()
        pooled.sum().backward()
        assert torch.isfinite(features.grad).all()
        assert torch.isfinite(pool.sharpness.grad).all()


def test_gem_of_a_dead_map_has_a_finite_gradient() -> None:
    features = torch.zeros(1, 2, 3, 3, requires_grad=True)
    GeM(3.0)(features, NCHW).sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_is_float32_under_autocast(dtype: torch.dtype) -> None:
    features = torch.full((1, 1, 2, 2), 200.0, dtype=dtype)  # 200^3 is past float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = GeM(3.0)(features, NCHW)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(200.0, rel=1e-5)


def test_the_exponent_learns_and_stays_above_one() -> None:
    pool = GeM(3.0)
    optimizer = torch.optim.SGD(pool.parameters(), lr=5.0)
    features = torch.tensor([1.0, 2.0, 3.0, 0.0]).view(1, 1, 2, 2)
    for _ in range(30):
        optimizer.zero_grad()
        pool(features, NCHW).sum().backward()  # the lowest mean is the plain one
        optimizer.step()
    assert 1.0 <= pool.p.item() < 1.5


@pytest.mark.parametrize("pool", [MeanPool(), GeM(3.0, signed=True)])
def test_three_layouts_give_the_same_cell(pool: torch.nn.Module) -> None:
    torch.manual_seed(0)
    nchw = torch.randn(2, 5, 3, 4)
    expected = pool_to_one_cell(SimpleNamespace(), nchw, pool)[:, :, 0, 0]
    swin = SimpleNamespace(output_fmt="NHWC")
    nhwc = pool_to_one_cell(swin, nchw.permute(0, 2, 3, 1), pool)
    assert nhwc.shape == (2, 1, 1, 5)
    torch.testing.assert_close(nhwc[:, 0, 0], expected)
    tokens = torch.cat([torch.full((2, 2, 5), 99.0), nchw.flatten(2).mT], dim=1)
    cells = pool_to_one_cell(SimpleNamespace(num_prefix_tokens=2), tokens, pool)
    assert cells.shape == (2, 3, 5)  # class tokens are not pooled, but replaced
    for token in range(3):
        torch.testing.assert_close(cells[:, token], expected)


@pytest.mark.parametrize("signed", [False, True])
def test_gem_is_one_graph_for_any_number_of_rows(signed: bool) -> None:
    """With fullgraph a break is an error; the eager backend needs no compiler."""
    pool = GeM(3.0, signed=signed)
    compiled = torch.compile(pool, backend="eager", fullgraph=True)
    for rows in (4, 3, 2):
        features = torch.rand(rows, 5, 2, 3)
        assert torch.equal(compiled(features, (2, 3)), pool(features, (2, 3)))
