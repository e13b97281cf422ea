"""Classifiers on timm's tiny test nets: layouts, pooling, normalisation, precision, groups."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from src.models.classifier import POOLS, build_classifier, takes_stages
from src.script import UserError

NETS = ("test_efficientnet", "test_resnet", "test_convnext", "test_vit", "test_mambaout")


def images(side: int = 64, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("timm_id", NETS)
def test_every_layout_takes_every_pool_and_trains_every_parameter(timm_id: str, pool: str) -> None:
    if pool == "stages" and not takes_stages(build_classifier(timm_id, 5, image_size=64)):
        pytest.skip(f"this version of timm has no maps of {timm_id}")
    model = build_classifier(timm_id, 5, image_size=64, pool=pool)
    logits = model(images())
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused  # or processes wait for gradients that never come
    assert model.training


def test_native_is_what_timm_computes() -> None:
    """Logits through timm's own forward, with our head behind it and our scaling before it."""
    for timm_id in NETS:
        model = build_classifier(timm_id, 5, image_size=64, pool="native").eval()
        normalise = model.backbone.pretrained_cfg
        mean = torch.tensor(normalise["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(normalise["std"]).view(1, 3, 1, 1)
        with torch.no_grad():
            expected = model.head(model.backbone((images() / 255 - mean) / std))
            torch.testing.assert_close(model(images()), expected, atol=1e-5, rtol=1e-4)


def test_average_is_native_where_the_native_head_averages() -> None:
    """So the map of one cell passes through ConvNeXt's LayerNorm and Mambaout's MLP as meant."""
    for timm_id in ("test_efficientnet", "test_resnet", "test_convnext", "test_mambaout"):
        torch.manual_seed(0)
        native = build_classifier(timm_id, 5, image_size=64, pool="native").eval()
        average = build_classifier(timm_id, 5, image_size=64, pool="avg").eval()
        average.load_state_dict(native.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(native(images()), average(images()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("timm_id", "size"),
    [("test_convnext", 64), ("test_efficientnet", 64), ("swin_tiny_patch4_window7_224", 224)],
)
def test_gem_starts_where_the_pretrained_mean_stood(timm_id: str, size: int) -> None:
    """As p falls to 1, the embedding of GeM is that of the native head; at its start it is near."""
    torch.manual_seed(0)
    native = build_classifier(timm_id, 5, image_size=size, pool="native").eval()
    expected = _embed(native, size)
    for p, tolerance in ((1.0001, 1e-2), (0.0, 0.1)):
        gem = build_classifier(timm_id, 5, image_size=size, pool="gem", gem_p=p).eval()
        gem.backbone.load_state_dict(native.backbone.state_dict())
        distance = (_embed(gem, size) - expected).norm() / expected.norm()
        assert distance < tolerance


def test_gem_stands_beside_the_class_token() -> None:
    """So the head of a ViT sees all that the native head sees, and the patches as well."""
    torch.manual_seed(0)
    native = build_classifier("test_vit", 5, image_size=64, pool="native").eval()
    gem = build_classifier("test_vit", 5, image_size=64, pool="gem").eval()
    gem.backbone.load_state_dict(native.backbone.state_dict())
    embedding, token = _embed(gem, 64), _embed(native, 64)
    assert embedding.shape[1] == gem.head.in_features == 2 * token.shape[1]
    torch.testing.assert_close(embedding[:, : token.shape[1]], token)
    assert not torch.allclose(embedding[:, token.shape[1] :], token, atol=1e-2)


def _embed(model: nn.Module, size: int) -> torch.Tensor:
    with torch.no_grad():
        return model.embed(model.forward_features(images(size)))


def test_signed_maps_are_recognised() -> None:
    signed = {
        net: build_classifier(net, 2, image_size=64, pool="gem").pool.signed  # type: ignore[union-attr]
        for net in NETS
    }
    assert signed.pop("test_resnet") is False
    assert all(signed.values())


def test_uint8_and_float_images_are_the_same_to_the_model() -> None:
    model = build_classifier("test_resnet", 3, image_size=64).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images()), model(images().float()))


def test_logits_are_float32_under_autocast() -> None:
    model = build_classifier("test_convnext", 3, image_size=64, pool="gem").eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_fixed_size_models_are_built_for_the_size() -> None:
    assert build_classifier("test_vit", 3, image_size=96)(images(96)).shape == (2, 3)
    with pytest.raises(UserError, match="--image_size"):
        build_classifier("efficientformer_l1", 3, image_size=64)


def test_a_head_that_takes_no_single_cell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: nn.Module, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x.view(-1, 96, 2, 2)

    monkeypatch.setattr("timm.models.resnet.ResNet.forward_head", refuse)
    with pytest.raises(UserError, match="--pool native"):
        build_classifier("test_resnet", 2, image_size=64, pool="gem")


def test_what_is_outside_the_backbone_is_the_head() -> None:
    model = build_classifier("test_vit", 3, image_size=64, pool="gem")
    named = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert named == {"pool.sharpness", "head.weight", "head.bias"}
    assert "blocks" in model.backbone.group_matcher(coarse=False)


def test_gradient_checkpointing_does_not_change_the_gradient() -> None:
    model = build_classifier("test_vit", 3, image_size=64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_first_predictions_are_near_uniform() -> None:
    torch.manual_seed(0)
    model = build_classifier("test_convnext", 10, image_size=64).eval()
    with torch.no_grad():
        probs = model(images()).softmax(1)
    assert probs.max() < 0.2


def test_dropout_is_ours_and_only_in_training() -> None:
    torch.manual_seed(0)
    model = build_classifier("test_vit", 3, image_size=64, drop_rate=0.5, drop_path_rate=0.1)
    assert not torch.equal(model(images()), model(images()))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images()), model(images()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pool": "max"}, "--pool max"),
        ({"timm_id": "efficientformer_l1"}, "--image_size 224"),
        ({"timm_id": "test_vit", "image_size": 10}, "test_vit"),
        ({"timm_id": "vgg11", "drop_path_rate": 0.1}, "drop_path_rate"),
    ],
)
def test_bad_choices_name_their_flag(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        build_classifier(
            **{"timm_id": "test_resnet", "num_classes": 2, "image_size": 64, **options}
        )
    assert "\n" not in str(caught.value)


def test_one_step_down_the_gradient_learns() -> None:
    torch.manual_seed(0)
    model = build_classifier("test_convnext", 2, image_size=64, pool="gem")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_weights_are_loaded_and_their_share_kept(tmp_path: Path) -> None:
    source = build_classifier("test_resnet", 2, image_size=64)
    torch.save(source.backbone.state_dict(), tmp_path / "weights.pth")
    model = build_classifier("test_resnet", 9, image_size=64, weights=tmp_path / "weights.pth")
    assert model.pretrained_share == 1.0
    assert torch.equal(model.backbone.conv1[0].weight, source.backbone.conv1[0].weight)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_keep_their_statistics_and_learn_their_scale(
    frozen: bool, tmp_path: Path
) -> None:
    path = tmp_path / "test_resnet.safetensors"
    save_file(build_classifier("test_resnet", 4, image_size=64).backbone.state_dict(), path)
    model = build_classifier(
        "test_resnet", 4, image_size=64, weights=path, frozen_norms=frozen
    ).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(images()).square().sum().backward()
    moved = [name for name, value in model.named_buffers() if not torch.equal(value, before[name])]
    assert bool(moved) is not frozen
    assert all(p.grad is not None for p in model.backbone.bn1.parameters())
    assert copy.deepcopy(model).eval().train().backbone.bn1.training is not frozen


def test_norms_of_a_random_net_are_never_frozen() -> None:
    model = build_classifier("test_resnet", 4, image_size=64, frozen_norms=True)
    assert model.train().backbone.bn1.training


@pytest.mark.parametrize("pool", ["gem", "native"])
def test_the_remedy_for_a_size_too_small_works(pool):
    with pytest.raises(UserError, match=r"take --image_size 160$") as caught:
        build_classifier("test_convnext", 3, image_size=16, pool=pool)
    size = int(str(caught.value).rpartition(" ")[2])
    model = build_classifier("test_convnext", 3, image_size=size, pool=pool)
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)
