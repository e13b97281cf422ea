"""Write generated road scenes with lane masks: python scripts/make_road_scenes.py input/roads.

Mask scripts make a small set by themselves where no --data_dir is given; this makes any other.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.script import one_line_errors

with one_line_errors():
    from src.config import MAX_SEED
    from src.data.road_conditions import CONDITIONS, SHARE
    from src.data.road_scenes import write_scenes
    from src.option import Options, option
    from src.runs import own_folder
    from src.script import run_script


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(Options, group="data and output"):
    """What is drawn."""

    num_scenes: int = option(30, "a fifth of them are for test", least=2, most=100_000)
    num_frames: int = option(8, "frames of each scene", least=1, most=10_000)
    size: tuple[int, ...] = option((384, 384), "height and width, px", least=16, most=4096)
    seed: int = option(0, "of everything", least=0, most=MAX_SEED)
    share: float = option(SHARE, "of scenes with each of the conditions", least=0, most=1)


def main(argv: list[str] | None = None) -> int:
    """Write the scenes that ``argv`` asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("dest", type=Path, help="folder to fill: images/, masks/, two lists")
    for entry in dataclasses.fields(ScenesConfig):
        several, help = isinstance(entry.default, tuple), entry.metadata["help"]
        kind, nargs = (int, 2) if several else (type(entry.default), None)
        parser.add_argument(f"--{entry.name}", type=kind, nargs=nargs, default=entry.default,
                            help=help)  # fmt: skip
    parser.add_argument(
        "--conditions", nargs="*", default=CONDITIONS, choices=CONDITIONS,
        help="what makes scenes hard and may occur; none named = none",
    )  # fmt: skip
    flags = vars(parser.parse_args(argv))
    dest, conditions = flags.pop("dest"), flags.pop("conditions")
    flags["size"] = tuple(flags["size"])
    ScenesConfig(**flags)  # refuses what makes no sense
    ours = (dest / "scenes.json").is_file()
    with own_folder(dest, ("images", "masks"), ours=ours, name="folder"):
        write_scenes(dest, conditions=conditions, **flags)
    print(f"{dest}: written; pass it as --data_dir")
    return 0


if __name__ == "__main__":
    run_script(main)
