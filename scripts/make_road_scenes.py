"""Write generated road scenes with lane masks: python scripts/make_road_scenes.py input/roads.

Mask scripts make a small set by themselves where no --data_dir is given; this makes any other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.data.road_conditions import CONDITIONS, SHARE
from src.data.road_scenes import write_scenes


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("dest", type=Path, help="folder to fill: images/, masks/, two lists")
    parser.add_argument("--num_scenes", type=int, default=30, help="a fifth of them are for test")
    parser.add_argument("--num_frames", type=int, default=8, help="frames of each scene")
    parser.add_argument("--size", type=int, nargs=2, default=(384, 384), metavar=("H", "W"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--conditions", nargs="*", default=CONDITIONS, choices=CONDITIONS,
        help="what makes scenes hard and may occur; none named = none",
    )  # fmt: skip
    parser.add_argument("--share", type=float, default=SHARE, help="of scenes with each of them")
    options = vars(parser.parse_args(arguments))
    if not 0 <= options["share"] <= 1:
        parser.error(f"--share {options['share']}: a share lies in 0..1")
    dest, size = options.pop("dest"), tuple(options.pop("size"))
    print(f"{write_scenes(dest, size=size, **options)}: written; pass it as --data_dir")
    return 0


if __name__ == "__main__":
    sys.exit(main())
