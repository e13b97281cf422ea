from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from src.ensemble.blend import build_tables
from src.ensemble.calibration import Estimate
from src.ensemble.contest import (
    adopt,
    blend_greedily,
    blend_structure,
    build_board,
    choose,
    find_candidates,
    forecast_score,
    judge,
    score_of,
)
from src.ensemble.oof import load_oof
from src.ensemble.search import full_structure
from src.metrics.contest import find_metric


def make_board(world, name, models=("a", "b")):
    for model, signal in zip(models, (2.0, 1.5), strict=True):
        world.save(model, world.logits(signal=signal))
    oof = load_oof(world.root, world.table)
    return build_board(find_metric(name, [str(k) for k in range(4)]), oof, build_tables(oof))


@pytest.mark.parametrize(
    "name", ["accuracy", "balanced_accuracy", "macro_f1", "qwk", "auc", "map@2"]
)
def test_every_metric_finds_a_blend(make_world, name) -> None:
    board = make_board(make_world(num_rows=120), name)
    candidates = find_candidates(board, trials=4, seed=0)
    adopted, score = adopt(board, candidates)
    assert (
        adopted.blend.weights.sum() == pytest.approx(1.0, abs=1e-6) or adopted.blend.pool == "log"
    )
    assert score.low < score.value <= score.high <= 1.0
    # what is adopted is fitted on all rows and predicts what it says
    submitted = adopted.decision.apply(board.predict(adopted.blend))
    assert board.metric.measure(submitted, board.targets) == pytest.approx(adopted.fitted)
    assert adopted.fitted > 0.5
    np.testing.assert_allclose(np.exp(adopted.nested).sum(axis=1), 1, rtol=1e-3)
    again, again_score = adopt(board, find_candidates(board, trials=4, seed=0))
    assert again.name == adopted.name and again_score == score


def test_nothing_of_a_part_reaches_its_own_submission(make_world) -> None:
    """With the labels of one part shuffled, what is submitted for that part stays the same."""
    world = make_world(num_rows=120)
    board = make_board(world, "balanced_accuracy")
    recipe = lambda board: lambda keep: blend_greedily(board, keep)  # noqa: E731
    before = judge(board, "greedy", recipe(board)).submitted
    part = board.parts == 0
    board.oof.targets[part] = world.rng.permutation(board.oof.targets[part])
    shuffled = build_board(board.metric, board.oof, board.tables)
    after = judge(shuffled, "greedy", recipe(shuffled)).submitted
    np.testing.assert_array_equal(after[part], before[part])
    assert (after != before).any() or len(set(before.tolist())) == 1


def test_greedy_goes_beyond_the_convex_weights_while_the_metric_gains(make_world) -> None:
    world = make_world(num_rows=300, seed=1)
    for model, signal in (("soft", 1.0), ("third", 1.3)):
        world.save(model, world.logits(signal=signal))
    sure = world.logits(signal=2.5)  # right more often than they, but hopelessly sure
    sure[..., 0] += 30.0 * (world.rng.random(sure.shape[1]) < 0.12)
    world.save("sure", sure * 8)
    oof = load_oof(world.root, world.table)
    board = build_board(find_metric("accuracy", list("0123")), oof, build_tables(oof))
    everything = np.ones(len(board.rows), dtype=bool)
    greedy = blend_greedily(board, everything)
    convex = blend_structure(board, full_structure(oof.members), everything)

    def accuracy(blend) -> float:
        return float(np.mean(board.predict(blend).argmax(axis=1) == board.targets))

    assert accuracy(greedy) > accuracy(convex) + 0.015
    rises = greedy.weights > convex.weights + 0.02
    assert greedy.weights.sum() == pytest.approx(1.0) and rises.sum() >= 2


def test_a_choice_among_noise_is_not_flattered() -> None:
    """The best of fifty guesses scores above one half; the cross-fitted choice does not."""
    rng = np.random.default_rng(0)
    metric, found, best = find_metric("accuracy", "ab"), [], []
    for _ in range(12):
        targets = rng.integers(0, 2, 120)
        guesses = [rng.integers(0, 2, 120) for _ in range(50)]
        board = SimpleNamespace(metric=metric, targets=targets, parts=np.arange(120) % 4)
        adopted, score = adopt(board, [SimpleNamespace(submitted=guess) for guess in guesses])
        found.append(score.value)
        best.append(metric.measure(adopted.submitted, targets))
    assert np.mean(best) > 0.57
    assert np.mean(found) < 0.53


def test_the_first_stays_unless_beaten_beyond_chance() -> None:
    metric = find_metric("accuracy", "ab")
    targets = np.arange(200) % 2
    first = np.where(np.arange(200) < 20, 1 - targets, targets)  # 180 right
    hair = np.where(np.arange(200) < 199, targets, 1 - targets)
    assert choose(metric, [first, hair], targets) == 1
    one_more = first.copy()
    one_more[0], one_more[100] = targets[0], 1 - targets[100]
    one_more[1] = targets[1]  # two more right, one more wrong
    assert choose(metric, [first, one_more], targets) == 0


def test_the_interval_covers(make_world) -> None:
    metric = find_metric("accuracy", "ab")
    rng = np.random.default_rng(0)
    hit = 0
    for _ in range(60):
        right = rng.random(300) < 0.8
        score = score_of(metric, np.where(right, 1, 0), np.ones(300, dtype=int))
        hit += score.low <= 0.8 <= score.high
    assert hit >= 53
    perfect = score_of(metric, np.ones(100, dtype=int), np.ones(100, dtype=int))
    assert perfect.value == perfect.high == 1.0 and perfect.low == pytest.approx(1 - 0.0196)


def test_forecast_by_hand() -> None:
    # standard error 0.05; as many test rows as OOF rows: times √2; 90 %: times 1.6449
    found = forecast_score(Estimate(0.8, 0.8 - 1.96 * 0.05, 0.8 + 1.96 * 0.05), 100, 100)
    assert found.low == pytest.approx(0.8 - 1.6449 * 0.05 * np.sqrt(2))
    assert found.high == pytest.approx(0.8 + 1.6449 * 0.05 * np.sqrt(2))
    assert forecast_score(Estimate(0.99, 0.95, 1.0), 100, 1).high == 1.0
    lifted = forecast_score(Estimate(0.8, 0.8 - 1.96 * 0.05, 0.9), 100, 100, gain=0.06)
    assert lifted.value == pytest.approx(0.86)
    assert lifted.value - lifted.low == pytest.approx(1.6449 * np.hypot(0.1 / 1.96 * 2**0.5, 0.03))
    assert forecast_score(Estimate(0.99, 0.95, 1.0), 100, 100, gain=0.06).value == 1.0
    loss = forecast_score(Estimate(0.4, 0.3, 0.5), 9, 9, gain=-0.5, bounds=(0.0, np.inf))
    assert loss.value == 0.0 == loss.low
    few = forecast_score(Estimate(0.01, 0.0, 0.03), 400, 1)
    assert (few.value, few.low) == (0.01, 0.0), "one test image: no score below zero"
    kappa = find_metric("qwk", ["0", "1"])
    assert forecast_score(Estimate(0.1, -0.2, 0.4), 9, 9, bounds=kappa.bounds).low < -0.2
    grouped = forecast_score(Estimate(0.8, 0.7, 0.9), 100, 100, design_effect=4.0)
    alone = forecast_score(Estimate(0.8, 0.7, 0.9), 100, 100)
    assert 0.8 - grouped.low == pytest.approx(2 * (0.8 - alone.low))
