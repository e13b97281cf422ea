"""Look-up of timm models: whether an id exists, its mean, std and sizes.

Nothing here builds a network or opens a file of weights.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from src.script import UserError


@dataclass(frozen=True)
class DataConfig:
    """How the weights of a timm model were trained to see images.

    `mean` and `std` are per channel, RGB, of values scaled to [0, 1]; sizes are sides in pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    fixed_size: bool


def check_timm_id(timm_id: str) -> str:
    """Return the id as timm knows it: its architecture and, where there is one, its tag.

    `resnet152d` becomes `resnet152d.ra2_in1k`, the tag timm takes by default, and so does
    `hf-hub:timm/resnet152d.ra2_in1k`; an architecture without published weights stays as it is.

    Raises:
        UserError: no such architecture or tag, with the nearest that exist.
    """
    import timm
    from timm.models import get_pretrained_cfg

    timm_id = re.sub(r"^((hf[-_]hub:)?timm/)", "", timm_id.strip())
    architecture, _, tag = timm_id.partition(".")
    if not timm.is_model(architecture):
        raise UserError(_unknown(timm_id, architecture, timm.list_models()))
    known = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and timm_id not in known:
        raise UserError(_unknown(timm_id, timm_id, known or [architecture]))
    config = get_pretrained_cfg(timm_id)
    if tag or config is None or not config.tag or not known:
        return timm_id
    return f"{architecture}.{config.tag}"


def is_published(timm_id: str) -> bool:
    """Tell whether timm knows of weights for an architecture."""
    import timm

    return bool(timm.list_models(f"{timm_id.partition('.')[0]}.*", pretrained=True))


def find_data_config(timm_id: str) -> DataConfig:
    """Return mean, std and sizes of the weights called `timm_id` (with or without its tag)."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(check_timm_id(timm_id))
    if config is None:  # an architecture without published weights: ImageNet's figures
        from timm.models import PretrainedCfg

        config = PretrainedCfg()
    size = config.input_size[-1]
    return DataConfig(config.mean, config.std, size, config.fixed_input_size)


def _unknown(timm_id: str, searched: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(searched, known, n=3, cutoff=0.5) or known[:3]
    return f"model {timm_id}: timm has none of this name; nearest: {', '.join(nearest)}"
