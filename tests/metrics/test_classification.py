"""Log loss, temperature and the meter, against numbers worked out by hand or by other means."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score

from src.metrics.classification import (
    ClassificationMeter,
    fit_temperature,
    log_loss,
    macro_f1,
    softmax,
)


def noisy_logits(num_rows: int = 500, num_classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, num_classes, num_rows)
    logits = rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), targets] += rng.normal(2, 1, num_rows)
    return logits, targets


def test_softmax_by_hand_and_without_overflow() -> None:
    probs = softmax(np.array([[0.0, math.log(3.0)], [60000.0, -60000.0]], dtype=np.float16))
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs, [[0.25, 0.75], [1.0, 0.0]], atol=1e-3)
    np.testing.assert_allclose(
        softmax(np.array([0.0, 2 * math.log(3.0)]), temperature=2.0), [0.25, 0.75]
    )


def test_softmax_leaves_its_input_alone() -> None:
    logits = np.array([[1.0, 2.0]])
    softmax(logits)
    np.testing.assert_array_equal(logits, [[1.0, 2.0]])


def test_log_loss_by_hand() -> None:
    probs = np.array([[0.5, 0.5], [0.25, 0.75]])
    expected = (math.log(2) + math.log(4)) / 2
    assert log_loss(probs, np.array([0, 0])) == pytest.approx(expected, rel=1e-12)


def test_log_loss_divides_by_the_row_sum() -> None:
    assert log_loss(np.array([[0.2, 0.2]]), np.array([0])) == pytest.approx(math.log(2))


def test_log_loss_clips_a_certain_mistake_at_34_nats() -> None:
    for dtype in (np.float32, np.float64):
        loss = log_loss(np.array([[1.0, 0.0]], dtype=dtype), np.array([1]))
        assert loss == pytest.approx(-math.log(1e-15), rel=1e-9)  # 34.54


def test_log_loss_agrees_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = noisy_logits()
    whole = log_loss(softmax(logits), targets), fit_temperature(logits, targets)
    monkeypatch.setattr("src.metrics.classification._BLOCK_VALUES", 50)
    blocks = log_loss(softmax(logits), targets), fit_temperature(logits, targets)
    assert blocks == pytest.approx(whole, rel=1e-9)


def test_log_loss_refuses_a_target_that_is_no_class() -> None:
    with pytest.raises(AssertionError, match="class number"):
        log_loss(np.full((1, 2), 0.5), np.array([-1]))


def test_temperature_by_hand() -> None:
    """Right 3 times in 4 with a margin of 4: the best margin is log 3, so T = 4 / log 3."""
    logits = np.tile([4.0, 0.0], (4, 1))
    temperature = fit_temperature(logits, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(4 / math.log(3), rel=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_temperature_agrees_with_a_black_box_search(scale: float) -> None:
    logits, targets = noisy_logits()
    found = minimize_scalar(
        lambda t: log_loss(softmax(logits * scale, t), targets),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    ).x
    assert fit_temperature(logits * scale, targets) == pytest.approx(found, rel=1e-4)


def test_temperature_stops_at_its_bounds() -> None:
    logits = np.eye(3) * 5
    assert fit_temperature(logits, np.array([0, 1, 2])) == pytest.approx(0.05)
    assert fit_temperature(logits, np.array([1, 2, 0])) == pytest.approx(20)


def test_a_belief_of_one_row_tames_a_perfect_score() -> None:
    """Three rows, margin m, all right: 3 m / (1 + e^(b m)) = 1 - 1 / b at the optimum."""
    logits = np.eye(3)[:, :2][[0, 1, 0]] * 4.0
    beta = 1 / fit_temperature(logits, np.array([0, 1, 0]), prior=1.0)
    assert 3 * 4 / (1 + math.exp(4 * beta)) == pytest.approx(1 - 1 / beta, abs=1e-6)
    assert 1 < beta < 1.3


def test_temperature_of_log_probabilities_with_zeros_and_of_nan() -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[1.0, 0.0], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]]))
    targets = np.array([0, 0, 0, 1])
    assert fit_temperature(logits, targets) == pytest.approx(math.log(3) / math.log(2), rel=1e-5)
    assert fit_temperature(np.full((2, 2), np.nan), np.array([0, 1])) == 1.0


def test_macro_f1_is_that_of_scikit_learn() -> None:
    logits, targets = noisy_logits(60, 4)
    predicted = logits.argmax(1)
    expected = f1_score(targets, predicted, average="macro")
    assert macro_f1(predicted, targets, 9) == pytest.approx(expected)  # 5 classes never occur
    assert macro_f1(np.array([0, 0]), np.array([0, 1]), 2) == pytest.approx((2 / 3 + 0) / 2)


def test_meter_counts_rows_not_batches() -> None:
    logits, targets = noisy_logits(30)
    meter = ClassificationMeter(7)
    for rows in (slice(0, 23), slice(23, 30)):
        batch = {"target": torch.from_numpy(targets[rows])}
        meter.update(torch.from_numpy(logits[rows]).float().requires_grad_(), batch)
    result = meter.compute()
    assert result["log_loss"] == pytest.approx(log_loss(softmax(logits), targets), rel=1e-6)
    assert result["accuracy"] == np.mean(logits.argmax(1) == targets)
    assert result["temperature"] == pytest.approx(
        fit_temperature(logits, targets, prior=1.0), rel=1e-5
    )
    calibrated = log_loss(softmax(logits, result["temperature"]), targets)
    assert result["calibrated_log_loss"] == pytest.approx(calibrated, rel=1e-6)
    assert result["calibrated_log_loss"] <= result["log_loss"]
    assert all(type(value) is float for value in result.values())


def test_meter_takes_bfloat16_and_refuses_a_wrong_width() -> None:
    meter = ClassificationMeter(2)
    meter.update(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), {"target": torch.tensor([0])})
    assert meter.compute()["accuracy"] == 1.0
    with pytest.raises(AssertionError):
        meter.update(torch.zeros(1, 3), {"target": torch.tensor([0])})
