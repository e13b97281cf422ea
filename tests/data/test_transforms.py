"""Augmentation: repeatable by key, uncorrelated between keys and ops, image and mask together."""

import pickle
import warnings

import albumentations as A
import cv2
import numpy as np
import pytest

from src.data import transforms
from src.data.transforms import (
    AUGMENTATIONS,
    PAD_COLOR,
    ColorMatrix,
    QuickAffine,
    build_augmentations,
    color_matrix,
    eval_transform,
    train_mask_transform,
    train_transform,
)
from tests.data.layout import refused

STRONG = {"vflip": 0.5, "rotate": 30.0, "color": 0.5, "erase": 0.5}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def test_same_key_repeats_and_another_differs(image):
    transform = train_transform(32, **STRONG)
    first = transform((0, 1, 2), image=image)["image"]
    transform((5, 5, 5), image=image)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, transform((0, 1, 2), image=image)["image"])
    again = pickle.loads(pickle.dumps(transform))  # what a spawned loader process gets
    assert np.array_equal(first, again((0, 1, 2), image=image)["image"])
    for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not np.array_equal(first, transform(key, image=image)["image"])


def test_flips_are_fair_and_uncorrelated_over_rows():
    """Seeding each op from one number makes all of them fire together (correlation 1)."""
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, 2)
    transform = train_transform(2, scale_min=1.0, hflip=0.5, vflip=0.5, rotate=0, color=0)
    corners = [int(transform((0, 0, row), image=image)["image"][0, 0, 0]) for row in range(2000)]
    left_right = np.array(corners) % 2
    up_down = np.array(corners) // 2
    assert abs(left_right.mean() - 0.5) < 0.05 and abs(up_down.mean() - 0.5) < 0.05
    assert abs(np.corrcoef(left_right, up_down)[0, 1]) < 0.1
    neighbours = np.corrcoef(left_right[:-1], left_right[1:])[0, 1]
    assert abs(neighbours) < 0.1


def test_options_are_understood_by_albumentations():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an old argument name only warns, and is ignored
        train_transform(32, **STRONG)
        train_mask_transform((32, 32), rotate=10, vflip=0.5)
        eval_transform(32)
        eval_transform()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_of_the_table_is_repeatable_and_leaves_the_mask(image, name):
    off = {"hflip": 0.0, "color": 0.0, "scale_min": 1.0}
    mask = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform = train_transform(48, **off, rotate=0, augment=name)
        masks = train_mask_transform((48, 48), **off, scale_max=1.0, augment=name)
    drawn = [transform((0, 0, row), image=image)["image"] for row in range(8)]
    assert all(found.shape == image.shape and found.dtype == np.uint8 for found in drawn)
    assert sum(not np.array_equal(found, image) for found in drawn) >= 7  # a weight of 1 is always
    assert name in {"gray", "clahe"} or len({found.tobytes() for found in drawn}) > 2
    assert np.array_equal(drawn[3], transform((0, 0, 3), image=image)["image"])
    found = masks((0, 0, 3), image=image, mask=mask)
    assert not np.array_equal(found["image"], image) and np.array_equal(found["mask"], mask)


def test_the_weight_of_an_augmentation_is_its_probability(image):
    transform = train_transform(
        48, hflip=0, color=0, rotate=0, scale_min=1.0, augment="0.25 gray + 0.5 blur(limit=3)"
    )
    drawn = [transform((0, 0, row), image=image)["image"] for row in range(400)]
    grays = np.mean([(found[..., 0] == found[..., 1]).all() for found in drawn])
    same = np.mean([np.array_equal(found, image) for found in drawn])
    assert abs(grays - 0.25) < 0.07 and abs(same - 0.75 * 0.5) < 0.08


def test_a_stronger_option_changes_more(image):
    def change(spec):
        transform = train_transform(48, hflip=0, color=0, rotate=0, scale_min=1.0, augment=spec)
        found = [transform((0, 0, row), image=image)["image"] for row in range(30)]
        return np.mean([np.abs(image.astype(int) - one).mean() for one in found])

    for weak, strong in (
        ("blur(limit=3)", "blur(limit=15)"), ("noise(std=0.05)", "noise(std=0.3)"),
        ("jpeg(quality=95)", "jpeg(quality=5)"), ("sharpen(strength=0.1)", "sharpen(strength=1)"),
    ):  # fmt: skip
        assert change(weak) < change(strong), strong


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blurr", "--augment: 'blurr' is unknown .did you mean blur"),
        ("1.5 blur", "weight 1.5 of blur: above 0, at most 1"),
        ("blur(limit=2)", "limit 2: at least 3"),
        ("+", "write for instance '0.2 blur"),
    ],
)
def test_mistakes_in_augment_are_named(spec, message):
    assert build_augmentations("") == []
    refused(message, train_transform, 32, augment=spec)


def test_shrinking_averages_areas_and_the_mask_keeps_its_labels():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 255  # a quarter of the area, and none of what bilinear sampling looks at
    mask = np.repeat(np.arange(2, dtype=np.uint8) * 7, 512).reshape(32, 32)
    transform = train_mask_transform((8, 8), scale_min=0.25, scale_max=0.25, hflip=0, color=0)
    found = transform((0, 0, 0), image=stripes, mask=mask)
    assert (found["image"] == 64).all()
    assert (found["mask"] == np.repeat([0, 7], 32).reshape(8, 8)).all()


def test_everything_off_is_the_identity(image):
    transform = train_transform(48, scale_min=1.0, hflip=0, rotate=0, color=0)
    assert np.array_equal(transform((0, 0, 0), image=image)["image"], image)
    assert np.array_equal(eval_transform(48)((0, 0, 0), image=image)["image"], image)


def test_color_by_hand():
    grey, red = [100, 100, 100], [200, 0, 0]
    # Saturation 0 leaves the luma, .299 · 200; saturation 1 and hue 0 leave all as it is.
    assert np.allclose(color_matrix(0, 0) @ red, 59.8)
    assert np.allclose(color_matrix(1, 0), np.eye(3))
    # Hue turns about the grey axis: grey stays, a third of a circle takes red to green.
    assert np.allclose(color_matrix(1, 1.0) @ grey, grey)
    assert np.allclose(color_matrix(1, 2 * np.pi / 3) @ red, [0, 200, 0])
    # Mean luma 100; contrast 2 takes 50 and 150 to 0 and 200, brightness 0.5 then to 0 and 100.
    image = np.array([[[50] * 3, [150] * 3]], np.uint8)
    changed = ColorMatrix().apply(image, (0.5, 2.0, 1.0, 0.0))
    assert changed[0, :, 0].tolist() == [0, 100]
    assert ColorMatrix().apply(image, (3.0, 1.0, 1.0, 0.0))[0, :, 0].tolist() == [150, 255]


def test_mask_moves_with_its_image_and_void_lies_outside():
    """A mask painted as the image: wherever it is not void the two must still agree."""
    labels = np.kron(np.arange(16).reshape(4, 4), np.ones((10, 10))).astype(np.uint8)
    image = (labels * 10)[..., None].repeat(3, 2)
    transform = train_mask_transform(
        (64, 32), ignore_index=255, rotate=20, vflip=0.5, color=0, scale_min=0.5, scale_max=2
    )
    agree, void = [], []
    for row in range(40):
        result = transform((0, 0, row), image=image, mask=labels)
        assert result["image"].shape == (64, 32, 3) and result["mask"].shape == (64, 32)
        outside = result["mask"] == 255
        assert (result["mask"][~outside] < 16).all()  # labels are never blended
        difference = np.abs(result["image"][..., 0] / 10 - result["mask"])[~outside]
        agree.append((difference < 1).mean())
        void.append(outside.mean())
    assert min(agree) > 0.75 and np.mean(agree) > 0.9
    assert 0.1 < np.mean(void) < 0.9


def test_the_update_check_is_off():
    assert transforms.os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.parametrize(
    "outside", [{"border_mode": cv2.BORDER_REFLECT_101}, {"fill": PAD_COLOR, "fill_mask": 255}]
)
def test_four_channels_are_warped_like_three(outside):
    rng = np.random.default_rng(1)
    for side in (17, 64):
        image = rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
        mask = image[..., 0] // 64
        for angle in rng.uniform(-180, 180, 5):
            options = {"rotate": (angle, angle), "p": 1.0, **outside}
            quick, plain = (
                make(**options)(image=image, mask=mask) for make in (QuickAffine, A.Affine)
            )
            assert not np.array_equal(plain["image"], image)
            for kind in ("image", "mask"):
                assert np.array_equal(quick[kind], plain[kind])
