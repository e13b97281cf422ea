"""Images a second and core of the input pipeline, beside timm's transforms and torchvision v2.

    python benchmarks/input_pipeline.py   (half a minute; needs scikit-image)

Crops of scikit-image's photographs, 640x480 and 1920x1080, are read as JPEG files and become
uint8 (3, 224, 224) tensors: random resized crop, flip, and a change of brightness, contrast and
saturation of the same strength for all; ours also turns the hue and rotates half of the images.
Contestants alternate within each round, on one thread; what counts is CPU time, which others on
the machine disturb least. Printed are medians (least … most) over the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import os
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

from benchmarks.timing import PHOTOGRAPHS, alternate, paired, print_table, spread, write_photographs
from src.data.cache import DiskCache, RamCache
from src.data.canonical import ImageSource, Source, canonical_side
from src.data.dataset import ImageDataset
from src.data.transforms import train_transform

SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920)}
TARGET = 224
SCALE, COLOR = 0.5, 0.2
Contestant = Callable[[int, int], torch.Tensor]


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


def rate(load: Contestant, num_rows: int, least_s: float) -> Callable[[], float]:
    """Return a turn of at least ``least_s`` CPU seconds over all rows, which returns images/s."""
    turns = itertools.count()

    def turn() -> float:
        epoch, count, start = next(turns), 0, time.process_time()
        while (spent := time.process_time() - start) < least_s or count % num_rows:
            assert load(epoch, count % num_rows).shape == (3, TARGET, TARGET)
            count += 1
        return count / spent

    return turn


def contest(size: tuple[int, int], args: argparse.Namespace) -> dict[str, list[float]]:
    """Measure all contestants on photographs of one size."""
    with tempfile.TemporaryDirectory() as folder:
        names = write_photographs(Path(folder), len(PHOTOGRAPHS), size, args.quality)
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
        turns = {k: rate(load, len(names), args.seconds) for k, load in contestants.items()}
        return alternate(turns, args.rounds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each turn, at least")
    parser.add_argument("--quality", type=int, default=75, help="of the JPEG files; 75 is Pillow's")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    also = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "pillow"))
    print(f"JPEG quality {args.quality}, {TARGET} px, n = {args.rounds} rounds, {also}\n")
    rows = []
    for label, size in SIZES.items():
        rates = contest(size, args)
        rows += [
            (f"{label}, {name}", spread(values, 0), spread(paired(values, rates["timm"]), 1))
            for name, values in rates.items()
        ]
    print_table(("photographs, pipeline", "images/s a core", "× timm"), rows)


if __name__ == "__main__":
    main()
