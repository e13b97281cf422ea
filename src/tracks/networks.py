"""The description of a mask net, as ``config.yaml`` keeps it, in; the net out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from src.script import UserError

WEIGHTS = Path("input") / "weights"


def segmenter_spec(arch: str, encoder: str, num_outputs: int, width: int = 0) -> dict[str, Any]:
    """Describe an smp net."""
    return {
        "kind": "segmenter",
        "arch": arch,
        "encoder": encoder,
        "num_outputs": num_outputs,
        "decoder_width": width,
    }


def micro_spec(
    name: str, num_outputs: int, dataset: str = "", drop: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Describe a net of ``src/models/micro``."""
    return {
        "kind": "micro",
        "name": name,
        "num_outputs": num_outputs,
        "dataset": dataset,
        "drop": list(drop),
    }


def build_network(spec: Mapping[str, Any], weights: Path | str | None = None) -> nn.Module:
    """Build the net that ``spec`` describes.

    Args:
        spec: from one of the functions above.
        weights: file with an encoder's pretrained weights.

    Raises:
        UserError: what the builders refuse.
    """
    if spec["kind"] == "micro":
        from src.models.micro.registry import build_micro

        return build_micro(
            spec["name"],
            spec["num_outputs"],
            dataset=spec["dataset"] or None,
            drop=tuple(spec["drop"]),
        )
    from src.models.segmenter import build_segmenter

    return build_segmenter(
        spec["arch"],
        spec["encoder"],
        spec["num_outputs"],
        weights=weights,
        decoder_width=spec["decoder_width"] or None,
    )


def find_encoder_weights(encoder: str, mode: str) -> Path | None:
    """Find the pretrained weights of an smp encoder.

    Args:
        encoder: ``tu-NAME`` takes timm's weights; other names are looked for in
            ``input/weights``, then under timm's model of the same name and layout.
        mode: ``auto``, ``none``, or a file.

    Raises:
        UserError: there are none; the line says which file to put where.
    """
    if mode == "none":
        return None
    if mode != "auto":
        if not Path(mode).is_file():
            raise UserError(f"--pretrained {mode}: no such file; give a file, auto or none")
        return Path(mode)
    for suffix in (".safetensors", ".pth"):
        path = WEIGHTS / f"{encoder.removeprefix('tu-')}{suffix}"
        if path.is_file():
            return path
    import timm

    from src.models.pretrained import find_weights

    if encoder.startswith("tu-") or timm.is_model(encoder):
        return find_weights(encoder.removeprefix("tu-"))
    raise UserError(
        f"--pretrained auto: no weights of encoder {encoder}; put them at "
        f"{WEIGHTS / encoder}.safetensors (or .pth), or say --pretrained none"
    )
