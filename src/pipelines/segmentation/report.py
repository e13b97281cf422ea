"""Predicted masks on disk and on the report's page: PNG, RLE, overlays, scores, comparison."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.classes import nfc
from src.data.decode import decode_image, decode_mask, write_picture
from src.data.masks import VOID, VoidReader, image_size, read_labelled
from src.data.sources.masks import MaskIndex, refuse_size
from src.engine.runtime import start_runtime
from src.files import atomic_write, read_arrays, read_json, write_json
from src.metrics.bootstrap import MIN_UNITS, compare_counts, draw_weights, percentile_interval
from src.metrics.counts import (
    SegmentationCounts,
    class_iou,
    class_precision,
    class_recall,
    load_counts,
)
from src.metrics.segmentation import SegmentationMeter, score_counts
from src.page import Html, gallery, interval_plot, line_plot, note, picture, plots, table
from src.pipelines.pictures import draw_overlay, encode_jpeg, make_gallery
from src.pipelines.run_folder import refuse_lost
from src.pipelines.segmentation.ensemble import Member, blend_maps, find_source, load_member
from src.pipelines.segmentation.score import BOUNDARY_PX, print_scores, to_mask
from src.runs import REPAIR, Done, Run, read_config, read_done
from src.script import UserError, counted, one_line
from src.tasks.segmentation import background_label
from src.tool_config import ReportConfig

COMPARED = (
    "pooled_mean_iou_foreground",
    "pooled_mean_iou",
    "pooled_mean_accuracy",
    "pooled_pixel_accuracy",
    "pooled_mean_precision_foreground",
    "pooled_mean_recall_foreground",
    "pooled_boundary_f1_foreground",
    "image_mean_iou",
    "micro_protocol_iou",
)


def note_others(masks: Path, names: Iterable[str]) -> None:
    """Say that a folder holds masks of other images than those of ``names``, where it does."""
    kept = {nfc(path.relative_to(masks).as_posix()) for path in masks.rglob("*.png")}
    others = sorted(kept - {nfc(f"{name}.png") for name in names})
    if others:
        print(
            f"note: {masks} holds {counted(len(others), 'mask')} of other images, such as "
            f"{one_line(others[0])}: delete them before you submit the folder"
        )


class MaskFolder:
    """Where masks are written and what is made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.masks = root / "masks"  # index PNGs, named as the images
        self.scores = root / "scores.json"  # by their full names, and the ids of the images
        self.counts = root / "counts.npz"  # pixel counts of every image
        self.run_lengths = root / "masks.csv"

    def start(self, index: MaskIndex, rows: np.ndarray) -> None:
        """Settle which images there will be masks of; what was made of earlier masks is deleted."""
        for stale in (self.scores, self.counts, self.root / "worst.png", self.run_lengths):
            stale.unlink(missing_ok=True)
        self.index, self.rows = index, rows
        stems = [Path(name).stem for name in index.table["image"]]
        pairs = zip(index.table["id"], index.table["split"], strict=True)
        # the test split's own ids, where those of train are the same
        self.ids = ids = [n.removeprefix("test/") if s == "test" else n for n, s in pairs]
        # 20.jpg in every clip, a.jpg and A.JPG, one file on a Mac: the id tells them apart
        double = max(Counter(nfc(stem).casefold() for stem in stems).values()) > 1
        self.names = ids if double else stems
        for row in rows.tolist():
            self.overlay(row).unlink(missing_ok=True)
        note_others(self.masks, [self.names[row] for row in rows])

    def mask(self, row: int) -> Path:
        """Path of a row's mask."""
        return self.masks / f"{self.names[row]}.png"

    def overlay(self, row: int) -> Path:
        """Path of a row's overlay."""
        return self.root / "overlays" / f"{self.names[row]}.png"

    def read(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (row, mask) as written."""
        for row in self.rows.tolist():
            yield row, decode_mask(self.mask(row))

    def write_run_lengths(self) -> str:
        """Write ``masks.csv`` from the PNGs, each line checked; say how many and how counted.

        Where the data's own run lengths are counted along the rows, so are these.
        """
        classes = self.index.classes
        first = 0 if background_label(classes) is None else 1
        rows = getattr(self.index.decode, "rows", False)
        pairs = ((self.ids[row], mask.T if rows else mask) for row, mask in self.read())
        lines = write_rle_csv(self.run_lengths, pairs, range(first, len(classes)))
        how = "along the rows" if rows else "down the columns"
        return f"{counted(lines, 'line')} of run lengths ({how}, from 1) checked"

    def write_overlays(self) -> None:
        """Write ``overlays/``, one picture an image."""
        for row, mask in self.read():
            write_picture(self.overlay(row), draw_row(self.index, row, mask))
        print(f"{self.root / 'overlays'}: {counted(len(self.rows), 'picture')}")

    def score(self, how: str, worst: int = 12) -> None:
        """Write scores, counts and ``worst.png`` if every image has a mask; say so if not."""
        images = self.index.table.iloc[self.rows]
        lone = images["id"][images["target"] == ""].tolist()
        if lone:
            why = "the masks of these images are not here"
            if len(lone) < len(images):
                why = f"{counted(len(lone), 'image')} of {len(images)} without a mask, as {lone[0]}"
            print(f"no scores: {why}")
            return
        background = background_label(self.index.classes)
        meter = SegmentationMeter(
            self.index.num_classes, VOID, self.index.classes, BOUNDARY_PX, background=background
        )
        for row, mask in self.read():
            target = true_mask(self.index, row)
            assert target is not None
            meter.add(row, mask, target)
        counts = meter.counts()
        scores = score_counts(counts, self.index.classes)
        counts.save(self.counts)
        content = {"counted": how, "scores": scores, "classes": list(self.index.classes)}
        content |= {"ids": images["id"].tolist(), "groups": images["group"].tolist()}
        write_json(self.scores, content)
        print_scores(self.index.classes, scores, how, counts)
        self.write_worst(counts, worst)

    def write_worst(self, counts: SegmentationCounts, number: int) -> None:
        """Write ``worst.png``: the images of the lowest mean IoU over their classes."""
        mean = image_ious(counts)
        order = np.argsort(mean, kind="stable")[:number]
        if not len(order):
            return
        rows = [int(counts.index[place]) for place in order]
        tiles = [draw_row(self.index, row, decode_mask(self.mask(row))) for row in rows]
        captions = [
            f"{self.names[row]} IoU {mean[p]:.3f}" for row, p in zip(rows, order, strict=True)
        ]
        write_picture(self.root / "worst.png", make_gallery(tiles, captions))


def true_mask(index: MaskIndex, row: int) -> np.ndarray | None:
    """Read the true mask of a row, None where it is withheld.

    Raises:
        UserError: it has not the size of its image.
    """
    if not index.table["target"].iat[row]:
        return None
    mask, size = VoidReader(index)(index.mask_path(row)), image_size(index.image_path(row))
    if mask.shape != size:
        refuse_size(mask.shape, size, index.mask_path(row), index.image_path(row))
    return mask


def draw_row(index: MaskIndex, row: int, mask: np.ndarray) -> np.ndarray:
    """Draw a mask over its image, the true outline in white: (H, W, 3) uint8."""
    image, target = decode_image(index.image_path(row)), true_mask(index, row)
    return draw_overlay(image, mask, target, background=background_label(index.classes))


def image_ious(counts: SegmentationCounts) -> np.ndarray:
    """Return (N,) mean IoU of each image over its classes but the background; 1 without any."""
    iou = class_iou(counts)
    if counts.background >= 0:
        iou = iou[:, counts.foreground]
    return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else 1 for row in iou])


PREDICT = "predict and score them again with infer_segmentation.py"


def load_held_out(run: Run) -> tuple[SegmentationCounts, list[str], list[str]]:
    """Read the counts, ids and groups of what a finished run held out.

    Raises:
        UserError: it held nothing out, or its files are not those that were written.
    """
    done = read_done(run)
    refuse_lost(run, done, run.oof, run.oof_counts)
    if run.oof_counts.name not in done["files"]:
        raise UserError(f"{run.folder} held no images out: there is nothing to compare")
    oof = read_arrays(run.oof, ("ids", "groups"), REPAIR)
    return load_counts(run.oof_counts, REPAIR), oof["ids"].tolist(), oof["groups"].tolist()


def load_counted(folder: Path) -> tuple[SegmentationCounts, list[str], list[str]]:
    """Read the counts, ids and groups that a run or a folder of masks holds.

    Raises:
        UserError: neither.
    """
    run, masks = Run(folder), MaskFolder(folder)
    if run.finished.is_file():
        return load_held_out(run)
    if masks.counts.is_file():
        counts = load_counts(masks.counts, PREDICT)
        try:
            about = read_json(masks.scores, PREDICT)
        except FileNotFoundError:
            raise UserError(f"{masks.scores}: missing; {PREDICT}") from None
        if not isinstance(about.get("ids"), list) or len(about["ids"]) != len(counts):
            raise UserError(f"{masks.scores}: of other masks than {masks.counts}; {PREDICT}")
        return counts, about["ids"], about["groups"]
    raise UserError(f"{folder}: neither a finished run nor a folder of scored masks")


def read_images(member: Member) -> tuple[MaskIndex, np.ndarray]:
    """Read the labelled images of a run again; return them and the rows it held out, rising.

    Raises:
        UserError: they are gone, or others by now.
    """
    source, root, options = find_source("", "", member.resolved)
    if not root.is_dir():
        raise UserError(f"{root} is not there: restore the images that {member.run.folder} learned")
    index = read_labelled(source, root, **options)
    if not member.run.oof_counts.exists():
        return index, np.array([], int)
    counts, ids, _ = load_counted(member.run.folder)
    held = np.sort(counts.index)
    if held[-1] >= len(index) or set(index.table["id"].iloc[held]) != set(ids):
        raise UserError(f"{root}: not the images that {member.run.folder} held out; restore them")
    return index, held


def print_comparison(first: Path, second: Path) -> None:
    """Print both scores and the bootstrap interval of each difference.

    Raises:
        UserError: other images, or nothing to compare.
    """
    (counts, ids, groups), (others, other_ids, _) = load_counted(first), load_counted(second)
    if sorted(ids) != sorted(other_ids) or counts.target.shape != others.target.shape:
        raise UserError(f"{first} and {second} predicted different images: compare one split")
    # an image has another row where the folder has grown: its id is what stays
    counts = replace(counts, index=np.unique(ids, return_inverse=True)[1])
    others = replace(others, index=np.unique(other_ids, return_inverse=True)[1])
    groups = [group for _, group in sorted(zip(ids, groups, strict=True))]
    print(f"A {first}\nB {second}\n{counted(len(ids), 'image')}, paired bootstrap")
    if len(set(filter(None, groups))) == 1 and all(groups):
        print("all of one group: these images cannot tell noise from difference")
    for name in COMPARED:
        print(f"  {compare_counts(counts, others, name, groups=groups)}")


RLE_COLUMNS = ("id", "label", "rle")


def encode_rle(mask: np.ndarray) -> str:
    """Encode a bool mask (H, W) as "start length start length ...".

    Pixels are numbered from 1, down the columns first, as competitions ask for. An empty mask is
    the empty string.
    """
    flat = np.concatenate([[False], np.asarray(mask, bool).T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    return " ".join(map(str, np.stack([starts, lengths], axis=1).ravel().tolist()))


def decode_rle(text: str, height: int, width: int) -> np.ndarray:
    """Decode what :func:`encode_rle` wrote: bool (H, W).

    Raises:
        UserError: no numbers, an odd count, overlapping runs, or pixels beyond the image.
    """
    try:
        numbers = np.array([int(word) for word in text.split()], np.int64)
    except OverflowError as error:
        raise UserError("run lengths hold a number beyond any image") from error
    except ValueError as error:
        raise UserError(f"run lengths hold {error.args[0].split(':')[-1].strip()}") from error
    if len(numbers) % 2:
        raise UserError("run lengths need pairs of start and length: the last number is alone")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    size = height * width
    ends = starts + np.minimum(lengths, size + 1)  # so that the sum cannot wrap around
    rising = (starts[1:] >= ends[:-1]).all()
    inside = ((starts >= 0) & (starts < size) & (ends <= size)).all()
    if not rising or not inside or (lengths < 1).any():
        raise UserError(f"run lengths overlap or leave the {width}x{height} image: wrong size?")
    steps = np.zeros(size + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return np.cumsum(steps[:-1]).astype(bool).reshape(width, height).T


def write_rle_csv(
    path: Path | str, masks: Iterable[tuple[str, np.ndarray]], labels: Sequence[int] = (1,)
) -> int:
    """Write one line (id, label, rle) for each image and label, checked by decoding it.

    ``masks`` are (id, labels (H, W)) pairs; a label that an image lacks gets an empty rle. Return
    the number of lines.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RLE_COLUMNS)
    num_lines = 0
    for name, mask in masks:
        for label in labels:
            rle = encode_rle(mask == label)
            assert np.array_equal(decode_rle(rle, *mask.shape), mask == label), name
            writer.writerow((name, label, rle))
            num_lines += 1
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8"))
    return num_lines


def write_index_png(path: Path | str, mask: np.ndarray) -> None:
    """Write integer labels (H, W) in 0..255 as an 8-bit PNG, atomically."""
    from PIL import Image

    mask = np.asarray(mask)
    assert mask.ndim == 2 and mask.min() >= 0 and mask.max() <= 255, f"{mask.shape} {mask.dtype}"
    image = Image.fromarray(mask.astype(np.uint8))
    with atomic_write(path) as file:
        image.save(file, format="PNG", optimize=True)


NUM_OVERLAYS = 12  # of a run: the worst half, then evenly up to the best
MAX_SHOWN = 8  # runs that are shown with overlays
SIDE = 360


def mask_panels(config: ReportConfig, runs: Sequence[Run]) -> dict[str, list[Html]]:
    """Show each mask run, the first ones with overlays: heading → parts."""
    found = {}
    for place, run in enumerate(runs):
        name = f"Masks: {run.folder.parent.name} {run.folder.name}"
        try:
            counts, _, groups = load_counted(run.folder)
            done = read_done(run)
            # not of the scores: a class nowhere true nor predicted has none
            names = read_config(run)["resolved"]["classes"]
        except (UserError, FileNotFoundError) as error:
            found[name] = [note(error)]
            continue
        parts = [*contract(done), *class_panel(counts, names, groups)]
        if config.examples and place < MAX_SHOWN:
            parts += overlay_panel(config, run, counts)
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
    ones = np.ones((1, len(counts)))
    iou, precision, recall = (
        score(counts, ones)[0] for score in (class_iou, class_precision, class_recall)
    )
    weights, units = draw_weights(len(counts), groups, num_resamples=500)
    low = high = np.full(len(iou), np.nan)
    title = "pooled IoU"
    if units >= MIN_UNITS:
        title += f", 95 % over {units} images or groups"
        low, high = percentile_interval(class_iou(counts, weights))
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
            interval_plot([(str(r[0]), r[1], r[2], r[3]) for r in rows[:40]], title=title,
                          x_label="IoU"),
            line_plot(ranked, title="mean foreground IoU of each image, worst to best",
                      x_label="image", y_label="IoU"),
        ]),
        table(heads, rows, caption="classes"),
    ]  # fmt: skip


def overlay_panel(config: ReportConfig, run: Run, counts: SegmentationCounts) -> list[Html]:
    """Predict some images again and show the masks over them, worst to best."""
    try:
        member = load_member(run)
        index, _ = read_images(member)
    except UserError as error:
        return [note(f"no overlays: {error}")]
    by_row = dict(zip(counts.index.tolist(), image_ious(counts).tolist(), strict=True))
    known = index.table["id"].tolist()
    ranked = sorted(by_row, key=lambda row: (by_row[row], row))
    half = NUM_OVERLAYS // 2
    rest = ranked[half:]
    spread = np.unique(np.linspace(0, len(rest) - 1, min(half, len(rest))).astype(int))
    rows = ranked[:half] + [rest[n] for n in spread]
    runtime = start_runtime(config.device, config.precision, "auto")
    drawn = {}
    for row, probs in blend_maps([member], index, np.array(rows), runtime):
        overlay = draw_row(index, row, to_mask(probs, member.threshold))
        drawn[row] = picture(encode_jpeg(overlay, SIDE), f"IoU {by_row[row]:.3f}  {known[row]}")
    return [note("worst to best; tint: predicted, white: true outline"),
            gallery([drawn[row] for row in rows])]  # fmt: skip
