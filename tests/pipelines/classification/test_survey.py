"""A survey: what is looked at, how steps are timed, and what a disturbed machine does to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from src.data.rows import Index, find_classes, make_columns
from src.engine.runtime import start_runtime
from src.pipelines.classification import survey
from src.pipelines.classification.plan import Candidate
from src.pipelines.classification.survey import steady_rates
from src.script import UserError
from src.tool_config import PlanConfig

SMALL = Candidate("tf_efficientnet_lite0.in1k", 128, 0.40, 0.9, 80.0, 400.0)
LARGE = Candidate("tf_efficientnet_lite0.in1k", 256, 0.30, 0.9, 20.0, 100.0)


def test_small_images_are_worth_enlarging_by_their_shorter_side(tmp_path: Path) -> None:
    for number, size in enumerate(((40, 60), (90, 50), (300, 70))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((*size, 3), np.uint8))
    images = ["0.png", "1.png", "2.png"]
    index = Index(
        tmp_path, make_columns(images, images, ["a", "b", "a"], ["", "", ""], split="train"),
        find_classes(["a", "b", "a"], tmp_path), (),
    )  # fmt: skip
    assert survey.useful_side(index, np.arange(3)) == 80  # 1.6 times the 50 in the middle


def test_a_size_is_looked_at_once() -> None:
    assert survey.sizes_of("test_resnet.r160_in1k", ()) == [96, 128, 64, 192, 32]  # of 160 px
    assert survey.sizes_of("test_resnet.r160_in1k", (48, 64, 48)) == [48, 64]
    assert len(survey.find_backbones(("test_resnet", "test_vit", "test_resnet"))) == 2


def test_steps_are_timed_at_a_size_that_may_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, threads, usual = [], [], torch.get_num_threads()

    def time_none(model: Any, task: Any, batch: Any, runtime: Any, engine: Any) -> Any:
        shapes.append(tuple(batch["image"].shape[2:]))
        threads.append(torch.get_num_threads())
        return runtime, {}, 16

    monkeypatch.setattr(survey, "autotune", time_none)
    data: Any = SimpleNamespace(classes=("a", "b"))
    for sizes in ((), (32, 64)):
        survey.settle(data, "test_resnet", start_runtime("cpu"), PlanConfig(sizes=sizes))
    assert shapes == [(96, 96), (32, 32)]
    survey.settle(data, "test_resnet", start_runtime("cpu"), PlanConfig(), usual + 1)
    assert threads == [usual, usual, usual + 1] and torch.get_num_threads() == usual
    card: Any = SimpleNamespace(device=torch.device("cuda"))
    assert survey.settle(data, "test_resnet", card, PlanConfig()) is card and len(shapes) == 3


def test_backbones_of_one_short_name_are_members_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def see(*args: Any) -> Any:
        return dataclasses.replace(SMALL, timm_id=args[2], image_size=args[3]), torch.zeros(3, 2)

    monkeypatch.setattr(survey, "look", see)
    monkeypatch.setattr(survey, "sample_rows", lambda *_: np.arange(3))
    monkeypatch.setattr(survey, "useful_side", lambda *_: 80)
    data: Any = SimpleNamespace(index=None, targets=lambda rows: np.array([0, 1, 0]))
    nets = ["tf_efficientnet_b0.ns_jft_in1k", "efficientnet_b0.ra_in1k", "test_resnet"]
    found = survey.survey(data, nets, (32,), start_runtime("cpu"))
    assert [candidate.name for candidate in found] == [
        "tf_efficientnet_b0_ns_jft_in1k_32", "efficientnet_b0_ra_in1k_32", "test_resnet_32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("largest", "late", "looked_at"),
    [
        (256, 9.0, [128, 192, 96, 160, 256, 64]),  # all of them have time for a fold
        (64, 9.0, [128, 96, 64, 192, 160, 256]),  # only the smallest has
        (64, 2.5, [128, 96, 64]),  # after a second of time; then those it had so far
        (0, 0.9, [128, 96, 64]),  # none: three times the time, and no more
        (256, 0.5, [128]),
    ],
)
def test_smaller_sizes_come_first_while_none_is_trainable(
    largest: int, late: float, looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(99.0))

    def see(*args: Any) -> Any:
        return dataclasses.replace(SMALL, timm_id=args[2], image_size=args[3]), torch.zeros(3, 2)

    monkeypatch.setattr(survey, "look", see)
    monkeypatch.setattr(survey, "sample_rows", lambda *_: np.arange(3))
    monkeypatch.setattr(survey, "useful_side", lambda *_: 80)
    monkeypatch.setattr(survey.time, "monotonic", lambda: float(next(clock)))
    data: Any = SimpleNamespace(index=None, targets=lambda rows: np.array([0, 1, 0]))
    found = survey.survey(
        data, ["tf_efficientnet_lite0"], (), start_runtime("cpu"), seconds=late,
        trainable=lambda candidate: candidate.image_size <= largest,
    )  # fmt: skip
    assert [candidate.image_size for candidate in found] == looked_at


def test_no_memory_for_any_size_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(survey, "look", fail)
    monkeypatch.setattr(survey, "sample_rows", lambda *_: np.arange(3))
    monkeypatch.setattr(survey, "useful_side", lambda *_: 80)
    data: Any = SimpleNamespace(index=None)
    with pytest.raises(UserError, match="pass smaller --sizes or --models"):
        survey.survey(data, ["test_resnet"], (32, 64), start_runtime("cpu"))


def test_a_disturbed_timing_rules_no_size_out() -> None:
    """5 images/s at 96 px beside 21 at 192: the small size takes a share of the best pixel rate."""
    slow, fast = (
        Candidate("net", 96, 0.5, 0.9, 5.0, 50.0),
        Candidate("net", 192, 0.4, 0.9, 21.0, 20.0),
    )
    small, large = steady_rates([slow, fast])
    assert small.train_rate == pytest.approx(0.45 * 21 * 4) and large.train_rate == 21


def test_the_gain_of_a_probe_is_what_it_takes_off_the_mean_of_the_better_ones() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    truth = 4.0 * np.eye(3)[targets]
    one, two = (truth + rng.normal(0, 2, truth.shape) for _ in range(2))
    told = [torch.log_softmax(torch.tensor(z), 1).float() for z in (one, one + 1e-3, two)]
    found = [dataclasses.replace(SMALL, image_size=size) for size in (64, 96, 128)]
    gains = {c.image_size: c.gain for c in survey.add_gains(found, told, targets, [True] * 3)}
    assert min(gains[64], gains[96]) == 0, "a twin adds nothing"
    rest = sorted([gains[128], max(gains[64], gains[96])])
    assert 0.2 < rest[0] < 0.8 and rest[1] == 1


def test_gains_are_over_probes_that_there_is_time_for() -> None:
    """Else the next best has none beside the best, and a bad one that adds to it leads."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    truth, off = 4.0 * np.eye(3)[targets], rng.normal(0, 2, (2, 300, 3))
    logits = (truth + off[0], truth + 1.1 * off[0], truth + 1.5 * off[1])
    told = [torch.log_softmax(torch.tensor(z), 1).float() for z in logits]
    found = [dataclasses.replace(SMALL, image_size=size) for size in (288, 256, 64)]

    def gains(*affordable: bool) -> list[float]:
        return [c.gain for c in survey.add_gains(found, told, targets, affordable)]

    every = gains(True, True, True)
    assert every[0] == 1 > every[2] > every[1], "64 px adds more to 288 px than 256 px does"
    without = gains(False, True, True)
    assert without[1] == 1 > without[2] > 0, "without 288 px 256 px lead"
    assert gains(False, False, False) == every


def test_a_probe_that_takes_less_than_a_hundredth_off_the_loss_adds_nothing() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    base, off = 2.0 * np.eye(3)[targets] + rng.normal(0, 1, (300, 3)), rng.normal(0, 1, (300, 3))

    def gains(size: float) -> tuple[float, ...]:
        told = [torch.log_softmax(torch.tensor(base + s * off), 1).float() for s in (size, -size)]
        return tuple(c.gain for c in survey.add_gains([SMALL, LARGE], told, targets, [True] * 2))

    assert sorted(gains(0.12)) == [0, 1], "the mean is better, by less"
    least, most = sorted(gains(0.6))
    assert 0.01 <= least < most == 1


def test_an_unsure_probe_gains_nothing_from_a_surer_twin() -> None:
    """Each loss is that at the best temperature: half-hearted and overdone logits are one probe."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    logits = 2.0 * np.eye(3)[targets] + rng.normal(0, 1, (300, 3))
    told = [torch.log_softmax(torch.tensor(scale * logits), 1).float() for scale in (0.3, 3.0)]
    found = survey.add_gains([SMALL, LARGE], told, targets, [True] * 2)
    assert sorted(c.gain for c in found) == [0, 1]


def test_gains_of_several_labels_are_those_of_their_pairs() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 1]])
    sure = torch.log(torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]))
    unsure = torch.full((3, 2), 0.5).log()
    found = survey.add_gains([SMALL, LARGE], [unsure, sure], targets, [True] * 2)
    assert [c.gain for c in found] == [0.0, 1.0]
