"""Check of images with masks: labels, foreground share, sizes, empty masks, copies."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
from tqdm import tqdm

from src.data.audit import audit_images
from src.data.masks import VOID, VoidReader, image_size, read_labelled
from src.data.sources.masks import MaskIndex
from src.page import gallery, line_plot, plots, table, terms
from src.pipelines.check_data import Check
from src.pipelines.pictures import show_photograph
from src.script import UserError
from src.tasks.segmentation import background_label
from src.tool_config import CheckConfig


def check_masks(config: CheckConfig) -> Check:
    """Read every labelled image and its mask once.

    Raises:
        UserError: what the source refuses: no masks, or none that fit.
    """
    check = Check()
    index = read_labelled(config.source, config.data_dir)
    for line in index.notes:
        check.say("note", line)
    names, read = index.table["id"].tolist(), VoidReader(index)
    background = background_label(index.classes)
    sizes: Counter[str] = Counter()
    pixels, foreground, damaged = [], {}, []
    for row in tqdm(range(len(index)), "masks", leave=False, disable=None):
        path = index.image_path(row)
        try:
            mask = read(str(index.root / str(index.table["target"].iat[row])))
            shape = image_size(path)
        except UserError as error:
            damaged.append([names[row], str(error)])
            continue
        if tuple(mask.shape) != tuple(shape):
            damaged.append([names[row], f"mask {mask.shape}, image {tuple(shape)}"])
            continue
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels.append(np.append(counts[: index.num_classes], counts[VOID]))
        sizes[f"{shape[1]} × {shape[0]}"] += 1
        own = counts[: index.num_classes].sum() - (
            counts[background] if background is not None else 0
        )
        foreground[row] = float(own / max(mask.size - counts[VOID], 1))
    if damaged:
        check.say("error", f"{len(damaged)} masks or images cannot be used, first: {damaged[0][1]}")
        check.sections["Unusable"] = [table(["image", "why"], damaged, caption="unusable")]
    if not pixels:
        return check
    total = np.stack(pixels)
    images = (total > 0).sum(axis=0)
    labels = [*index.classes, "void"]
    rows = [
        [label, int(images[k]), int(total[:, k].sum()), float(total[:, k].sum() / total.sum())]
        for k, label in enumerate(labels)
    ]
    for label, count, *_ in rows[:-1]:
        if not count:
            check.say("warning", f"class {label} is in no mask")
    empty = [row for row, share in foreground.items() if share == 0]
    if empty:
        check.say("note", f"{len(empty)} of {len(index)} images have no foreground")
    ordered = sorted(foreground.values())
    curve = {"images": [(float(n + 1), v) for n, v in enumerate(ordered)]}
    check.numbers |= {"images": len(index), "without_foreground": len(empty), "sizes": dict(sizes)}
    check.numbers["labels"] = {r[0]: {"images": r[1], "pixels": r[2], "share": r[3]} for r in rows}
    check.numbers["foreground"] = {"least": ordered[0], "median": float(np.median(ordered)),
                                   "most": ordered[-1]}  # fmt: skip
    check.sections["Masks"] = [
        terms([("images", f"{len(index):,}"), ("without foreground", f"{len(empty):,}"),
               ("median foreground", f"{np.median(ordered):.2%}")]),
        table(["label", "images", "pixels", "share"], rows, caption="labels"),
        plots([line_plot(curve, title="share of foreground in each image", x_label="image",
                         y_label="share")]),
        table(["size", "images"], [list(item) for item in sizes.most_common(20)],
              caption="sizes of images"),
    ]  # fmt: skip
    show_copies(check, config, index)
    return check


def show_copies(check: Check, config: CheckConfig, index: MaskIndex) -> None:
    """Show images that are copies of each other and lie in different groups."""
    rows = index.table.assign(target="")
    bar = partial(tqdm, desc="copies", total=len(rows), leave=False, disable=None)
    audit = audit_images(rows, index.root, progress=bar)
    for reason in audit.unreadable.values():
        check.say("error", reason)
    names = rows["id"].tolist()
    groups = [group or name for group, name in zip(rows["group"], names, strict=True)]
    sets = [(kind, members) for kind, found in (("exact", audit.exact), ("near", audit.near))
            for members in found if len({groups[row] for row in members}) > 1]  # fmt: skip
    check.numbers["copies_across_groups"] = len(sets)
    if not sets:
        return
    check.say("warning", f"{len(sets)} sets of copies lie in different groups: folds may part them")
    shown = []
    for kind, members in sets[: config.examples // 2]:
        for row in members[:2]:
            shown += show_photograph(index.image_path(row), f"{kind}: {names[row]}")
    listed = [[kind, len(m), "; ".join(names[row] for row in m[:6])] for kind, m in sets[:200]]
    check.sections["Copies"] = [
        gallery(shown), table(["kind", "images", "which"], listed, caption="copies across groups")
    ]  # fmt: skip
