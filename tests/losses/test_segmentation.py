"""Two pixels with p(foreground) = 1/2 and 3/4 whose labels are 1 and 0, and worked by hand."""

from math import log

import pytest
import torch

from src.losses.segmentation import TERMS, build_segmentation_loss
from src.script import UserError

LOGITS = torch.tensor([[[[0.0, log(3)]]]])
TARGET = torch.tensor([[[1, 0]]])
FAST = sorted(set(TERMS) - {"bce"})


def value(spec, logits=LOGITS, target=TARGET, **options):
    return build_segmentation_loss(spec, **options)(logits, target)["loss"].item()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ce", (log(2) + log(4)) / 2),
        ("bce", (log(2) + log(4)) / 2),
        ("ohem(share=0.5)", log(4)),
        ("focal", (0.5**2 * log(2) + 0.75**2 * log(4)) / 2),
        ("focal(gamma=0)", (log(2) + log(4)) / 2),
        ("dice(smooth=0)", 1 - 2 * 0.5 / (1.25 + 1)),
        ("iou(smooth=0)", 1 - 0.5 / (1.25 + 1 - 0.5)),
        ("iou", 1 - 1.5 / 2.75),
        ("tversky(smooth=0)", 1 - 0.5 / (0.5 + 0.3 * 0.75 + 0.7 * 0.5)),
        ("lovasz", 0.75 * 0.5 + 0.5 * 0.5),
        ("gce(q=1)", (0.5 + 0.75) / 2),
        ("gce", ((1 - 0.5**0.7) + (1 - 0.25**0.7)) / 0.7 / 2),
        ("shape", (0.25 / 2.25 + 0.75 / 1.25) / 2),
        ("edge_ce", (log(2) + log(4)) / 2),  # both lie at the edge: weights cancel
        ("ce + 0.5 gce(q=1)", (log(2) + log(4)) / 2 + 0.5 * 0.625),
        ("ce + 0.5 ohem", (log(2) + log(4)) / 2 + 0.5 * log(4)),
    ],
)
def test_by_hand(spec, expected):
    assert value(spec) == pytest.approx(expected, rel=1e-5)


def test_three_classes_by_hand():
    logits = (
        torch.tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 8, 3 / 4, 1 / 8]]).log().T.reshape(1, 3, 1, 2)
    )
    target = torch.tensor([[[0, 1]]])
    # class 2 is nowhere true and does not count
    first, second = 0.5 / (0.5 + 0.5 + 0.125), 0.75 / (0.75 + 0.25 + 0.25)
    assert value("iou(smooth=0)", logits, target) == pytest.approx(1 - (first + second) / 2)
    assert value("iou(smooth=0, classes=foreground)", logits, target) == pytest.approx(1 - second)


def test_dice_per_image_is_a_mean_over_images():
    logits = torch.tensor([[[[0.0, 0.0]]], [[[9e9, 9e9]]]])
    target = torch.tensor([[[1, 1]], [[1, 1]]])
    spec = "dice(smooth=0, per_image=true)"
    assert value(spec, logits, target) == pytest.approx((1 - 2 / 3) / 2)
    assert value("dice(smooth=0)", logits, target) == pytest.approx(1 - 2 * 3 / (3 + 4))


def scene(num_channels=1, void=False):
    target = torch.zeros(2, 16, 16, dtype=torch.long)
    target[:, 4:12, 3:9] = 1
    if num_channels > 2:
        target[1, 10:14, 9:14] = 2
    if void:
        target[:, :, :2] = 255
        target[:, 12:] = 255
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, num_channels, 16, 16, generator=generator)
    return logits, target


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("num_channels", [1, 2, 4])
def test_right_costs_less_than_wrong(name, num_channels):
    logits, target = scene(num_channels)
    if num_channels == 1:
        right = (target[:, None] * 2.0 - 1) * 20
    else:
        right = torch.nn.functional.one_hot(target, num_channels).movedim(-1, 1) * 20.0
    assert value(name, right, target) == pytest.approx(0, abs=2e-3)
    assert value(name, logits, target) > 0.05


@pytest.mark.parametrize("name", FAST)
def test_void_has_no_say(name):
    logits, target = scene(3, void=True)
    changed = torch.where((target == 255)[:, None], -3 * logits + 1, logits)
    assert value(name, changed, target) == pytest.approx(value(name, logits, target), abs=1e-6)
    logits.requires_grad_()
    build_segmentation_loss(name)(logits, target)["loss"].backward()
    assert logits.grad.abs().sum() > 0
    assert not logits.grad.movedim(1, -1)[target == 255].any()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_void_alone_and_huge_logits_stay_finite(name, num_channels):
    for scale, target in ((1.0, torch.full((2, 16, 16), 255)), (1e4, scene()[1])):
        logits = (scene(num_channels)[0] * scale).requires_grad_()
        loss = build_segmentation_loss(name)(logits, target)["loss"]
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()
        if scale == 1:
            assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("name", FAST)
def test_one_channel_is_two(name):
    logits, target = scene(1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert value(name, two, target) == pytest.approx(value(name, logits, target), rel=1e-4)


def test_boundary_loss_tolerates_two_pixels():
    target = torch.zeros(1, 24, 24, dtype=torch.long)
    target[:, :, 12:] = 1
    losses = []
    for shift in (0, 2, 3):
        moved = torch.zeros_like(target)
        moved[:, :, 12 + shift :] = 1
        losses.append(value("boundary", (moved[:, None] * 2.0 - 1) * 30, target))
    assert losses == pytest.approx([0, 0, 1], abs=1e-4)


def test_edge_weights_fall_where_labels_meet():
    target = torch.zeros(1, 1, 10, dtype=torch.long)
    target[..., 5:] = 1
    logits = torch.zeros(1, 1, 1, 10)
    logits[..., 0] = log(3)  # far from the edge: -log(1/4)
    logits[..., 4] = log(3)  # at the edge
    # within one pixel of the other label: columns 4 and 5
    expected = (log(4) + 5 * log(4) + 7 * log(2) + 5 * log(2)) / (8 + 2 * 5)
    assert value("edge_ce(radius=1)", logits, target) == pytest.approx(expected)


def test_small_logits_are_resized_and_parts_reported():
    logits, target = scene(3)
    result = build_segmentation_loss("ce + 0.5*dice")(logits[..., ::2, ::2], target)
    assert set(result) == {"loss", "ce", "dice"}
    assert result["loss"].item() == pytest.approx((result["ce"] + 0.5 * result["dice"]).item())
    assert not result["ce"].requires_grad


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ce + dize", "'dize' is unknown"),
        ("", "has no terms"),
        ("ce + x dice", "weight of dice: 'x' is not a number"),
        ("-1 ce", "weight -1.0 of ce: above 0, at most 1000"),
        ("inf ce + dice", "weight inf of ce: above 0, at most 1000"),
        ("focal(gama=2)", r"focal has no option 'gama' \(did you mean gamma"),
        ("boundary(radius=1.5)", "boundary: radius: '1.5' is not a whole number"),
        ("protocol(weight=3)", "no option 'weight'; it has none"),  # its weights are measured
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        build_segmentation_loss(spec)


def test_protocol_loss_is_one_minus_the_score_by_hand():
    # two images of two pixels, K = 3: (1, 0) and (2, void); p as below
    probs = torch.tensor([[[0.2, 0.6, 0.2], [0.5, 0.25, 0.25]], [[0.4, 0.2, 0.4], [0.1, 0.1, 0.8]]])
    logits = probs.log().permute(0, 2, 1)[:, :, None]
    target = torch.tensor([[[1, 0]], [[2, 255]]])
    one, two = 0.6 / (1 + 0.85 - 0.6), 0.4 / (1 + 0.4 - 0.4)  # void counts nowhere
    assert value("protocol", logits, target) == pytest.approx(1 - (one + two) / 2, rel=1e-4)
    found = value("protocol", logits, target, rarity=[9, 3, 1])
    assert found == pytest.approx(1 - (3 * one + two) / 4, rel=1e-4)
    assert value("protocol", logits, torch.zeros_like(target)) == 0  # no foreground, no pairs
