"""Panels of the report on mask runs: scores and how they were counted, IoU by class, overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.masks import read_labelled
from src.engine.runtime import start_runtime
from src.metrics.bootstrap import MIN_UNITS, draw_weights
from src.metrics.counts import SegmentationCounts, class_iou, class_precision, class_recall
from src.page import Html, gallery, interval_plot, line_plot, note, picture, plots, table
from src.pipelines.pictures import encode_jpeg
from src.pipelines.segmentation.ensemble import blend_maps, find_source, load_member
from src.pipelines.segmentation.report import MaskFolder, image_ious, load_counted
from src.pipelines.segmentation.score import to_mask
from src.runs import Done, Run, read_done
from src.script import UserError
from src.tool_config import ReportConfig

NUM_OVERLAYS = 12  # of a run: the worst half, then evenly up to the best
MAX_SHOWN = 8  # runs that are shown with overlays
SIDE = 360


def mask_panels(config: ReportConfig, runs: Sequence[Run]) -> dict[str, list[Html]]:
    """Show each mask run, the first ones with overlays: heading → parts."""
    found = {}
    for place, run in enumerate(runs):
        name = f"Masks: {run.folder.parent.name} {run.folder.name}"
        try:
            counts, ids, groups = load_counted(run.folder)
            done = read_done(run)
        except (UserError, FileNotFoundError) as error:
            found[name] = [note(error)]
            continue
        names = [
            k.removeprefix("pooled_iou/") for k in done["scores"] if k.startswith("pooled_iou/")
        ]
        parts = [*contract(done), *class_panel(counts, names, groups)]
        if config.examples and place < MAX_SHOWN:
            parts += overlay_panel(config, run, counts, ids)
        found[name] = parts
    return found


def contract(done: Done) -> list[Html]:
    """Show the scores by their full names, how they were counted, and views and thresholds."""
    scores = {k: float(v) for k, v in done["scores"].items() if "/" not in k}
    rows = [[name, value] for name, value in scores.items()]
    keys = ("plain", "nested", "threshold", "score", "best_threshold", "best")
    views = [
        [int(row["views"]), *(float(row[key]) for key in keys)]
        for row in done["views"]
        if "nested" in row
    ]
    parts = [note(f"counted on {done['counted']}")]
    parts.append(table(["score", "value"], rows, caption="scores; trivial: all background"))
    if views:
        heads = ["views", "score at 0.5", "nested", "threshold", "there", "best threshold", "there"]
        how = "nested: each fold at what the others chose; the last four on the images that chose"
        parts.append(table(heads, views, caption=f"{done['monitor']} by number of views; {how}"))
    return parts


def class_panel(
    counts: SegmentationCounts, names: Sequence[str], groups: Sequence[str]
) -> list[Html]:
    """Show pooled IoU of every class with its bootstrap interval over images or their groups."""
    order = np.argsort(counts.index, kind="stable")  # the groups are in the order of the rows
    counts, ordered = counts.sort(), [groups[n] for n in order] if len(groups) == len(order) else []
    ones = np.ones((1, len(counts)))
    iou, precision, recall = (
        score(counts, ones)[0] for score in (class_iou, class_precision, class_recall)
    )
    weights, units = draw_weights(len(counts), ordered or None, num_resamples=500)
    low = high = np.full(len(iou), np.nan)
    if units >= MIN_UNITS:
        low, high = np.nanquantile(class_iou(counts, weights), [0.025, 0.975], axis=0)
    pixels = counts.target.sum(0)
    rows: list[list[Any]] = [
        [names[k], float(iou[k]), float(low[k]), float(high[k]), float(precision[k]),
         float(recall[k]), int((counts.target[:, k] > 0).sum()), float(pixels[k] / pixels.sum())]
        for k in range(len(iou))
    ]  # fmt: skip
    heads = ["class", "pooled IoU", "low", "high", "precision", "recall", "images", "share"]
    mean = np.sort(image_ious(counts))
    ranked = {"images": [(float(n + 1), float(v)) for n, v in enumerate(mean)]}
    return [
        plots([
            interval_plot([(str(r[0]), r[1], r[2], r[3]) for r in rows[:40]],
                          title=f"pooled IoU, 95 % over {units} images or groups", x_label="IoU"),
            line_plot(ranked, title="mean foreground IoU of each image, worst to best",
                      x_label="image", y_label="IoU"),
        ]),
        table(heads, rows, caption="classes"),
    ]  # fmt: skip


def overlay_panel(
    config: ReportConfig, run: Run, counts: SegmentationCounts, ids: Sequence[str]
) -> list[Html]:
    """Predict some images again and show the masks over them, worst to best."""
    try:
        member = load_member(run)
        source, root, options = find_source("", "", member.resolved)
        if not Path(root).is_dir():
            return [note(f"no overlays: {root} is not there")]
        index = read_labelled(source, root, **options)
    except UserError as error:
        return [note(f"no overlays: {error}")]
    by_row = dict(zip(counts.index.tolist(), image_ious(counts).tolist(), strict=True))
    known = index.table["id"].tolist()
    if max(by_row) >= len(known) or {known[row] for row in by_row} != set(ids):
        return [note("no overlays: the images are not those that were held out")]
    ranked = sorted(by_row, key=lambda row: (by_row[row], row))
    half = NUM_OVERLAYS // 2
    rest = ranked[half:]
    spread = np.unique(np.linspace(0, len(rest) - 1, min(half, len(rest))).astype(int))
    rows = ranked[:half] + [rest[n] for n in spread]
    shown = MaskFolder(run.folder)
    shown.index = index
    runtime = start_runtime(config.device, config.precision, "auto")
    drawn = {}
    for row, probs in blend_maps([member], index, np.array(rows), runtime):
        overlay = shown.overlay(row, to_mask(probs, member.threshold))
        drawn[row] = picture(encode_jpeg(overlay, SIDE), f"IoU {by_row[row]:.3f}  {known[row]}")
    return [note("worst to best; tint: predicted, white: true outline"),
            gallery([drawn[row] for row in rows])]  # fmt: skip
