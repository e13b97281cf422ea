"""Adversarial validation on images and features whose shift is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from src.data.shift import FEATURES, auc, find_shift, measure_image


def measure(image: np.ndarray) -> dict[str, float]:
    data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    return dict(zip(FEATURES, measure_image(data, image).tolist(), strict=True))


def test_features_say_what_their_names_say() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:20, :, 0] = 200  # a red upper half
    found = measure(image)
    assert (found["width"], found["height"], found["aspect"]) == (80, 40, 2.0)
    assert found["red"] == pytest.approx(100, abs=2) and found["green"] == 0
    assert found["saturation"] == pytest.approx(100, abs=2)
    assert found["brightness of the upper half less the lower"] == pytest.approx(200 / 3, abs=2)
    noisy = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    assert measure(noisy)["sharpness"] > found["sharpness"] > 0
    assert measure(noisy)["bytes a pixel"] > 2.5 > 0.2 > found["bytes a pixel"]


def test_auc_counts_pairs_and_halves_ties() -> None:
    positive = np.array([True, True, False, False])
    assert auc([3, 1, 2, 1], positive) == (2 + 0.5) / 4
    assert auc([0, 0, 0, 0], positive) == 0.5


def test_a_shift_is_found_and_named_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, len(FEATURES)))
    is_test = np.arange(300) % 3 == 0
    same = find_shift(features, is_test)
    assert same is not None and not same.beyond_chance and same.low < 0.5 < same.high
    features[is_test, 4] += 2.0
    moved = find_shift(features, is_test)
    assert moved is not None and moved.beyond_chance and moved.auc > 0.85
    assert moved.features[0][0] == "red" and moved.features[0][1] > 0.85
    assert moved.features[0][3] - moved.features[0][2] == pytest.approx(2.0, abs=0.4)
    assert moved.likeness[is_test].mean() > moved.likeness[~is_test].mean() + 0.2


def test_a_handful_of_images_is_not_compared() -> None:
    features = np.zeros((40, len(FEATURES)))
    assert find_shift(features, np.arange(40) < 19) is None
