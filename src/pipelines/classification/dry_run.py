"""Dry run: index, columns, classes, folds, test images and sample of a data folder.

Nothing is written, no image is decoded and no network built, so it ends within seconds.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import numpy as np

from src.classes import SEPARATOR, nfc
from src.config import FoldConfig
from src.data.folds import Folds, load_folds, make_folds
from src.data.index import Index, has_test, read_sample_submission, read_test
from src.pipelines.classification.prepare import (
    check_recipe,
    check_test,
    find_aliases,
    read_form,
    read_index,
    settle_metric,
)
from src.runs import Output
from src.script import UserError

SHOWN = 12  # classes


def show_data(config: FoldConfig, output: Output) -> None:
    """Print what train_fold.py and infer_ensemble.py would read with the same options."""
    check_recipe(config)
    index = read_index(config)
    what = "labels" if index.several else "classes"
    print(f"{index.root}: {len(index)} training images, {len(index.classes)} {what}")
    for note in index.notes:
        print(f"note: {note}")
    print("\n".join(class_lines(index)))
    aliases = find_aliases(config, index)
    joined = [names for names in aliases.members() if len(names) > 1]
    if joined:
        print(f"aliases: {'; '.join(' = '.join(names) for names in joined)}")
    metric = settle_metric(config, index)
    if metric.name != "log_loss":
        order = " < ".join(aliases.trained[k] for k in metric.order)
        print(f"metric: {metric.name} of {metric.holds}" + (f", grades {order}" if order else ""))
    made = output.folds.exists()
    folds = find_folds(config, output, index)
    state = f"as {output.folds} has them" if made else "not made yet"
    print("\n".join(fold_lines(folds, state, "sets of labels" if index.several else "classes")))
    for note in folds.notes:
        print(f"note: {note}")
    print("\n".join([*test_lines(config, index), *check_test(config, index)]))
    print("dry run: nothing was written; copies and unreadable images are looked for in training")


def find_folds(config: FoldConfig, output: Output, index: Index) -> Folds:
    """Return the folds as they are, or as they would be if no two images are copies."""
    if output.folds.exists():
        return load_folds(output.folds, index.table, index.root, num_folds=config.folds or None)
    labels = index.classes if index.several else ()
    num = config.folds or 5
    return make_folds(index.table, index.root, num_folds=num, seed=config.seed, labels=labels)


def class_lines(index: Index) -> list[str]:
    """Return a line for each of the largest classes, and for the smallest."""
    targets = index.table["target"].tolist()
    if index.several:
        targets = [name for text in targets for name in text.split(SEPARATOR) if name]
    counts = Counter(targets).most_common()
    shown = counts if len(counts) <= SHOWN else [*counts[: SHOWN - 3], *counts[-3:]]
    width = max(len(name) for name, _ in shown)
    lines = [f"  {name:<{width}}  {count:>7,}" for name, count in shown]
    if len(counts) > SHOWN:
        lines.insert(SHOWN - 3, f"  … {len(counts) - SHOWN} classes between")
    return lines


def fold_lines(folds: Folds, state: str, what: str = "classes") -> list[str]:
    """Return how many images and groups each fold holds out, and how many classes (or sets)."""
    groups, targets = folds.table["group"].to_numpy(str), folds.table["target"].to_numpy(str)
    lines = [f"folds ({state}):"]
    for fold in range(folds.num_folds):
        rows = folds.valid_rows(fold)
        named = np.unique(groups[rows][groups[rows] != ""])
        lines.append(
            f"  {fold}: {len(rows)} images, {len(np.unique(targets[rows]))} {what}"
            + (f", {len(named)} groups" if len(named) else "")
        )
    return lines


def test_lines(config: FoldConfig, index: Index) -> list[str]:
    """Return what infer_ensemble.py would predict, and into which columns."""
    if not has_test(index.root):
        return ["test: none"]
    lines = []
    try:
        test = read_test(index.root, allow_outside=config.allow_outside)
        first = test.table.iloc[0]
        lines.append(f"test: {len(test)} images, first {first['id']} = {first['image']}")
        sample = read_sample_submission(index.root)
    except UserError:  # check_test says it
        return lines
    if sample is None:
        return [*lines, "sample submission: none, so the columns are ID and the classes"]
    names = [str(name) for name in sample.columns]
    shown = ", ".join(names[1:7]) + (", …" if len(names) > 7 else "")
    with contextlib.suppress(UserError):  # check_test says it
        form = read_form(
            index.root, index.classes, metric=config.metric, ordinal=config.ordinal,
            ids=test.table["id"].tolist(), several=index.several,
        )  # fmt: skip
        if form.kind != "columns":
            asked = f"ids in {names[0]}, asks for {shown}: {form}"
            return [*lines, f"sample submission: {len(sample)} rows, {asked}"]
    known = sum(nfc(name) in index.classes for name in names[1:])
    return [
        *lines,
        f"sample submission: {len(sample)} rows, ids in {names[0]}, asks for {shown} "
        f"({known} of {len(names) - 1} columns are class names, of {len(index.classes)} classes)",
    ]
