"""The losses against hand-worked values, torch's own and an independent float64 root search."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F

from src.losses.classification import (
    LOSSES,
    bi_tempered,
    build_loss,
    focal,
    soft_targets,
    tempered_softmax,
)
from src.script import UserError

LOGITS = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])  # p = (1/4, 3/4), (4/5, 1/5)


def test_soft_targets_by_hand() -> None:
    soft = soft_targets(torch.tensor([1]), 4, label_smoothing=0.2)
    torch.testing.assert_close(soft, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
    mixed = soft_targets(torch.tensor([[0.7, 0.3]]), 2, label_smoothing=0.1)
    torch.testing.assert_close(mixed, torch.tensor([[0.68, 0.32]]))


def test_cross_entropy_by_hand() -> None:
    loss = build_loss("cross_entropy")
    assert loss(LOGITS, torch.tensor([0, 0])).item() == pytest.approx(
        (math.log(4) + math.log(5 / 4)) / 2
    )
    half = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    expected = (math.log(4) + math.log(4 / 3) + math.log(5 / 4) + math.log(5)) / 4
    assert loss(LOGITS, half).item() == pytest.approx(expected)


def test_cross_entropy_agrees_with_torch() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 1])
    ours = build_loss("cross_entropy")(logits, target)
    torch.testing.assert_close(ours, F.cross_entropy(logits, target))
    smooth = build_loss("cross_entropy", label_smoothing=0.1)(logits, target)
    torch.testing.assert_close(smooth, F.cross_entropy(logits, target, label_smoothing=0.1))


def test_focal_by_hand() -> None:
    loss = build_loss("focal(gamma=2)")
    expected = ((3 / 4) ** 2 * math.log(4) + (1 / 5) ** 2 * math.log(5 / 4)) / 2
    assert loss(LOGITS, torch.tensor([0, 0])).item() == pytest.approx(expected)
    soft = focal(LOGITS[:1], torch.tensor([[0.5, 0.5]]), 1.0)
    assert soft.item() == pytest.approx((3 / 4 * math.log(4) + 1 / 4 * math.log(4 / 3)) / 2)


def test_focal_without_gamma_is_cross_entropy() -> None:
    target = torch.tensor([0, 1])
    ours = build_loss("focal(gamma=0)")(LOGITS, target)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, target))


def independent_tempered_softmax(activations: np.ndarray, t: float) -> np.ndarray:
    """Normalise one row in float64 with a root search instead of the paper's iteration."""

    def exp_t(x: np.ndarray) -> np.ndarray:
        return np.maximum(1 + (1 - t) * x, 0) ** (1 / (1 - t))

    shifted = activations - activations.max()
    root = brentq(lambda shift: exp_t(shifted - shift).sum() - 1, 0, 1e4, xtol=1e-13)
    return exp_t(shifted - root)


def independent_bi_tempered(activations: np.ndarray, y: np.ndarray, t1: float, t2: float) -> float:
    """The integral form of the loss: sum_k of the area between log_t1 y_k and log_t1 p_k."""
    p = independent_tempered_softmax(activations, t2)
    total = 0.0
    for y_k, p_k in zip(y, p, strict=True):
        edges = np.linspace(p_k, y_k, 200_001)
        x = (edges[1:] + edges[:-1]) / 2

        def log_t(v: np.ndarray | float) -> np.ndarray:
            return (np.asarray(v) ** (1 - t1) - 1) / (1 - t1)

        total += float(np.sum((log_t(x) - log_t(p_k)) * np.diff(edges)))
    return total


@pytest.mark.parametrize("t", [1.1, 1.5, 2.0, 4.0])
def test_tempered_softmax_agrees_with_a_root_search(t: float) -> None:
    activations = np.array([1.5, -0.4, 0.0, -3.0, 1.2])
    found = tempered_softmax(torch.tensor(activations)[None].float(), t)[0]
    np.testing.assert_allclose(found, independent_tempered_softmax(activations, t), atol=2e-6)


def test_tempered_softmax_by_hand() -> None:
    """t = 2: p_k = 1 / (1 + L - a_k); for a = (0, -3/2) and L = 1/2 it is (2/3, 1/3)."""
    found = tempered_softmax(torch.tensor([[0.0, -1.5]]), 2.0)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3]]))


@pytest.mark.parametrize("t", [1.05, 1.2, 1.5, 2.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 60.0])
def test_rows_are_normalised_at_396_classes(t: float, scale: float) -> None:
    torch.manual_seed(0)
    activations = (torch.randn(8, 396) * scale).requires_grad_()
    probs = tempered_softmax(activations, t)
    exact = independent_tempered_softmax(activations.detach()[0].double().numpy(), t)
    np.testing.assert_allclose(probs[0].detach(), exact, atol=1e-5, rtol=3e-3)


def test_bi_tempered_by_hand() -> None:
    """t1 = 0, t2 = 2, p = (2/3, 1/3), y = (1, 0): log_0 x = x - 1, so it is sum (y - p)^2 / 2."""
    loss = bi_tempered(torch.tensor([[0.0, -1.5]]), torch.tensor([[1.0, 0.0]]), 0.0, 2.0)
    assert loss.item() == pytest.approx((1 / 9 + 1 / 9) / 2, rel=1e-5)


@pytest.mark.parametrize(("t1", "t2"), [(0.8, 1.2), (0.2, 4.0), (0.5, 1.5), (0.9, 1.1)])
@pytest.mark.parametrize("y", [[0.0, 1.0, 0.0], [0.2, 0.5, 0.3]])
def test_bi_tempered_agrees_with_its_integral(t1: float, t2: float, y: list[float]) -> None:
    activations = np.array([0.3, -0.2, 0.6])
    ours = bi_tempered(torch.tensor(activations)[None].float(), torch.tensor([y]), t1, t2).item()
    expected = independent_bi_tempered(activations, np.array(y), t1, t2)
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_bi_tempered_at_one_is_cross_entropy_less_the_entropy_of_the_target() -> None:
    hard = torch.tensor([1, 0])
    ours = build_loss("bi_tempered(t1=1, t2=1)")(LOGITS, hard)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, hard))
    near = build_loss("bi_tempered(t1=0.999, t2=1.001)")(LOGITS, hard)
    assert near.item() == pytest.approx(ours.item(), abs=5e-3)


def test_bi_tempered_bounds_an_outlier() -> None:
    loss = build_loss("bi_tempered(t1=0.5)")
    far = torch.tensor([[1e4, 0.0]])
    # p -> 0 for the true class: the loss tends to 1 / (1 - t1) = 2 and more cannot be lost.
    assert loss(far, torch.tensor([1])).item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("t", [1.3, 2.0])
def test_tempered_gradient_is_that_of_finite_differences(t: float) -> None:
    torch.manual_seed(1)
    activations = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        (tempered_softmax(activations, t) * weights).sum(), activations
    )
    values = activations.detach().numpy()
    for row, column in ((0, 0), (0, 3), (1, 2)):
        sides = []
        for step in (1e-5, -1e-5):
            moved = values[row].copy()
            moved[column] += step
            sides.append(independent_tempered_softmax(moved, t) @ weights.numpy())
        assert gradient[row, column].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-5)


EXTREME = [f"bi_tempered(t1={t1}, t2={t2})" for t1, t2 in ((1, 1), (0.8, 1.2), (1, 2))]


@pytest.mark.parametrize("spec", [*LOSSES, "focal(gamma=0.5)", *EXTREME])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_keep_loss_and_gradient_finite(spec: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = build_loss(spec)(logits, torch.tensor([1, 2]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.eye(4, dtype=torch.float64)[[0, 2, 3]] * 0.9 + 0.025
    # normalising a tempered softmax stops at the float32 precision that training needs
    how = {"eps": 1e-4, "atol": 1e-4} if name == "bi_tempered" else {}
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target).sum(), logits, **how)


def test_a_weighted_sum_adds_up() -> None:
    target = torch.tensor([0, 1])
    both = build_loss("cross_entropy + 0.5 focal(gamma=3)", label_smoothing=0.1)(LOGITS, target)
    parts = [
        build_loss(spec, label_smoothing=0.1)(LOGITS, target).item()
        for spec in ("cross_entropy", "focal(gamma=3)")
    ]
    assert both.item() == pytest.approx(parts[0] + 0.5 * parts[1])


def test_a_step_down_the_gradient_lowers_every_loss() -> None:
    torch.manual_seed(0)
    target = torch.tensor([0, 1, 2, 3])
    for name in LOSSES:
        logits = torch.randn(4, 5, requires_grad=True)
        loss = build_loss(name, label_smoothing=0.1)
        loss(logits, target).backward()
        assert loss(logits - 0.5 * logits.grad, target) < loss(logits, target)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cross_entropie", r"--loss: 'cross_entropie' is unknown \(did you mean cross_entropy\?\)"),
        ("focal(gamma=-1)", "--loss: focal: gamma -1: at least 0, at most 100"),
        ("bi_tempered(t1=1.5)", "t1 1.5: at least 0, at most 1"),
        ("bi_tempered(t2=0.5)", "t2 0.5: at least 1, at most 10"),
        ("cross_entropy(gamma=1)", "cross_entropy has no option 'gamma'; it has none"),
    ],
)
def test_bad_values_are_named(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_loss(spec)
