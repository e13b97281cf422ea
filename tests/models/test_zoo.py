"""What is known of a timm id before anything is built."""

import pytest

from src.models.pretrained import check_timm_id, find_data_config, is_published
from src.script import UserError


def test_the_default_tag_is_filled_in() -> None:
    assert check_timm_id("resnet152d") == "resnet152d.ra2_in1k"
    assert check_timm_id("vit_base_patch16_224.augreg_in1k").endswith(".augreg_in1k")


@pytest.mark.parametrize(
    ("timm_id", "nearest"),
    [
        ("resnet15d", "resnet152d"),
        ("convnext_lage", "convnext_large"),
        ("resnet152d.ra3_in1k", r"resnet152d\.ra2_in1k"),
    ],
)
def test_an_unknown_id_names_the_nearest(timm_id: str, nearest: str) -> None:
    with pytest.raises(UserError, match=nearest) as caught:
        check_timm_id(timm_id)
    assert "\n" not in str(caught.value)


def test_data_configs_differ_by_tag_and_model() -> None:
    vit = find_data_config("vit_base_patch16_224.augreg_in21k_ft_in1k")
    assert (vit.mean, vit.image_size, vit.fixed_size) == ((0.5, 0.5, 0.5), 224, True)
    resnet = find_data_config("resnet152d")
    assert (resnet.mean[0], resnet.image_size) == (0.485, 256)
    assert not resnet.fixed_size


@pytest.mark.parametrize("name", ["ghostnet_050", "mixer_s32_224", "selecsls42"])
def test_an_architecture_without_published_weights_stays_as_it_is(name: str) -> None:
    assert check_timm_id(name) == name == check_timm_id(check_timm_id(name))
    assert find_data_config(name).image_size == 224
    assert not is_published(name) and is_published("resnet18")


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/"])
def test_the_names_of_the_hub_are_taken(prefix: str) -> None:
    assert check_timm_id(f"{prefix}resnet18.a1_in1k") == "resnet18.a1_in1k"
