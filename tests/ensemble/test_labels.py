"""Blends of several labels an image: joined, judged by image, calibrated by label, cross-fitted."""

from __future__ import annotations

import numpy as np
import pytest

from src.classes import STATES, PairedLogits
from src.ensemble.blend import build_tables
from src.ensemble.contest import (
    adopt,
    build_board,
    find_candidates,
    forecast_score,
    resample,
    score_of,
)
from src.ensemble.oof import FoldTable, load_oof
from src.ensemble.predictions import TestRun, learns_labels, save_oof
from src.ensemble.test_predictions import EnsemblePredictor
from src.metrics.contest import binary_log_loss, find_metric
from src.metrics.decisions import sigmoid
from src.script import UserError

LABELS = ("a", "b", "c")
NUM, VIEWS = 240, ("identity", "hflip")


class World:
    """Images with labels in folds, and models that know them with noise."""

    def __init__(self, root, num_folds: int = 3) -> None:
        self.root, self.rng = root, np.random.default_rng(0)
        self.hot = (self.rng.random((NUM, 3)) < [0.2, 0.5, 0.7]).astype(np.int64)
        self.folds = self.rng.permutation(np.arange(NUM) % num_folds)
        self.ids = np.array([f"{row:04d}" for row in range(NUM)])

    @property
    def table(self) -> FoldTable:
        texts = ["|".join(n for n, one in zip(LABELS, row, strict=True) if one) for row in self.hot]
        return FoldTable(self.ids, np.array(texts), self.folds, "f" * 16)

    def save(self, model: str, signal: float, targets: np.ndarray | None = None) -> np.ndarray:
        """Write OOF files of all folds; return the logits (V, N, 3)."""
        logits = self.rng.standard_normal((2, NUM, 3)) + signal * (2 * self.hot - 1)
        for fold in np.unique(self.folds):
            rows = self.rng.permutation(np.flatnonzero(self.folds == fold))
            save_oof(
                self.root / model / f"fold{fold}" / "oof.npz", logits=logits[:, rows],
                ids=self.ids[rows], targets=(self.hot if targets is None else targets)[rows],
                views=VIEWS, classes=LABELS, fold=str(fold), config_hash="h", folds_hash="f" * 16,
            )  # fmt: skip
        return logits.astype(np.float16)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "output")


def make_board(world: World, name: str):
    world.save("one", 1.5)
    world.save("two", 0.7)
    oof = load_oof(world.root, world.table)
    return build_board(find_metric(name, LABELS, several=True), oof, build_tables(oof))


def test_models_are_joined_as_pairs(world) -> None:
    logits = world.save("one", 1.0)
    assert learns_labels(world.root)
    oof = load_oof(world.root, world.table)
    assert oof.labels == LABELS and oof.classes == STATES and len(oof.targets) == 3 * NUM
    order = np.argsort(world.folds, kind="stable")
    np.testing.assert_array_equal(oof.targets.reshape(NUM, 3), world.hot[order])
    np.testing.assert_array_equal(oof.folds, np.repeat(world.folds[order], 3))
    read = oof.read(("one", "hflip"), np.arange(3 * NUM))
    wanted = np.log(sigmoid(logits[1][order].astype(float)))
    np.testing.assert_allclose(read[:, 1].reshape(NUM, 3), wanted, atol=1e-5)


def test_other_labels_than_the_folds_say_are_refused(world) -> None:
    world.save("one", 1.0, targets=1 - world.hot)
    with pytest.raises(UserError, match=r"another class for id .* than folds\.csv has"):
        load_oof(world.root, world.table)


@pytest.mark.parametrize("name", ["log_loss", "mean_auc", "map", "f1_samples"])
def test_every_metric_finds_a_blend(world, name) -> None:
    board = make_board(world, name)
    candidates = find_candidates(board, trials=4, seed=0)
    adopted, score = adopt(board, candidates)
    submitted = adopted.decision.apply(board.predict(adopted.blend))
    assert board.metric.measure(submitted, board.targets) == pytest.approx(adopted.fitted)
    assert score.low < score.value < score.high
    alone = board.metric.measure(sigmoid(np.zeros(3 * NUM)), board.targets)
    better = score.value - alone
    assert better > 0.1 if board.metric.greater_is_better else better < -0.1
    assert candidates[0].blend.weights[:2].sum() > 0.6  # of the model that knows more


def test_nothing_of_a_part_reaches_its_own_submission(world) -> None:
    board = make_board(world, "f1_samples")
    before = find_candidates(board, trials=0, seed=0)
    part = board.parts == 0
    shuffled = board.oof.targets.copy()
    images = shuffled[board.rows[part]].reshape(-1, 3)
    shuffled[board.rows[part]] = world.rng.permutation(images).ravel()
    object.__setattr__(board.oof, "targets", shuffled)
    object.__setattr__(board, "tables", build_tables(board.oof))
    for one, other in zip(before[1:2], find_candidates(board, trials=0, seed=0)[1:2], strict=True):
        np.testing.assert_array_equal(one.submitted[part], other.submitted[part])


def test_labels_of_an_image_are_drawn_together(world) -> None:
    metric = find_metric("log_loss", LABELS, several=True)
    assert metric.rows_of(np.array([2, 0])).tolist() == [6, 7, 8, 0, 1, 2]
    probs = np.repeat(world.rng.random(NUM), 3)  # all labels of an image are wrong together
    targets = np.zeros(3 * NUM, np.int64)
    spread = resample(metric, [probs], targets).std()
    of_images = -np.log1p(-probs[::3])
    assert spread == pytest.approx(of_images.std() / np.sqrt(NUM), rel=0.15)
    score = score_of(metric, probs, targets)
    assert score.value == pytest.approx(
        binary_log_loss(probs.reshape(-1, 3), targets.reshape(-1, 3))
    )
    wide = forecast_score(score, NUM, NUM, bounds=metric.bounds)
    ratio = np.sqrt(2) * 1.6449 / 1.96  # of a 90 % interval on as many new images
    assert wide.high - wide.value == pytest.approx((score.high - score.value) * ratio)
    assert wide.low >= 0


def test_one_fold_alone_is_parted_by_image(tmp_path) -> None:
    world = World(tmp_path / "output", num_folds=1)
    world.save("one", 1.0)
    oof = load_oof(world.root, world.table)
    parts = build_tables(oof).parts.reshape(NUM, 3)
    assert (parts == parts[:, :1]).all() and len(np.unique(parts)) == 5


def test_test_logits_are_predicted_as_pairs(world) -> None:
    board = make_board(world, "log_loss")
    blend = find_candidates(board, trials=0, seed=0)[1].blend
    logits = world.rng.standard_normal((2, 7, 3)).astype(np.float16)
    run = TestRun(world.root, PairedLogits(logits), VIEWS, STATES)
    predictor = EnsemblePredictor({"one": [run], "two": [run]}, blend, (0, 1), 21)
    found = predictor.predict(slice(None)).log_probs
    np.testing.assert_array_equal(found[6:9], predictor.predict(slice(6, 9)).log_probs)
    mean = np.log(sigmoid(logits.astype(float)).mean(axis=0))
    odds = mean - np.log1p(-np.exp(mean))
    wanted = (odds / blend.temperature).ravel()
    if not any(blend.floors):
        np.testing.assert_allclose(found[:, 1] - found[:, 0], wanted, rtol=2e-3, atol=2e-3)
