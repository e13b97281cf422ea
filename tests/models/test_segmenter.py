from __future__ import annotations

import pytest
import torch
from timm import create_model
from torch import nn

from src.models.segmenter import ARCHITECTURES, build_segmenter
from src.script import UserError

TINY = "tu-test_efficientnet"


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_logits_have_the_size_of_any_image(arch):
    net = build_segmenter(arch, TINY, 3, decoder_width=64).eval()
    image = torch.randint(0, 256, (2, 3, 50, 75), dtype=torch.uint8)
    with torch.no_grad():
        logits, features = net.forward_with_features(image)
        assert torch.equal(net(image), logits)
        assert torch.allclose(net(image.float()), logits)
    assert logits.shape == (2, 3, 50, 75)
    assert features[0].shape[-2:] == (32, 48)  # half of the padded 64 × 96
    assert all(feature.shape[1] > 0 for feature in features)


def test_pixels_are_normalised_with_the_encoders_own_statistics():
    net = build_segmenter("fpn", "tu-tf_efficientnet_lite0.in1k", 2, decoder_width=64)
    assert net.mean.flatten().tolist() == [127.5] * 3
    seen = []
    net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net.eval()(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))
    assert torch.allclose(seen[0], torch.ones(1, 3, 64, 64))


def test_deeplab_decodes_from_a_stride_4_skip_and_a_stride_16_map():
    net = build_segmenter("deeplabv3plus", TINY, 2, decoder_width=16).eval()
    seen = {}
    net.decoder.block1.register_forward_pre_hook(lambda _, a: seen.update(skip=a[0].shape[-1]))
    net.decoder.aspp.register_forward_pre_hook(lambda _, a: seen.update(aspp=a[0].shape[-1]))
    with torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    assert seen == {"skip": 16, "aspp": 4}


def test_deeplab_learns_from_a_batch_of_one():
    net = build_segmenter("deeplabv3plus", TINY, 2, decoder_width=16).train()
    net(torch.rand(1, 3, 64, 64) * 255).mean().backward()
    norm = net.decoder.aspp[0].convs[-1][2]
    assert norm.weight.grad is not None and norm.running_mean.abs().sum() == 0


def test_deeplab_normalises_larger_batches_as_published():
    net = build_segmenter("deeplabv3plus", TINY, 2, decoder_width=16).train()
    norm = net.decoder.aspp[0].convs[-1][2]
    plain = nn.BatchNorm2d(16)
    assert norm.state_dict().keys() == plain.state_dict().keys()
    pooled = torch.rand(2, 16, 1, 1)
    assert torch.equal(norm(pooled), plain(pooled))
    assert torch.equal(norm.running_var, plain.running_var)
    norm.eval(), plain.eval()
    assert torch.equal(norm(pooled[:1]), plain(pooled[:1]))


def test_segformer_width_follows_the_published_sizes():
    def width(net: nn.Module) -> int:
        return net.head[0].in_channels

    assert width(build_segmenter("segformer", "mit_b0", 2)) == 256
    assert width(build_segmenter("segformer", "mit_b0", 2, decoder_width=32)) == 32
    assert width(build_segmenter("segformer", "mit_b2", 2)) == 768


def test_every_parameter_is_backbone_or_head_and_none_is_both():
    net = build_segmenter("unet", TINY, 2, decoder_width=32)
    backbone = {id(p) for p in net.backbone.parameters()}
    assert backbone == {
        id(p) for n, p in net.named_parameters(remove_duplicate=False) if n.startswith("backbone.")
    }
    assert len(backbone) < len(list(net.parameters()))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_local_classification_weights_fill_the_encoder(tmp_path, name, suffix):
    from safetensors.torch import save_file

    source = create_model(name, num_classes=5)
    for p in source.parameters():
        nn.init.normal_(p)
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    net = build_segmenter("segformer", f"tu-{name}", 2, weights=path, decoder_width=8)
    assert net.pretrained_share > 0.97
    loaded = next(net.backbone.parameters())
    assert torch.equal(loaded, next(source.parameters()))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="--arch pspnet"):
        build_segmenter("pspnet", TINY, 2)
    with pytest.raises(UserError, match="--encoder nosuchnet"):
        build_segmenter("unet", "nosuchnet", 2)
    with pytest.raises(UserError, match="no such file"):
        build_segmenter("unet", TINY, 2, weights=tmp_path / "no.pth")
    torch.save(create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="fills only"):
        build_segmenter("unet", TINY, 2, weights=tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match="plain tensors"):
        build_segmenter("unet", TINY, 2, weights=tmp_path / "broken.pth")
