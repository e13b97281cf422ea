"""Loss of another precision: scores by hand, of classes, labels and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from src.data.decode import write_picture
from src.pipelines.deploy.model import ImageModel
from src.pipelines.deploy.precision import Samples, compare, convert, thin
from src.script import UserError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Four images, number n all of value n."""
    names = [tmp_path / f"{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        write_picture(name, np.full((4, 5, 3), n, np.uint8))
    return names


def model(task: str, *answers: list[float]) -> ImageModel:
    """Return a model that answers image n by ``answers[n]``."""
    table = np.array(answers, np.float32)
    return ImageModel(lambda image: table[image[0, 0, 0]], ("a", "b"), task, engine="fake")


def test_classes(paths: list[Path]) -> None:
    samples = Samples([], paths, lambda n: np.array(n % 2))
    right, wrong = [0.8, 0.2], [0.2, 0.8]
    plain = model("classes", right, wrong, right, wrong)
    other = model("classes", right, wrong, right, right)
    lines = compare("int8", plain, other, samples)
    assert lines[0] == "int8 beside fp32 on 4 held-out images: the same decision for 75.0%"
    good, bad = -np.log(0.8), -np.log(0.2)
    assert lines[1] == (
        f"  log loss: fp32 {good:.4f}, int8 {(3 * good + bad) / 4:.4f} ({(bad - good) / 4:+.4f})"
    )
    assert lines[2] == "  accuracy: fp32 1.0000, int8 0.7500 (-0.2500)"
    assert lines[3].startswith("  ms an image, fake: fp32 p50 ") and len(lines) == 4


def test_labels(paths: list[Path]) -> None:
    samples = Samples([], paths, lambda n: np.array([1, 0]))
    lines = compare(
        "fp16", model("labels", *[[0.9, 0.4]] * 4), model("labels", *[[0.9, 0.6]] * 4), samples
    )
    assert lines[0].endswith("the same decision for 50.0% of labels")
    loss = -(np.log(0.9) + np.log(0.6)) / 2
    assert lines[1].startswith(f"  log loss: fp32 {loss:.4f}, fp16 ")


def test_masks(paths: list[Path]) -> None:
    """The truth is the left two of five columns, void in the last; one model sees three columns."""
    truth = np.zeros((4, 5), np.uint8)
    truth[:, :2], truth[:, 4] = 1, 255

    def sees(columns: int) -> ImageModel:
        probs = np.zeros((1, 4, 5), np.float32)
        probs[..., :columns] = 0.3
        probs[..., 4] = 0.9
        return ImageModel(lambda _: probs, ("road", "lane"), "masks", threshold=0.25, background=0)

    lines = compare("int8", sees(2), sees(3), Samples([], paths, lambda n: truth))
    assert lines[0].endswith("the same decision for 80.0% of pixels")
    assert lines[1] == "  pooled IoU of lane: fp32 1.0000, int8 0.6667 (-0.3333)"
    assert lines[2].startswith("  pooled mean IoU: fp32 1.0000, int8 0.5833")


def test_without_held_out_images_agreement_is_all(paths: list[Path]) -> None:
    one = model("classes", *[[0.8, 0.2]] * 4)
    lines = compare("int8", one, one, Samples(paths, [], lambda n: np.array(0)))
    assert lines[0] == "int8 beside fp32 on 4 training images: the same decision for 100.0%"
    assert len(lines) == 2
    pytest.importorskip("onnx")
    with pytest.raises(UserError, match="--data_dir"):
        convert(paths[0], paths[1], "int8", [])


def test_samples_are_spread_evenly() -> None:
    assert thin(100, 3).tolist() == [0, 49, 99] and thin(2, 9).tolist() == [0, 1]
    assert thin(0, 5).tolist() == []
