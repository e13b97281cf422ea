"""Pooling of several stages: which maps, what is pooled, how levels are weighed."""

import pytest
import torch

from src.models.classifier import GeM, build_classifier, takes_stages
from src.models.probe import _principal_axes, fit_probe
from src.models.stages import StagePools, choose_stages
from src.script import UserError


@pytest.mark.parametrize(
    ("timm_id", "size", "stages"),
    [
        ("tf_efficientnet_lite0", 64, [2, 3, 4]),  # a convolution follows the last stage
        ("resnet10t", 64, [1, 2, 3]),
        ("convnext_atto", 64, [0, 1, 2]),
        ("vit_tiny_patch16_224", 224, [2, 5, 8]),
    ],
)
def test_earlier_maps_stand_beside_what_the_pretrained_head_reads(timm_id, size, stages):
    torch.manual_seed(0)
    model = build_classifier(timm_id, 3, image_size=size, pool="stages").eval()
    assert choose_stages(model.backbone) == model.stages.indices == stages
    image = torch.randint(0, 256, (2, 3, size, size)).float()
    with torch.no_grad():
        last, *maps = model.forward_features(image)
        plain = model.backbone.forward_features((image - model.mean) / model.std)
        embedded = model.embed([last, *maps])
    assert torch.allclose(last, plain, atol=1e-5)
    assert [2 * m.shape[1] for m in maps] == model.level_widths[1:]
    assert embedded.shape == (2, sum(model.level_widths)) and model(image).shape == (2, 3)
    first = model.level_widths[0]
    assert torch.allclose(embedded[:, first : first + maps[0].shape[1]], maps[0].mean((2, 3)))


def test_levels_get_the_same_variance_and_dead_channels_are_not_blown_up():
    torch.manual_seed(1)
    pools = StagePools([0], [50], 20, lambda: GeM(3.0))
    features = torch.randn(400, 120) * torch.cat([torch.full((20,), 2.0), torch.full((100,), 0.1)])
    features[:, 7] *= 1e-6  # a channel that is silent before training
    scaled = pools.set_scale(features)
    variances = [part.var(0).sum() for part in scaled.split(pools.level_widths, dim=1)]
    assert float(variances[0] / variances[1]) == pytest.approx(19 / 20, rel=0.03)
    lengths = [float(part.square().sum(1).mean()) for part in (scaled, features[:, :20])]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)
    assert pools.scale[7] < 10 * pools.scale[:20].median()
    assert torch.equal(pools.scale * features, scaled)


@pytest.mark.parametrize("features", [torch.ones(1, 120), torch.full((4, 120), torch.nan)])
def test_what_cannot_be_scaled_leaves_the_scale_alone(features: torch.Tensor) -> None:
    pools = StagePools([0], [50], 20, lambda: GeM(3.0))
    with pytest.raises(ValueError, match="two rows or more"):
        pools.set_scale(features)
    assert torch.equal(pools.scale, torch.ones(120))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_principal_axes_whichever_side_is_shorter(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, basis = _principal_axes(x)
    assert torch.allclose(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    assert torch.allclose((x @ basis).square().sum(0), values)
    assert torch.allclose(x @ basis @ basis.T, x)


def test_a_small_level_counts_as_much_as_a_wide_one():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(120) % 3
    useful = torch.nn.functional.one_hot(target, 3) + 0.3 * torch.randn(120, 3, generator=generator)
    features = torch.cat([torch.randn(120, 600, generator=generator), useful], dim=1)
    alone, weighed = fit_probe(features, target, 3), fit_probe(features, target, 3, [600, 3])
    assert weighed.log_loss < 0.5 * alone.log_loss
    new = weighed.weight @ features.T + weighed.bias[:, None]
    assert (new.argmax(0) == target).float().mean() > 0.95


def test_a_net_may_be_on_another_device_when_it_is_asked_for_stages() -> None:
    """A survey asks after the net was timed on a card."""
    assert takes_stages(build_classifier("resnet10t", 2, image_size=64).to("meta"))


def test_a_net_without_stages_is_refused(monkeypatch):
    def refuse(*_: object) -> list[int]:
        raise AttributeError("no feature_info")

    model = build_classifier("resnet10t", 2, image_size=64).train()
    assert takes_stages(model) and model.backbone.training
    monkeypatch.setattr("src.models.classifier.choose_stages", refuse)
    assert not takes_stages(model) and model.backbone.training
    with pytest.raises(UserError, match="take --pool gem"):
        build_classifier("resnet10t", 2, image_size=64, pool="stages")
