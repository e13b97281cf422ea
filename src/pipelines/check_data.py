"""Check of a data set before training: counts, sizes, copies, conflicts, shift, labels, masks.

Every image is read once. Nothing is deleted or changed; results are a page, a JSON file and, where
labels can be judged, ``suspect_labels.csv``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from src.classes import SEPARATOR, nfc
from src.data.audit import Audit, audit_images
from src.data.folds import read_folds
from src.data.index import find_root, read_test, read_train
from src.data.masks import VOID, VoidReader, image_size, read_labelled
from src.data.shift import FEATURES, ImageShift, find_shift, measure_image
from src.data.sources.masks import MaskIndex, refuse_size
from src.files import Json, hold, sweep, write_text
from src.metrics.contest import OF_LABELS
from src.page import Html, gallery, line_plot, note, number, page, plots, table, terms
from src.pipelines.pictures import show_photograph
from src.runs import Output
from src.script import UserError, counted
from src.tasks.segmentation import background_label
from src.tool_config import CheckConfig

MAX_SETS = 200  # of copies that are listed
GRAVITY = ("error", "warning", "note")


@dataclass
class Check:
    """What was found: ``findings`` (gravity, text), numbers for JSON, parts of the page."""

    findings: list[tuple[str, str]] = field(default_factory=list)
    numbers: Json = field(default_factory=dict)
    sections: dict[str, list[Html]] = field(default_factory=dict)

    def say(self, gravity: str, text: str) -> None:
        """Add a finding: an ``error`` stops training or prediction, a ``warning`` costs score."""
        assert gravity in GRAVITY
        self.findings.append((gravity, text))

    @property
    def num_errors(self) -> int:
        """How many findings are errors."""
        return sum(gravity == "error" for gravity, _ in self.findings)

    def write(self, output: Output, title: str) -> Path:
        """Write ``report/data.html`` and ``data.json``; return the page's path."""
        rows = sorted(self.findings, key=lambda finding: GRAVITY.index(finding[0]))
        findings = table(["gravity", "finding"], rows, caption="findings") if rows else note("none")
        folder = output.report
        folder.mkdir(parents=True, exist_ok=True)
        found = [{"gravity": gravity, "finding": text} for gravity, text in rows]
        text = json.dumps(self.numbers | {"findings": found}, ensure_ascii=False, indent=1)
        html = page(title, {"Findings": [findings], **self.sections})
        with hold(folder / ".lock", str(folder), wait=True):
            sweep(folder, "data.json", "data.html")
            sweep(output.root, "suspect_labels.csv")
            write_text(folder / "data.json", text.encode("utf-8", "replace").decode() + "\n")
            write_text(folder / "data.html", html)
        return folder / "data.html"


@dataclass(frozen=True)
class Rows:
    """Train and, where there are any, test images in one table with a ``split``."""

    root: Path
    table: pd.DataFrame

    @cached_property
    def is_test(self) -> np.ndarray:
        """Bool (N,)."""
        return (self.table["split"] == "test").to_numpy()

    def name(self, row: int) -> str:
        """Return split, id and label of a row, for people."""
        split, name, target = (str(self.table[c].iat[row]) for c in ("split", "id", "target"))
        place = "" if name.startswith(f"{split}/") else f"{split} "
        return f"{place}{name}" + (f" ({target})" if target else "")


def check_classes(config: CheckConfig, output: Output) -> Check:
    """Check photographs of classes.

    Raises:
        UserError: what the index refuses: no data, no classes, missing images.
    """
    check = Check()
    root = find_root(config.data_dir)
    several = config.metric in OF_LABELS
    train = read_train(
        root,
        allow_outside=config.allow_outside,
        image_column=config.image_column or None,
        label_column=config.label_column or None,
        group_column=config.group_column or None,
        several=several,
    )
    tables, notes = [train.table], list(train.notes)
    try:
        test = read_test(root, allow_outside=config.allow_outside)
        tables.append(test.table)
        notes += test.notes
    except UserError as error:
        check.say("warning", f"no test images: {error}")
    for line in notes:
        check.say("note", line)
    rows = Rows(root, pd.concat(tables, ignore_index=True))
    bar = partial(tqdm, desc="images", total=len(rows.table), leave=False, disable=None)
    audit = audit_images(rows.table, root, progress=bar, measure=measure_image)
    count_classes(check, rows, several=train.several)
    known = np.array(sorted(audit.measured), np.int64)
    features = np.stack([audit.measured[r] for r in known.tolist()]) if len(known) else None
    if features is not None:
        show_sizes(check, features, rows.is_test[known])
    show_unreadable(check, rows, audit)
    show_copies(check, rows, audit, output, config.examples)
    if features is not None and rows.is_test.any():
        show_shift(check, rows, known, find_shift(features, rows.is_test[known], seed=config.seed),
                   config.examples)  # fmt: skip
    show_aliases(check, train.classes)
    from src.pipelines.check_labels import check_labels

    check_labels(check, config, output, train, set(audit.unreadable))
    return check


def count_classes(check: Check, rows: Rows, *, several: bool = False) -> None:
    """Count images by class, or label, and group."""
    train = rows.table[~rows.is_test]
    num_images = len(train)
    if several:
        train = train.assign(target=train["target"].str.split(SEPARATOR)).explode("target")
        train = train[train["target"] != ""]
    counts = Counter(train["target"])
    groups = train[train["group"] != ""].groupby("target")["group"].nunique()
    listed = [[name, n, int(groups.get(name, 0)) or None] for name, n in counts.most_common()]
    few = [name for name, n in counts.items() if n < 5]
    if few:
        check.say(
            "warning",
            f"{counted(len(few), 'class', 'classes')} with fewer than 5 images, as {few[0]!r}",
        )
    most, least = max(counts.values()), min(counts.values())
    numbers = {"train": num_images, "test": int(rows.is_test.sum()), "classes": len(counts)}
    check.numbers |= numbers | {"most": most, "least": least, "by_class": dict(counts)}
    curve = {"classes": [(float(k + 1), float(row[1])) for k, row in enumerate(listed)]}
    heads = ["class", "images", "groups"][: 3 if len(groups) else 2]
    pairs = [(f"{name}", f"{value:,}") for name, value in numbers.items()]
    check.sections["Classes"] = [
        terms([*pairs, ("images of a class", f"{least:,} to {most:,}")]),
        plots([line_plot(curve, title="images of each class, most frequent first",
                         x_label="class", y_label="images")]),
        table(heads, [row[: len(heads)] for row in listed], caption="images by class"),
    ]  # fmt: skip


def show_sizes(check: Check, features: np.ndarray, is_test: np.ndarray) -> None:
    """Show sizes and shapes of train and test images."""
    splits = {name: features[mask] for name, mask in (("train", ~is_test), ("test", is_test))
              if mask.any()}  # fmt: skip
    quantiles = (0, 0.05, 0.5, 0.95, 1)
    rows = []
    for name in ("width", "height", "aspect", "bytes a pixel"):
        column = FEATURES.index(name)
        for split, values in splits.items():
            rows.append([name, split, *map(float, np.quantile(values[:, column], quantiles))])
    common = Counter(map(tuple, features[:, :2].astype(int).tolist())).most_common(12)
    sizes = [[f"{w} × {h}", count] for (w, h), count in common]
    check.numbers["sizes"] = {f"{row[0]} {row[1]}": row[2:] for row in rows}
    heads = ["measure", "split", "least", "5 %", "median", "95 %", "most"]
    check.sections["Sizes"] = [
        table(heads, rows, caption="quantiles"), table(["size", "images"], sizes,
                                                       caption="most frequent sizes"),
    ]  # fmt: skip
    small = int((features[:, :2].min(axis=1) < 32).sum())
    if small:
        check.say(
            "note", f"{counted(small, 'image')} smaller than 32 px: near copies are not looked for"
        )


def show_unreadable(check: Check, rows: Rows, audit: Audit) -> None:
    """List the images that cannot be decoded."""
    test = [row for row in audit.unreadable if rows.is_test[row]]
    train = len(audit.unreadable) - len(test)
    if train:
        check.say("warning", f"{counted(train, 'unreadable train image')} will be quarantined")
    if test:
        check.say(
            "error", f"{counted(len(test), 'test image')} unreadable: restore {rows.name(test[0])}"
        )
    check.numbers["unreadable"] = {"train": train, "test": len(test)}
    listed = [[rows.name(row), why] for row, why in audit.unreadable.items()]
    if listed:
        check.sections["Unreadable"] = [table(["image", "why"], listed, caption="unreadable")]


MARKS = {  # of a set of copies
    "several labels": ("warning", "with several labels"),
    "several folds": ("warning", "in several folds: OOF is flattered"),
    "train and test": ("note", "in both train and test"),
}


def show_copies(check: Check, rows: Rows, audit: Audit, output: Output, examples: int) -> None:
    """Show exact and near copies, those across train and test and across folds, and conflicts."""
    fold = _folds(rows, output)
    kinds: Counter[str] = Counter()
    listed: list[list[object]] = []
    shown: list[Html] = []
    sets = [("exact", s) for s in audit.exact] + [("near", s) for s in audit.near]
    for kind, members in sets:
        marks = _marks(rows, members, fold)
        kinds.update([kind, *(f"{kind}, {mark}" for mark in marks)])
        name = ", ".join([kind, *marks])
        listed.append([name, len(members), "; ".join(map(rows.name, members[:6]))])
        if len(shown) < examples and (marks or kind == "near"):
            shown += _pictures(rows, members[:2], name)
    for mark, (gravity, text) in MARKS.items():
        for kind in ("exact", "near"):
            if count := kinds[f"{kind}, {mark}"]:
                check.say(gravity, f"{counted(count, 'set')} of {kind} copies {text}")
    check.numbers["copies"] = dict(kinds)
    if listed:
        listed.sort(key=lambda row: -len(str(row[0])))
        counts = [[name, count] for name, count in sorted(kinds.items())]
        check.sections["Copies"] = [
            table(["sets of copies", "number"], counts, caption="copies"),
            gallery(shown),
            table(["kind", "images", "which"], listed[:MAX_SETS], caption="sets of copies"),
        ]


def _marks(rows: Rows, members: Sequence[int], fold: Mapping[int, int]) -> list[str]:
    """Return what is wrong with a set of copies."""
    test = rows.is_test[list(members)]
    labels = {str(rows.table["target"].iat[row]) for row in members if not rows.is_test[row]}
    places = {fold[row] for row in members if fold.get(row, -1) >= 0}
    found = {
        "train and test": test.any() and not test.all(),
        "several labels": len(labels) > 1,
        "several folds": len(places) > 1,
    }
    return [mark for mark, holds in found.items() if holds]


def _folds(rows: Rows, output: Output) -> dict[int, int]:
    """Return row → fold where folds were made, nothing where not."""
    try:
        folds = read_folds(output.folds)
    except UserError:
        return {}
    known = dict(zip(folds.table["id"].tolist(), folds.fold.tolist(), strict=True))
    train = np.flatnonzero(~rows.is_test).tolist()
    ids = rows.table["id"].tolist()
    return {row: known[ids[row]] for row in train if ids[row] in known}


def _pictures(rows: Rows, members: Sequence[int], caption: str) -> list[Html]:
    """Return the photographs of some rows that can be read."""
    shown: list[Html] = []
    for row in members:
        path = rows.root / str(rows.table["image"].iat[row])
        shown += show_photograph(path, f"{caption}: {rows.name(row)}")
    return shown


def show_shift(
    check: Check, rows: Rows, known: np.ndarray, found: ImageShift | None, examples: int
) -> None:
    """Show whether simple features tell test images from train images, and by which."""
    if found is None:
        check.say("note", "too few images to compare train with test")
        return
    text = f"AUC {found.auc:.3f} (95 %: {found.low:.3f} to {found.high:.3f})"
    if found.beyond_chance:
        name, alone, train, test = found.features[0]
        strong = "warning" if found.low > 0.6 else "note"
        check.say(strong, "test images differ from train images: simple features tell them apart "
                          f"with {text}, 0.5 = not at all; {name} alone with {alone:.3f} "
                          f"(median {number(train)} in train, {number(test)} in test)")  # fmt: skip
    check.numbers["shift"] = {"auc": found.auc, "low": found.low, "high": found.high}
    check.numbers["shift"] |= {"features": {name: value for name, value, *_ in found.features}}
    heads = ["feature", "AUC alone", "median, train", "median, test"]
    parts = [
        terms([("telling test from train, AUC (95 % interval)", text.removeprefix("AUC "))]),
        note("0.5: no difference that these features see; 1: every image can be told"),
        table(heads, found.features, caption="features, the most telling first"),
    ]
    if examples:
        places = known[found.rows]
        order = np.argsort(found.likeness, kind="stable")
        test_side, half = rows.is_test[places], min(examples // 2, 6)
        like_test = [r for r in places[order[::-1]] if not rows.is_test[r]][:half]
        like_train = [r for r, t in zip(places[order], test_side[order], strict=True) if t][:half]
        shown = _pictures(rows, [int(r) for r in like_test], "most like test")
        shown += _pictures(rows, [int(r) for r in like_train], "most like train")
        parts.append(gallery(shown))
    check.sections["Train and test"] = parts


def show_aliases(check: Check, classes: Sequence[str]) -> None:
    """List class names with the same letters in another order, spacing or case.

    Digits keep their order: 12 is not 21.
    """
    alike: dict[str, list[str]] = {}
    for name in classes:
        letters = sorted(c for c in nfc(name).casefold() if c.isalpha())
        letters += [c for c in name if c.isnumeric()]
        alike.setdefault("".join(letters), []).append(name)
    pairs = [names for letters, names in alike.items() if len(names) > 1 and letters]
    check.numbers["names_alike"] = pairs
    if pairs:
        first = " and ".join(pairs[0])
        check.say("warning", f"{counted(len(pairs), 'set')} of class names with the same letters, "
                             f"as {first}; if one is meant, say so in aliases.csv")  # fmt: skip
        listed = [[" · ".join(names)] for names in pairs]
        check.sections["Names alike"] = [table(["classes"], listed, caption="same letters")]


def check_masks(config: CheckConfig) -> Check:
    """Read every labelled image and its mask once.

    Raises:
        UserError: what the source refuses: no masks, or none that fit.
    """
    check = Check()
    index = read_labelled(config.source, config.data_dir)
    for line in index.notes:
        check.say("note", line)
    pixels, foreground, sizes = count_masks(check, index)
    if not pixels:
        return check
    total = np.stack(pixels)
    images = (total > 0).sum(axis=0)
    labels = [*index.classes, "void"]
    rows = [
        [label, int(images[k]), int(total[:, k].sum()), float(total[:, k].sum() / total.sum())]
        for k, label in enumerate(labels)
    ]
    absent = [str(label) for label, count, *_ in rows[:-1] if not count]
    if absent:
        are = counted(len(absent), "class is", "classes are")
        check.say("warning", f"{are} in no mask: {', '.join(absent)}")
    ordered, empty = sorted(foreground), foreground.count(0)
    if empty:
        check.say("note", f"{counted(empty, 'image')} of {len(index)} without foreground")
    curve = {"images": [(float(n + 1), v) for n, v in enumerate(ordered)]}
    check.numbers |= {"images": len(index), "without_foreground": empty, "sizes": dict(sizes)}
    check.numbers["labels"] = {r[0]: {"images": r[1], "pixels": r[2], "share": r[3]} for r in rows}
    check.numbers["foreground"] = {"least": ordered[0], "median": float(np.median(ordered)),
                                   "most": ordered[-1]}  # fmt: skip
    check.sections["Masks"] = [
        terms([("images", f"{len(index):,}"), ("without foreground", f"{empty:,}"),
               ("median foreground", f"{np.median(ordered):.2%}")]),
        table(["label", "images", "pixels", "share"], rows, caption="labels"),
        plots([line_plot(curve, title="share of foreground in each image", x_label="image",
                         y_label="share")]),
        table(["size", "images"], [list(item) for item in sizes.most_common(20)],
              caption="sizes of images"),
    ]  # fmt: skip
    show_group_copies(check, config, index)
    return check


def count_masks(
    check: Check, index: MaskIndex
) -> tuple[list[np.ndarray], list[float], Counter[str]]:
    """Return each mask's pixels by label, void last, its share of foreground, and all sizes."""
    names, read = index.table["id"].tolist(), VoidReader(index)
    background = background_label(index.classes)
    sizes: Counter[str] = Counter()
    pixels, foreground, damaged = [], [], []
    for row in tqdm(range(len(index)), "masks", leave=False, disable=None):
        try:
            mask = read(index.mask_path(row))
            shape = image_size(index.image_path(row))
            if tuple(mask.shape) != tuple(shape):
                refuse_size(mask.shape, shape, index.mask_path(row), index.image_path(row))
        except UserError as error:
            damaged.append([names[row], str(error)])
            continue
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels.append(np.append(counts[: index.num_classes], counts[VOID]))
        sizes[f"{shape[1]} × {shape[0]}"] += 1
        own = counts[: index.num_classes].sum()
        own -= counts[background] if background is not None else 0
        foreground.append(float(own / max(mask.size - counts[VOID], 1)))
    if damaged:
        check.say(
            "error",
            f"{counted(len(damaged), 'image')} not usable with its mask, first: {damaged[0][1]}",
        )
        check.sections["Unusable"] = [table(["image", "why"], damaged, caption="unusable")]
    return pixels, foreground, sizes


def show_group_copies(check: Check, config: CheckConfig, index: MaskIndex) -> None:
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
    check.say(
        "warning", f"{counted(len(sets), 'set')} of copies in different groups: folds may part them"
    )
    shown = []
    for kind, members in sets[: config.examples // 2]:
        for row in members[:2]:
            shown += show_photograph(index.image_path(row), f"{kind}: {names[row]}")
    listed = [[kind, len(m), "; ".join(names[row] for row in m[:6])] for kind, m in sets[:200]]
    check.sections["Copies"] = [
        gallery(shown), table(["kind", "images", "which"], listed, caption="copies across groups")
    ]  # fmt: skip
