"""Code, weights and wheels in one folder and zip, for machines without internet: scripts/pack.py.

    python scripts/pack.py                                          packed/ and packed.zip
    python scripts/pack.py --wheels segmentation-models-pytorch     and what the image lacks

Upload the zip as a data set (it is unpacked there), attach it to notebooks/kaggle.ipynb. Inside:
code/ (what runs; no tests, data or results), weights/ (of --weights), wheels/ (of --wheels) and
wheels.txt, the list of packages that the image or wheels/ must have.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.files import replacing, write_text
from src.runs import own_file
from src.script import UserError, counted, run_script

ROOT = Path(__file__).resolve().parent.parent
CODE: tuple[str, ...] = ("*.py", "src/**/*.py", "src/page.*", "scripts/*.py", "configs/*.yaml")
CODE += ("requirements.txt", "LICENSE")
WEIGHTS = ("*.safetensors", "*.pth")


def main(arguments: list[str] | None = None) -> int:
    """Pack what ``arguments`` ask for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--dest", type=Path, default=Path("packed"), help="folder; DEST.zip beside")
    parser.add_argument("--weights", type=Path, default=Path("input/weights"), help="their folder")
    parser.add_argument(
        "--wheels", nargs="+", default=[], metavar="PACKAGE", help="to add as wheels"
    )
    parser.add_argument("--python", default="3.11", help="of the image the wheels are for [3.11]")
    options = parser.parse_args(arguments)
    packed = not options.dest.is_symlink() and (options.dest / "wheels.txt").is_file()
    if (options.dest.exists() or options.dest.is_symlink()) and not packed:
        raise UserError(f"{options.dest}: is no packed folder; name another --dest")
    if options.wheels and not any(found.name == "pip" for found in metadata.distributions()):
        raise UserError("--wheels: this environment has no pip: run `uv pip install pip`")
    if not options.weights.is_dir():
        print(f"note: {options.weights}: no such folder; packed without weights")
    archive = options.dest.with_name(f"{options.dest.name}.zip")
    with own_file(archive):
        done = write_pack(options, archive)
    return 0 if done else 1


def write_pack(options: argparse.Namespace, archive: Path) -> bool:
    """Fill the folder and its zip; tell whether all wheels were found."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line and line[0] != "#"]
    mark = options.dest / "wheels.txt"  # first and last: killed at any moment, the folder is ours
    write_text(mark, "\n".join(names) + "\n")
    for old in options.dest.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old != mark:
            old.unlink()
    copy(ROOT, CODE, options.dest / "code")
    copy(options.weights, WEIGHTS, options.dest / "weights")
    if options.wheels and not download(options.wheels, options.dest / "wheels", options.python):
        return False
    deflated = zipfile.ZIP_DEFLATED
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", deflated) as packed:
        for path in sorted(options.dest.rglob("*")):
            packed.write(path, path.relative_to(options.dest))
    for folder in sorted(path for path in options.dest.iterdir() if path.is_dir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        print(f"{folder}: {counted(len(files), 'file')}, {size:.1f} MB")
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB; upload it as a data set")
    return True


def copy(source: Path, patterns: tuple[str, ...], target: Path) -> None:
    """Copy the files of ``source`` that match, with their folders."""
    target.mkdir(parents=True)
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def download(packages: list[str], folder: Path, python: str) -> bool:
    """Fetch wheels for an image of Linux; tell whether all were found."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder)]
    command += ["--only-binary", ":all:", "--python-version", python]
    # wheels of newer releases are often of manylinux_2_28 alone, and pip takes no tag for another
    for platform in ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "any"):
        command += ["--platform", platform]
    return subprocess.run([*command, *packages], check=False).returncode == 0


if __name__ == "__main__":
    run_script(main)
