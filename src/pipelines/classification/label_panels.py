"""Panels of the report where an image may have several labels: scores by label, costly mistakes.

The diagnosis is of pairs of images and labels, image by image (``src/classes.py``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.ensemble.diagnosis import costliest
from src.metrics.classification import Array
from src.metrics.contest import mean_label_auc, mean_label_precision
from src.page import Html, gallery, note, percent, table
from src.pipelines.classification.panels import Study
from src.pipelines.pictures import show_photograph


def labels(found: Study) -> list[Html]:
    """Show every label: images that have it, loss, area under the curve, average precision."""
    names = found.diagnosis.oof.labels
    targets, losses, right = (
        values.reshape(-1, len(names))
        for values in (found.diagnosis.oof.targets, found.diagnosis.losses, found.diagnosis.right)
    )
    probs = present(found).reshape(targets.shape)
    total = max(float(losses.sum()), 1e-12)
    rows = []
    for k in np.argsort(-losses.sum(axis=0), kind="stable").tolist():
        one = probs[:, [k]], targets[:, [k]]
        share = percent(float(losses[:, k].sum()) / total)
        rows.append(
            [names[k], int(targets[:, k].sum()), float(probs[:, k].mean()),
             float(losses[:, k].mean()), float(right[:, k].mean()), mean_label_auc(*one),
             mean_label_precision(*one), share]
        )  # fmt: skip
    heads = ["label", "images", "mean p", "log loss", "right at .5", "AUC", "average precision",
             "of all loss"]  # fmt: skip
    caption = f"{len(names)} labels on {len(targets):,} images, the costliest first"
    said = "of the blend, before each label's own calibration"
    return [table(heads, rows, caption=caption), note(said)]


def present(found: Study) -> Array:
    """Return the blend's probability of the label of each pair, (N · L,)."""
    probs, has = found.diagnosis.true_probs, found.diagnosis.oof.targets > 0
    return np.where(has, probs, 1.0 - probs)


def mistakes(found: Study, root: Path | None, examples: int) -> dict[str, list[Html]]:
    """Show the costliest pairs of image and label, with photographs where data are there.

    Args:
        found: the study.
        root: data folder, None where it is not there.
        examples: photographs.
    """
    oof, losses = found.diagnosis.oof, found.diagnosis.losses
    probs, names, images = present(found), oof.labels, found.images
    worst = costliest(losses, max(examples, 24))
    listed: list[list[object]] = []
    shown: list[Html] = []
    for row in worst:
        name, label = str(oof.ids[row]).partition("\0")[0], names[row % len(names)]
        said = "has it" if oof.targets[row] else "has it not"
        listed.append([name, label, said, float(probs[row]), float(losses[row])])
        if root is not None and len(shown) < examples:
            caption = f"{label}: {said}, p {probs[row]:.1%}, loss {losses[row]:.2f}"
            shown += show_photograph(root / images[name], caption)
    caption = "the costliest OOF pairs of image and label"
    listing = table(["id", "label", "", "p of label", "log loss"], listed, caption=caption)
    return {"Costliest mistakes": [*([gallery(shown)] if shown else []), listing]}
