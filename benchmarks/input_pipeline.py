"""Images a second and core of the input pipeline, beside timm's transforms and torchvision v2.

    python benchmarks/input_pipeline.py   (half a minute; needs scikit-image)

Photographs from scikit-image, tiled to 640x480 and 1920x1080, are read as JPEG files and become
uint8 (3, 224, 224) tensors: random resized crop, flip, and a change of brightness, contrast and
saturation of the same strength for all; ours also turns the hue and rotates half of the images.
Contestants alternate within each round, on one thread; what counts is CPU time, which others on
the machine disturb least. Prints a Markdown table of medians and ranges over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from PIL import Image

from src.data.cache import DiskCache, RamCache
from src.data.canonical import ImageSource, Source, canonical_side
from src.data.dataset import ImageDataset
from src.data.transforms import train_transform

SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920)}
TARGET = 224
SCALE, COLOR = 0.5, 0.2
Contestant = Callable[[int, int], torch.Tensor]


def write_photographs(folder: Path, size: tuple[int, int], quality: int) -> list[str]:
    """Tile scikit-image's colour photographs to (height, width) and save them as JPEG."""
    try:
        from skimage import data
    except ImportError:
        sys.exit("error: no photographs: pip install scikit-image")

    names = []
    for name in ("astronaut", "cat", "coffee", "rocket", "retina", "stereo_motorcycle"):
        photograph = getattr(data, name)()
        photograph = photograph[0] if isinstance(photograph, tuple) else photograph
        repeats = [-(-size[axis] // photograph.shape[axis]) for axis in (0, 1)]
        tiled = np.tile(photograph, (*repeats, 1))[: size[0], : size[1]]
        Image.fromarray(tiled).save(folder / f"{name}.jpg", quality=quality)
        names.append(f"{name}.jpg")
    return names


def timm_contestant(paths: list[str]) -> Contestant:
    """Pillow and timm's transforms, as its own loader uses them: uint8 for the device."""
    from timm.data import create_transform

    transform = create_transform(
        TARGET, is_training=True, use_prefetcher=True, scale=(SCALE, 1.0), color_jitter=COLOR
    )

    def load(_: int, row: int) -> torch.Tensor:
        with Path(paths[row]).open("rb") as file:
            image = Image.open(file).convert("RGB")
        return torch.as_tensor(transform(image))

    return load


def torchvision_contestant(paths: list[str]) -> Contestant:
    """Decode by torchvision, transform by its v2 on uint8 tensors."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(TARGET, scale=(SCALE, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(COLOR, COLOR, COLOR),
        ]
    )
    return lambda _, row: transform(decode_image(paths[row], mode=ImageReadMode.RGB))


def our_contestant(source: Source) -> Contestant:
    """A training sample as the loop gets it."""
    transform = train_transform(TARGET, scale_min=SCALE, color=COLOR)
    data = ImageDataset(source, range(len(source)), transform)
    return lambda epoch, row: data[(epoch, row)]["image"]


def decode_alone(paths: list[str]) -> Contestant:
    """Decode at 1/8, nearly all of it entropy decoding: what nobody who reads the file avoids."""

    def load(_: int, row: int) -> torch.Tensor:
        cv2.imdecode(np.fromfile(paths[row], np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
        return torch.empty(3, TARGET, TARGET, dtype=torch.uint8)

    return load


def measure(
    contestants: dict[str, Contestant], num_rows: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return images/s of each contestant, one number a round of at least ``seconds``."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):  # the first warms up
        for name, load in contestants.items():
            count, start = 0, time.process_time()
            while (spent := time.process_time() - start) < seconds or count % num_rows:
                assert load(number, count % num_rows).shape == (3, TARGET, TARGET)
                count += 1
            if number:
                rates[name].append(count / spent)
    return rates


def contest(size: tuple[int, int], args: argparse.Namespace) -> dict[str, list[float]]:
    """Measure all contestants on photographs of one size."""
    with tempfile.TemporaryDirectory() as folder:
        names = write_photographs(Path(folder), size, args.quality)
        paths = [str(Path(folder) / name) for name in names]
        source = ImageSource(folder, names, canonical_side(TARGET))
        contestants = {
            "timm": timm_contestant(paths),
            "torchvision v2": torchvision_contestant(paths),
            "(entropy decoding alone)": decode_alone(paths),
            "ours, no cache": our_contestant(source),
            "ours, `--cache disk`": our_contestant(DiskCache(source, Path(folder) / "cache")),
            "ours, `--cache ram`": our_contestant(RamCache(source)),
        }
        return measure(contestants, len(names), args.rounds, args.seconds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each turn, at least")
    parser.add_argument("--quality", type=int, default=75, help="of the JPEG files; 75 is Pillow's")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    names = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "pillow")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(f"\nJPEG quality {args.quality}, {TARGET} px, n = {args.rounds} rounds\n")
    print("| photographs | pipeline | images/s a core, median (range) | × timm |")
    print("|---|---|---:|---:|")
    for label, size in SIZES.items():
        rates = contest(size, args)
        for name, values in rates.items():
            ratio = statistics.median(v / t for v, t in zip(values, rates["timm"], strict=True))
            print(
                f"| {label} | {name} | {statistics.median(values):,.0f} "
                f"({min(values):,.0f}-{max(values):,.0f}) | {ratio:.1f} |"
            )


if __name__ == "__main__":
    main()
