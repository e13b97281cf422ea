r"""Lane recipes side by side: size, rates, accumulation, post-processing, views, seeds, scenes.

    python benchmarks/lanes.py --data_dir input/lanes                       (a GPU)
    python benchmarks/lanes.py --light --also input/frames                  (a CPU core, minutes)

The default recipe of a YAML and its rows are trained with several seeds and scored on the test
masks at their own size, one view each; then the default's runs with five views, with
post-processing (where cross-validation on held-out images adopts it) and as one ensemble.
Thresholds come from held-out images. Without --data_dir road scenes are drawn, hard ones and plain
ones; the row ``plain scenes`` has seen the latter only. Printed: a table a test set, lane IoU
first, and each difference from the default with its interval over images (paired, whole scenes)
and over seeds (t). What follows ``--`` are options of ``train_lane.py``. What is finished is not
run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import print_table
from src.metrics.bootstrap import draw_weights
from src.metrics.counts import SegmentationCounts, class_boundary_f1, class_iou

ARMS = {  # what is trained → row of the YAML
    "default": "",
    "smaller and shorter": "baseline_320",
    "one rate": "one_rate",
    "no accumulation": "whole_batch",
    "plain scenes": "",  # drawn without conditions
}
VARIANTS = {  # of the default's runs → options of infer_segmentation.py
    "post-processing": ("--postprocess", "true", "--tta_steps", "1"),
    "five views": ("--postprocess", "false", "--tta_steps", "5"),
}
PLAIN = ("--postprocess", "false", "--tta_steps", "1")
LANE = 1
HEAD = (
    "", "lane IoU", "minus the default: over images", "over seeds", "F1 within 2 px",
    "mean IoU with background",
)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """Counts of the test images, one a run (or one of an ensemble), and the images' groups."""

    counts: Sequence[SegmentationCounts]
    groups: Sequence[str]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data_dir", default="", help="lanes with test masks; none = drawn")
    parser.add_argument("--also", nargs="*", default=[], help="more folders with test masks")
    parser.add_argument("--out", type=Path, default=Path("output/lanes"), help="folder of all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--light", action="store_true", help="small nets and scenes, for a CPU")
    options = parser.parse_args(words[:cut])
    data = draw(options) if not options.data_dir else {"default": options.data_dir}
    runs = {
        arm: [train(options, arm, seed, data, words[cut + 1 :]) for seed in options.seeds]
        for arm in ARMS
        if arm != "plain scenes" or arm in data
    }
    for place in (data["default"], *options.also):
        folders = {arm: [[run] for run in found] for arm, found in runs.items()}
        folders |= dict.fromkeys(VARIANTS, folders["default"])
        folders["ensemble"] = [runs["default"]]
        scored = {
            name: load([predict(options, name, group, place) for group in groups])
            for name, groups in folders.items()
        }
        base = scored["default"]
        print(f"{place}, {len(base.groups)} images\n")
        print_table(HEAD, [row(name, own, base) for name, own in scored.items()])
    return 0


def draw(options: argparse.Namespace) -> dict[str, str]:
    """Draw road scenes with every condition and without any; return their folders."""
    from src.data.road_conditions import CONDITIONS
    from src.data.road_scenes import write_scenes

    size, scenes, frames = ((160, 224), 75, 2) if options.light else ((384, 384), 60, 6)
    return {
        name: str(write_scenes(
            options.out / folder, num_scenes=scenes, num_frames=frames, size=size,
            test_share=0.33, conditions=conditions,
        ))
        for name, folder, conditions in (
            ("default", "hard_scenes", CONDITIONS), ("plain scenes", "plain_scenes", ())
        )
    }  # fmt: skip


def train(
    options: argparse.Namespace, arm: str, seed: int, data: dict[str, str], rest: Sequence[str]
) -> Path:
    """Train a run if it is not finished; return its folder."""
    import train_lane

    name = f"{arm.replace(' ', '_')}-{seed}"
    config = "configs/lane_light.yaml" if options.light else "configs/lane.yaml"
    flags = ["--config", config, "--name", name, "--seed", str(seed), *rest]
    flags += ["--data_dir", data.get(arm, data["default"]), "--output_dir", str(options.out)]
    flags += ["--model", ARMS[arm]] if ARMS[arm] else []
    flags += ["--grow_micro_batch", "false"]  # a large card would accumulate nothing
    flags += ["--postprocess", "true"] if arm == "default" else []
    if train_lane.main(flags):
        sys.exit(f"{name} failed")
    return options.out / "lane" / name / "fold0"


def predict(options: argparse.Namespace, name: str, runs: Sequence[Path], place: str) -> Path:
    """Predict and score the test images of ``place`` unless that is done; return the folder."""
    import infer_segmentation

    folder = options.out / "masks" / Path(place).name / name.replace(" ", "_")
    folder = folder / "+".join(run.parent.name for run in runs)
    if not (folder / "scores.json").is_file():
        flags = [*VARIANTS.get(name, PLAIN), "--blend", "uniform", "--worst", "0"]
        flags += ["--data_dir", place, "--output", str(folder), "--output_dir", str(options.out)]
        flags += ["--device", "cpu"] if options.light else []
        infer_segmentation.main(["--runs", *map(str, runs), *flags])
    return folder


def load(folders: Sequence[Path]) -> Scored:
    """Read the counts of scored masks."""
    from src.pipelines.segmentation.report import load_counted

    found = [load_counted(folder) for folder in folders]
    return Scored([counts.sort() for counts, _, _ in found], found[0][2])


def row(name: str, own: Scored, base: Scored) -> list[str]:
    """Return a row's cells: means over runs, and differences with 95 % intervals."""
    from scipy.stats import t as student_t

    n = len(base.groups)
    weights = np.concatenate([np.ones((1, n)), draw_weights(n, base.groups)[0]])
    ious, others = (
        np.stack([class_iou(counts, weights) for counts in part.counts]) for part in (own, base)
    )  # (runs, 1 + resamples, 2), the first of the second axis as the images are
    f1 = np.mean([class_boundary_f1(counts, weights[:1])[0, LANE] for counts in own.counts])
    over = ["", ""]
    if own is not base:
        off = (ious.mean(0) - others.mean(0))[:, LANE]
        over[0] = interval(off[0], *np.nanquantile(off[1:], [0.025, 0.975]))
        if len(ious) == len(others) > 1:
            gaps = (ious - others)[:, 0, LANE]
            reach = student_t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
            over[1] = interval(off[0], off[0] - reach, off[0] + reach)
    lane, mean = ious[:, 0, LANE].mean(), ious[:, 0].mean()
    return [name, f"{lane:.4f}", *over, f"{f1:.4f}", f"{mean:.4f}"]


def interval(middle: float, low: float, high: float) -> str:
    """Write a difference and its interval."""
    return f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    sys.exit(main())
