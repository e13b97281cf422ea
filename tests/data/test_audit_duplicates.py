import cv2
import numpy as np
import pytest

from src.data.audit import close_pairs, fingerprint, similar_pairs


def photograph(seed):
    """A smooth random scene with some structure, (120, 160, 3)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((120, 160, 3), np.float32)
    for size in (4, 9, 24):
        coarse = rng.normal(0, 1, (size, size, 3)).astype(np.float32)
        image += cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 40 * image, 0, 255).astype(np.uint8)


def pairs_of(images):
    marks = [fingerprint(image) for image in images]
    hashes = np.array([mark[0] for mark in marks], np.uint64)
    return similar_pairs(hashes, np.stack([mark[1] for mark in marks])).tolist()


def recompress(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1)


@pytest.mark.parametrize(
    "copy",
    [
        recompress,
        lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda image: cv2.convertScaleAbs(image, alpha=0.9, beta=8),
        lambda image: image.copy(),
    ],
)
def test_copies_are_found_and_only_they(copy):
    originals = [photograph(seed) for seed in range(40)]
    pairs = pairs_of([*originals, *map(copy, originals)])
    assert all(other == one + 40 for one, other in pairs)
    assert len(pairs) >= 36


def test_another_object_before_the_same_background_is_no_copy():
    background = cv2.GaussianBlur(photograph(0), (0, 0), 20)
    images = []
    for number in range(12):
        image = background.copy()
        centre = (30 + 25 * (number % 4), 30 + 25 * (number // 4))
        cv2.circle(image, centre, 9, (200, 60, 30), -1)
        images.append(image)
    assert pairs_of(images) == []


def test_small_and_blank_images_are_not_compared():
    assert fingerprint(photograph(0)[:31]) is None
    assert fingerprint(np.full((64, 64, 3), 77, np.uint8)) is None
    assert fingerprint(photograph(0)) is not None


def test_no_images():
    found = similar_pairs(np.empty(0, np.uint64), np.empty((0, 32, 32), np.uint8))
    assert found.shape == (0, 2)


@pytest.mark.parametrize("numpy_2", [True, False])
@pytest.mark.parametrize("num_bands", [4, 6])
def test_close_pairs_are_those_of_a_full_comparison(num_bands, numpy_2, monkeypatch):
    if not numpy_2:  # numpy 1.26 has no such function
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 60, np.uint64)
    bits = rng.integers(0, 64, (240, 7), np.uint64)
    for row in bits:  # neighbours up to seven bits away
        mask = np.bitwise_or.reduce(np.uint64(1) << row[: rng.integers(0, 8)], initial=0)
        hashes = np.append(hashes, hashes[rng.integers(60)] ^ np.uint64(mask))
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    differing = (bits[:, None] != bits[None]).sum(-1)
    expected = np.argwhere(np.triu(differing < num_bands, 1))
    assert len(expected) > 100
    assert close_pairs(hashes, num_bands).tolist() == expected.tolist()


def test_hashes_that_tell_nothing_cost_no_quadratic_time():
    assert len(close_pairs(np.zeros(200, np.uint64), 4)) == 200 * 199 // 2  # all of them
    assert len(close_pairs(np.zeros(4000, np.uint64), 4)) < 4000 * 300
