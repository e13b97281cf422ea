"""Preparation of a classification: index, audit, folds and aliases, made once; or shown dry.

Serves ``train_fold.py``. What only the first start needs is imported where it is used, so that
folds that are finished already are skipped within a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.classes import SEPARATOR, Aliases, is_number, merge_classes, nfc
from src.config import FoldConfig
from src.data.folds import Folds, load_folds, make_folds, save_folds
from src.data.index import Index, add_extra, find_root, has_test, read_test, read_train
from src.data.root import find_sample
from src.data.sample import load_aliases, read_codes, read_sample
from src.data.tables import name_test
from src.files import hold, sweep
from src.metrics.contest import OF_LABELS, Metric, find_metric, grade_order
from src.runs import Output
from src.script import UserError, counted

if TYPE_CHECKING:
    from src.ensemble.submission import Form

USUAL_FOLDS = 5


def check_recipe(config: FoldConfig) -> None:
    """Refuse a mistake in a spec before anything is read; the defaults import nothing heavy."""
    if config.loss != FoldConfig.loss:
        from src.losses.classification import check_loss

        check_loss(config.loss)
    if config.augment:
        from src.data.transforms import build_augmentations

        build_augmentations(config.augment)


def read_index(config: FoldConfig) -> Index:
    """Index the training images with the columns that the options name, and external ones."""
    index = read_train(
        find_root(config.data_dir),
        allow_outside=config.allow_outside,
        image_column=config.image_column or None,
        label_column=config.label_column or None,
        group_column=config.group_column or None,
        several=config.metric in OF_LABELS,
    )
    if config.extra_train:
        index = add_extra(index, config.extra_train, allow_outside=config.allow_outside)
    return index


def settle_metric(config: FoldConfig, index: Index) -> Metric:
    """Return what the contest counts, and refuse options that the images' labels do not fit.

    Raises:
        UserError: such a metric, loss or alias file.
    """
    classes = find_aliases(config, index).trained
    metric = find_metric(config.metric, classes, config.ordinal, several=index.several)
    if config.loss != FoldConfig.loss:
        from src.losses.classification import build_loss

        build_loss(config.loss, several=index.several)
    return metric


def prepare_data(
    config: FoldConfig,
    output: Output,
    index: Index | None = None,
    *,
    usual_folds: int = USUAL_FOLDS,
) -> tuple[Index, Folds]:
    """Index the images, and make the folds or check that they still fit.

    ``index`` comes from :func:`read_index`, None = read here; ``usual_folds`` are made where
    ``config`` names no number.
    """
    if index is None:
        index = read_index(config)
    for note in index.notes:
        print(f"note: {note}")
    settle_metric(config, index)
    if not output.folds.exists():
        output.root.mkdir(parents=True, exist_ok=True)
        with hold(output.folds_lock, str(output.folds), wait=True):
            files = (output.folds, output.quarantine, output.duplicates)
            sweep(output.root, *(path.name for path in files))
            if not output.folds.exists():  # made by another process, meanwhile
                return index, first_folds(config, output, index, usual_folds)
    folds = load_folds(output.folds, index.columns, index.root, num_folds=config.folds or None)
    return index, folds


def first_folds(config: FoldConfig, output: Output, index: Index, usual_folds: int) -> Folds:
    """Look through the images once, then settle who is held out where."""
    linked: tuple[tuple[int, ...], ...] = ()
    quarantined: list[int] = []
    notes: list[str] = []
    if config.audit:
        from tqdm import tqdm

        from src.data.audit import audit_images, write_duplicates, write_quarantine

        bar = partial(tqdm, desc="audit", total=len(index.table), leave=False, disable=None)
        audit = audit_images(index.table, index.root, progress=bar)
        linked, quarantined = audit.linked, list(audit.unreadable)
        notes += audit.notes
        if quarantined:
            write_quarantine(audit, index.table, output.quarantine)
        if linked:
            write_duplicates(audit, index.table, output.duplicates)
    folds = deal_folds(config, index, linked, quarantined, usual_folds)
    for note in (*notes, *folds.notes):
        print(f"note: {note}")
    save_folds(folds, output.folds)
    for line in check_test(config, index):
        print(line)
    return folds


def deal_folds(
    config: FoldConfig,
    index: Index,
    linked: Sequence[Sequence[int]] = (),
    quarantined: Sequence[int] = (),
    usual_folds: int = USUAL_FOLDS,
) -> Folds:
    """Settle who is held out where; sets of ``linked`` rows share a fold.

    Where ``config`` names no number of folds, fewer than usual will do.
    """
    return make_folds(
        index.table, index.root, num_folds=config.folds or usual_folds, seed=config.seed,
        linked=linked, quarantined=quarantined, labels=index.classes if index.several else (),
        fewer=not config.folds,
    )  # fmt: skip


def check_test(config: FoldConfig, index: Index, *, describe: bool = False) -> list[str]:
    """Return lines that say, before the first training, what would be refused after the last.

    Where asked to ``describe``, they say first what is predicted, and into which columns.
    """
    if not has_test(index.root):
        if not describe:
            return []
        notes = [*read_sample(index.root)[1], *name_test(index.root, Path(config.data_dir))]
        return ["test: none", *(f"note: {note}" for note in notes)]
    said: list[str] = []
    lines: list[str] = []
    ids: list[str] = []
    form = None
    try:
        test = read_test(index.root, allow_outside=config.allow_outside)
        ids = test.line_ids
        said.append(
            f"test: {counted(len(test), 'image')}, first {ids[0]} = {test.table['image'].iat[0]}"
        )
        lines += [f"note: test: {note}" for note in test.notes]
        both = sorted({*test.columns["image"]} & {*index.columns["image"]})
        if both:
            are = counted(len(both), "test image is", "test images are")
            lines.append(f"note: {are} trained on too, first {both[0]}: leave them out there")
    except UserError as error:
        lines.append(f"warning: infer_ensemble.py will stop at the test images: {error}")
    try:
        form = form_asked_for(config, index, ids)
        lines += [f"note: {note}" for note in form.notes]
    except UserError as error:
        lines.append(f"warning: infer_ensemble.py will stop at the sample submission: {error}")
    if not describe:
        return lines
    return [*said, *(sample_lines(index, form) if said else []), *lines]


def form_asked_for(config: FoldConfig, index: Index, ids: Sequence[str]) -> Form:
    """Return the form of the submission of test images ``ids``, before anything is trained.

    Raises:
        UserError: a sample that no such submission can be made of.
    """
    known = find_aliases(config, index)
    return read_form(
        index.root, known.trained, metric=config.metric, ordinal=config.ordinal, ids=ids,
        alias_groups=known.members(), several=index.several,
    )  # fmt: skip


def read_form(
    root: Path,
    classes: Sequence[str],
    *,
    metric: str,
    ordinal: Sequence[str],
    ids: Sequence[str],
    id_name: str = "",
    several: bool = False,
    **options: Any,
) -> Form:
    """Return the form of the submission that the sample asks for, and the metric scores.

    ``classes`` are merged; ``ordinal`` is that of :func:`src.metrics.contest.find_metric`. With
    ``several`` they are labels of which an image may have several. ``id_name`` heads the ids where
    there is no sample. ``options`` are others of :func:`src.ensemble.forms.find_form`.
    """
    from src.ensemble.forms import Sample, find_form, find_label_form

    table, sample = read_sample(root)[0], None
    if table is not None:
        keys, cells = (tuple(table.iloc[:, place].tolist()) for place in (0, 1))
        path = find_sample(root)
        order = grade_order(classes, ordinal) if ordinal else ()
        grades = tuple(classes[k] for k in order)
        codes = read_codes(root, classes) if all(map(is_number, cells)) else ({}, "")
        sample = Sample(
            tuple(table.columns), cells, keys, path.name if path else "", grades, *codes
        )
    holds = find_metric(metric, classes, ordinal, several=several).holds
    if several:
        form = find_label_form(sample, classes, holds=holds, ids=ids)
    else:
        form = find_form(sample, classes, holds=holds, ids=ids, **options)
    if table is not None:
        said = table.attrs
        kept = {name: said[name] for name in ("header", "mark", "place", "comma")}
        return replace(form, named=not said.get("bare"), **kept)
    if not id_name:
        return form
    return replace(form, header=(id_name, *form.header[1:]))


def find_aliases(config: FoldConfig, index: Index) -> Aliases:
    """Read the alias file: the flag's, else the data folder's, else none.

    Raises:
        UserError: a mistake in it, or labels of which an image may have several.
    """
    if index.several:
        if config.aliases:
            raise UserError("--aliases: joins classes, and these images have several labels")
        return merge_classes(index.classes, ())
    return load_aliases(index.root, config.aliases, index.classes)


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
    if output.folds.exists():
        state = f"as {output.folds} has them"
        folds = load_folds(output.folds, index.table, index.root, num_folds=config.folds or None)
    else:  # as they would be if no two images are copies
        state, folds = "not made yet", deal_folds(config, index)
    print("\n".join(fold_lines(folds, state, several=index.several)))
    for note in folds.notes:
        print(f"note: {note}")
    print("\n".join(check_test(config, index, describe=True)))
    print("dry run: nothing was written; copies and unreadable images are looked for in training")


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
        lines.insert(SHOWN - 3, f"  … {counted(len(counts) - SHOWN, 'class', 'classes')} between")
    return lines


def fold_lines(folds: Folds, state: str, *, several: bool = False) -> list[str]:
    """Return how many images, classes (of ``several`` labels, sets) and groups folds hold out."""
    what = ("set of labels", "sets of labels") if several else ("class", "classes")
    groups, targets = folds.table["group"].to_numpy(str), folds.table["target"].to_numpy(str)
    lines = [f"folds ({state}):"]
    for fold in range(folds.num_folds):
        rows = folds.valid_rows(fold)
        named = np.unique(groups[rows][groups[rows] != ""])
        lines.append(
            f"  {fold}: {counted(len(rows), 'image')}, "
            + counted(len(np.unique(targets[rows])), *what)
            + (f", {counted(len(named), 'group')}" if len(named) else "")
        )
    return lines


def sample_lines(index: Index, form: Form | None) -> list[str]:
    """Return what the sample submission asks for, in ``form``; nothing where it is refused."""
    try:
        sample = read_sample(index.root)[0]
    except UserError:  # check_test says it
        return []
    if sample is None:
        return ["sample submission: none, so the columns are ID and the classes"]
    names = [str(name) for name in sample.columns]
    shown = ", ".join(names[1:7]) + (", …" if len(names) > 7 else "")
    asked = f"sample submission: {counted(len(sample), 'row')}, ids in {names[0]}, asks for {shown}"
    if form is not None and form.kind != "columns":
        return [f"{asked}: {form}"]
    known = sum(nfc(name) in index.classes for name in names[1:])
    return [
        f"{asked} ({known} of {len(names) - 1} columns are class names, of {len(index.classes)} "
        "classes)"
    ]
