"""Predict masks: python infer_segmentation.py --runs "output/lane/*/fold*" --split test.

Finished runs of any mask track and images in, index PNGs and run lengths at the images' own size
out; scores and the gallery of the worst where masks exist. Runs of several data sets get a folder
each; those of one are blended. --compare A B sets two runs, or two folders of masks, side by side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from src.engine.interrupt import stoppable
from src.mask_config import InferSegmentationConfig
from src.reader import parse
from src.runs import Output, Run, own_folder
from src.script import UserError, counted, run_script

if TYPE_CHECKING:
    import numpy as np

    from src.data.sources.masks import MaskIndex
    from src.engine.runtime import Runtime
    from src.pipelines.segmentation.ensemble import Member
    from src.pipelines.segmentation.postprocess import Cleaning

_SHOWN = 30  # classes that are named


@stoppable("the same command starts again")
def main(argv: list[str]) -> int:
    """Predict, or compare."""
    config = parse(
        InferSegmentationConfig, argv, prog="infer_segmentation.py", description=__doc__ or ""
    )
    if config.compare:
        if len(config.compare) != 2:
            raise UserError("--compare takes two runs, or two folders of masks")
        from src.pipelines.segmentation.report import print_comparison

        print_comparison(*map(Path, config.compare))
        return 0
    sets = find_members(config)
    default = Output(Path(config.output_dir)).masks(config.split)
    root = Path(config.output) if config.output else default
    several = len(sets) > 1
    if several:
        print(f"{len(sets)} data sets, a folder each: {', '.join(sets)}")
    with own_folder(root, (), ours=root == default) if several else nullcontext():
        for name, members in sets.items():
            index, rows = read_images(config, members)
            for note in index.notes:
                print(f"note: {note}")
            folder = root / name if several else root
            with own_folder(folder, ("masks", "overlays"), ours=root == default):
                predict_images(config, members, index, rows, folder)
    return 0


def find_members(config: InferSegmentationConfig) -> dict[str, list[Member]]:
    """Read the runs of each data set and settle their weights there; those without are left out."""
    from src.pipelines.segmentation.ensemble import (
        by_data_set,
        check_alike,
        find_runs,
        load_member,
        settle_shares,
    )
    from src.tasks.segmentation import background_label

    if not config.runs and not config.checkpoint:
        raise UserError("--runs is missing: folders of runs, as in 'output/lane/*/fold*'")
    folder = Path(os.path.realpath(config.checkpoint)).parent
    if config.checkpoint and not Path(config.checkpoint).is_file():
        raise UserError(f"--checkpoint {config.checkpoint}: no such file")
    if not config.runs and not Run(folder).config.exists():
        raise UserError(
            f"--checkpoint {config.checkpoint}: no config.yaml beside it; name its run, too, --runs"
        )
    runs = find_runs(config.runs) if config.runs else [Run(folder)]
    if config.checkpoint and len(runs) > 1:
        raise UserError(f"--checkpoint belongs to one run, but --runs names {len(runs)}")
    members = [
        load_member(run, checkpoint=config.checkpoint, tta_steps=config.tta_steps) for run in runs
    ]
    found = {}
    for name, own in by_data_set(members, data_dir=config.data_dir).items():
        check_alike(own, one_data_set=not config.data_dir)
        if config.threshold >= 0 and background_label(own[0].resolved["classes"]) is None:
            raise UserError(
                "--threshold is the least probability of the foreground, and of the classes of "
                f"{name} none is called background: leave it out"
            )
        shares, how = settle_shares(own, config.blend)
        pairs = zip(own, shares, strict=True)
        found[name] = [replace(member, share=share) for member, share in pairs if share > 0]
        if len(own) > 1:
            print(f"{name}: {len(own)} runs, {how}")
    return found


def read_images(
    config: InferSegmentationConfig, members: Sequence[Member]
) -> tuple[MaskIndex, np.ndarray]:
    """Read the images to predict. The one place that sees the test split."""
    import numpy as np

    from src.data.masks import read_labelled, read_test_masks, split_rows
    from src.pipelines.run_folder import parse_fold
    from src.pipelines.segmentation.ensemble import find_source

    first = members[0].resolved
    source, root, options = find_source(config.source, config.data_dir, first)
    if config.split == "test":
        index = read_test_masks(source, root, **options)
        rows = np.arange(len(index))
    else:
        saved = members[0].options
        by_name = saved.get("group_by_name", False)  # runs of before the option
        index = read_labelled(source, root, by_name=by_name, **options)
        split = split_rows(index, parse_fold(saved["fold"]), saved["folds"], saved["fold_seed"])
        for member in members:
            if member.resolved["split_hash"] != split.hash:
                raise UserError(
                    f"{member.run.folder} held out other images than {members[0].run.folder} or "
                    "than are there now: --split valid takes runs of one fold"
                )
        rows = split.valid
        if not len(rows):
            raise UserError(f"{members[0].run.folder} held nothing out: use --split test")
    if list(index.classes) != first["classes"]:
        raise UserError(
            f"{root} has the classes {', '.join(index.classes)}, the runs know "
            f"{', '.join(first['classes'])}: if they mean the same, write the latter into "
            f"{Path(root) / 'classes.txt'}, one a line, and pass --source folders"
        )
    return index, rows


def predict_images(
    config: InferSegmentationConfig,
    members: Sequence[Member],
    index: MaskIndex,
    rows: np.ndarray,
    root: Path,
) -> None:
    """Write the mask of every image, and all that is made of the masks."""
    from tqdm import tqdm

    from src.engine.runtime import start_runtime
    from src.pipelines.segmentation.ensemble import blend_maps, settle_threshold
    from src.pipelines.segmentation.report import MaskFolder, write_index_png
    from src.pipelines.segmentation.score import to_mask

    runtime: Runtime = start_runtime(config.device, config.precision, "auto")
    folder = MaskFolder(root)
    threshold, origin = config.threshold, "given"
    if threshold < 0:
        threshold, origin = settle_threshold(members)
    clean = find_cleaning(members) if config.postprocess else None
    folder.start(index, rows)
    maps = blend_maps(
        members, index, rows, runtime, resolution=config.resolution,
        batch_size=config.infer_batch_size, num_workers=config.num_workers,
    )  # fmt: skip
    for row, probs in tqdm(maps, "masks", total=len(rows), leave=False, disable=None):
        mask = to_mask(probs, threshold)
        if clean is not None:
            mask = clean(mask)
        write_index_png(folder.mask(row), mask)
    lines = folder.write_run_lengths()
    views = " or ".join(map(str, sorted({member.num_views for member in members})))
    how = f"{counted(len(rows), f'{config.split} image')} at native size, "
    how += f"{views} view{'s' * (views != '1')}"
    tuned = config.threshold < 0 and all("views" in member.done for member in members)
    if threshold != 0.5 and tuned:
        how += f", threshold {threshold:.3g} {origin}"
        how += " (chosen on these images)" * (config.split == "valid")
    print(f"{folder.masks}: masks of {how}; {lines}", flush=True)
    if len(index.classes) > 2:  # class_4 may be 2
        shown = ", ".join(f"{k} = {name}" for k, name in enumerate(index.classes[:_SHOWN]))
        more = ", …" * (len(index.classes) > _SHOWN)
        print(f"numbers there and in {folder.run_lengths.name}: {shown}{more}")
    if config.overlays:
        folder.write_overlays()
    folder.score(how, worst=config.worst)


def find_cleaning(members: Sequence[Member]) -> Cleaning | None:
    """Return the post-processing of the heaviest member if all found theirs to help, else None."""
    from src.pipelines.segmentation.postprocess import Cleaning

    if not all(member.done.get("cleaning") for member in members):
        return None
    clean = Cleaning(**(max(members, key=lambda member: member.share).done["cleaning"] or {}))
    print(f"post-processing: {clean}")
    return clean


if __name__ == "__main__":
    run_script(main)
