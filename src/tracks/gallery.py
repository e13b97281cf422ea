"""A folder of predicted masks: run lengths, overlays, scores, the worst; two folders compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.data.decode import decode_image, decode_mask
from src.data.mask_split import VOID, VoidReader
from src.data.sources.masks import MaskIndex
from src.ensemble.masks import (
    draw_overlay,
    make_gallery,
    write_picture,
    write_rle_csv,
)
from src.files import read_json, write_json
from src.metrics.bootstrap import compare_counts
from src.metrics.counts import SegmentationCounts, class_iou, load_counts
from src.metrics.segmentation import SegmentationMeter, score_counts
from src.runs import Run
from src.script import UserError
from src.tasks.segmentation import background_label
from src.tracks.scoring import BOUNDARY_PX, report

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


@dataclass
class MaskFolder:
    """Where masks are written and what is made of them."""

    root: Path

    @property
    def masks(self) -> Path:
        """Index PNGs, named as the images."""
        return self.root / "masks"

    @property
    def scores(self) -> Path:
        """Scores by their full names, and the ids of the images."""
        return self.root / "scores.json"

    @property
    def counts(self) -> Path:
        """Pixel counts of every image."""
        return self.root / "counts.npz"

    def start(self, index: MaskIndex, rows: np.ndarray) -> None:
        """Settle which images there will be masks of; scores of earlier masks are deleted."""
        for stale in (self.scores, self.counts, self.root / "worst.png"):
            stale.unlink(missing_ok=True)
        self.index, self.rows = index, rows
        stems = [Path(name).stem for name in index.table["image"]]
        ids = index.table["id"].tolist()
        double = max(Counter(stems).values()) > 1  # 20.jpg in every clip: the id tells them apart
        self.names = ids if double else stems

    def mask(self, row: int) -> Path:
        """Path of a row's mask."""
        return self.masks / f"{self.names[row]}.png"

    def target(self, row: int) -> np.ndarray | None:
        """Read the true mask, None where it is withheld."""
        name = str(self.index.table["target"].iat[row])
        return VoidReader(self.index)(str(self.index.root / name)) if name else None

    def read(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (row, mask) as written."""
        for row in self.rows.tolist():
            yield row, decode_mask(self.mask(row))

    def write_run_lengths(self) -> int:
        """Write ``masks.csv`` from the PNGs, each line checked; return the number of lines."""
        classes = self.index.classes
        first = 0 if background_label(classes) is None else 1
        ids = self.index.table["id"].tolist()
        pairs = ((ids[row], mask) for row, mask in self.read())
        return write_rle_csv(self.root / "masks.csv", pairs, range(first, len(classes)))

    def overlay(self, row: int, mask: np.ndarray) -> np.ndarray:
        """Draw a mask over its image, the true outline in white: (H, W, 3) uint8."""
        background = background_label(self.index.classes)
        image = decode_image(self.index.image_path(row))
        return draw_overlay(image, mask, self.target(row), background=background, ignore_index=VOID)

    def write_overlays(self) -> None:
        """Write ``overlays/``, one picture an image."""
        for row, mask in self.read():
            write_picture(
                self.root / "overlays" / f"{self.names[row]}.png", self.overlay(row, mask)
            )
        print(f"{self.root / 'overlays'}: {len(self.rows)} pictures")

    def score(self, how: str, worst: int = 12) -> None:
        """Write scores, counts and ``worst.png`` if every image has a mask; say so if not."""
        if not all(self.index.table["target"].iloc[self.rows]):
            print("no scores: the masks of these images are not here")
            return
        background = background_label(self.index.classes)
        meter = SegmentationMeter(
            self.index.num_classes, VOID, self.index.classes, BOUNDARY_PX, background=background
        )
        for row, mask in self.read():
            target = self.target(row)
            assert target is not None
            batch = {"mask": torch.from_numpy(target)[None], "index": torch.tensor([row])}
            meter.update(torch.from_numpy(mask.astype(np.int64))[None], batch)
        counts = meter.counts()
        scores = score_counts(counts, self.index.classes)
        counts.save(self.counts)
        table = self.index.table
        content = {"counted": how, "scores": scores, "classes": list(self.index.classes)}
        content |= {"ids": table["id"].iloc[self.rows].tolist()}
        content |= {"groups": table["group"].iloc[self.rows].tolist()}
        write_json(self.scores, content)
        report(self.index.classes, scores, how)
        self.write_worst(counts, worst)

    def write_worst(self, counts: SegmentationCounts, number: int) -> None:
        """Write ``worst.png``: the images of the lowest mean IoU over their classes."""
        each = np.eye(len(counts))
        iou = class_iou(counts, each)
        if counts.background >= 0:
            iou = iou[:, counts.foreground]
        mean = np.array(
            [row[np.isfinite(row)].mean() if np.isfinite(row).any() else 1 for row in iou]
        )
        order = np.argsort(mean, kind="stable")[:number]
        if not len(order):
            return
        rows = [int(counts.index[place]) for place in order]
        tiles = [self.overlay(row, decode_mask(self.mask(row))) for row in rows]
        captions = [
            f"{self.names[row]} IoU {mean[p]:.3f}" for row, p in zip(rows, order, strict=True)
        ]
        write_picture(self.root / "worst.png", make_gallery(tiles, captions))


def load_counted(folder: Path) -> tuple[SegmentationCounts, list[str], list[str]]:
    """Read the counts, ids and groups that a run or a folder of masks holds.

    Raises:
        UserError: neither.
    """
    run, masks = Run(folder), MaskFolder(folder)
    if run.oof_counts.is_file():
        counts = load_counts(run.oof_counts)
        with np.load(run.oof, allow_pickle=False) as oof:
            return counts, oof["ids"].tolist(), oof["groups"].tolist()
    if masks.counts.is_file():
        about = read_json(masks.scores)
        return load_counts(masks.counts), about["ids"], about["groups"]
    raise UserError(f"{folder}: neither a finished run nor a folder of scored masks")


def print_comparison(first: Path, second: Path, statistics: Sequence[str] = COMPARED) -> None:
    """Print both scores and the bootstrap interval of each difference.

    Raises:
        UserError: other images, or nothing to compare.
    """
    (counts, ids, groups), (others, other_ids, _) = load_counted(first), load_counted(second)
    if sorted(ids) != sorted(other_ids) or counts.target.shape != others.target.shape:
        raise UserError(f"{first} and {second} predicted different images: compare one split")
    by_row = dict(zip(sorted(counts.index.tolist()), groups, strict=True))
    table = np.array([by_row.get(row, "") for row in range(int(counts.index.max()) + 1)])
    print(f"A {first}\nB {second}\n{len(ids)} images, paired bootstrap")
    if len(set(filter(None, groups))) == 1 and all(groups):
        print("all of one group: these images cannot tell noise from difference")
    for name in statistics:
        print(f"  {compare_counts(counts, others, name, groups=table)}")
