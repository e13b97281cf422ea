"""Tabular member of an ensemble: columns of the tables, and image models' OOF predictions if asked.

Every fold of ``folds.csv`` has its own model, fitted to the rows outside it; run folders are those
of other members, so that the blend takes them. There is no network: test predictions are written
at once. Stacking: Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from src.config import FoldConfig, InferConfig
from src.data.folds import Folds, assign_folds, read_folds
from src.data.index import Index, read_test
from src.data.metadata import Metadata, read_metadata
from src.engine.runtime import start_runtime
from src.ensemble.oof import find_models
from src.ensemble.pool import log_softmax
from src.ensemble.predictions import open_oof, open_test_run
from src.metrics.classification import Array
from src.models.tabular import TabularModel, fit_tabular
from src.pipelines.classification.infer import (
    has_logits,
    hash_images,
    infer_fold,
    write_test_logits,
)
from src.pipelines.classification.prepare import find_aliases, prepare_data
from src.pipelines.classification.train import ClassData, choose_task
from src.pipelines.run_folder import finish_run, lost_files, write_config
from src.runs import Done, Output, Run, read_done, safe_name, training_mark
from src.script import UserError
from src.tool_config import TabularConfig

INNER_FOLDS = 3
VIEWS = ("identity",)


@dataclass(frozen=True)
class Inputs:
    """What the models of all folds see."""

    numbers: tuple[str, ...]  # columns of numbers
    words: tuple[str, ...]  # columns of categories
    train: pd.DataFrame  # N rows
    # T rows for each fold: what image models say of them is that fold's
    test: Mapping[int, pd.DataFrame]
    mark: str  # names all that is in them


def train_tabular(config: TabularConfig, prepared: tuple[Index, Folds] | None = None) -> list[Path]:
    """Train the tabular member on all folds; folds that stand as they would come are skipped.

    Return the folders of the folds. ``prepared`` None = as :func:`prepare_data` makes them.

    Raises:
        UserError: no column that can be used, or image models that lack folds.
    """
    output = Output(Path(config.output_dir))
    given = config.shared(FoldConfig) | {"name": "", "dry_run": False}
    base = FoldConfig(**given, model="tabular", config="")
    index, folds = prepared or prepare_data(base, output)
    test = read_test(index.root, allow_outside=config.allow_outside)
    found = read_metadata(
        index, test, columns=config.columns, table=config.table, test_table=config.test_table
    )
    print("\n".join(found.lines), flush=True)
    if not found.columns:
        raise UserError("the tables have no column that can be used: there is nothing to train on")
    if config.dry_run:
        return []
    data = ClassData(index, folds, find_aliases(base, index), 0)
    inputs = read_inputs(config, output, data, test, found)
    name = config.name or ("tabular_stack" if config.stack else "tabular")
    options = {"columns": list(found.columns), "stack": config.stack, "seed": config.seed}
    said = repr((sorted(options.items()), folds.folds_hash, data.classes, inputs.mark))
    identity = hashlib.sha256(said.encode()).hexdigest()[:12]
    runs = [output.run(name, fold) for fold in range(folds.num_folds)]
    for fold, run in enumerate(runs):
        with run.hold():
            if stands(run, identity, hash_images(test)):
                print(f"{run.folder}: finished, {read_done(run).get('score')}; skipped")
                continue
            train_one(config, base, run, data, test, fold, inputs, options, identity)
    return [run.folder for run in runs]


def tabular_members(output: Output) -> list[str]:
    """Return the names of the tabular members all of whose folds are finished."""
    num_folds = read_folds(output.folds).num_folds
    return [
        name for name in find_models(output.root)
        if len(runs := output.finished_runs(name)) == num_folds
        and all("columns" in read_done(run).get("config", {}) for run in runs)
    ]  # fmt: skip


def stands(run: Run, identity: str, ids_hash: str) -> bool:
    """Tell whether a fold was trained on these very inputs, and all its files are whole."""
    try:
        done = read_done(run)
    except (FileNotFoundError, UserError):
        return False
    whole = done["config_hash"] == identity and not lost_files(run, done)
    return whole and has_logits(run, ids_hash, VIEWS)


def train_one(
    config: TabularConfig,
    base: FoldConfig,
    run: Run,
    data: ClassData,
    test: Index,
    fold: int,
    inputs: Inputs,
    options: Mapping[str, Any],
    identity: str,
) -> None:
    """Fit the rows outside a fold, and write its finished folder."""
    for path in (run.finished, run.test_info, run.oof):
        path.unlink(missing_ok=True)
    folds = data.folds
    rows = np.flatnonzero((folds.fold >= 0) & (folds.fold != fold))  # none that only train images
    held = folds.valid_rows(fold)
    targets, truth = data.targets(rows), data.targets(held)
    labels = targets.T if data.index.several else [targets]
    models = [fit_one(inputs, data, rows, label, config.seed) for label in labels]
    logits, unseen = (predict(models, frame, data) for frame in (
        inputs.train.iloc[held], inputs.test[fold]))  # fmt: skip
    task = choose_task(base, data)
    meter = task.meter()
    meter.update(torch.from_numpy(logits), {"target": torch.as_tensor(truth)})
    scores = meter.compute()
    kinds = sorted({model.kind for model in models})
    about: dict[str, Any] = {"columns": list(inputs.train.columns), "kinds": kinds}
    about |= {"classes": list(data.classes), "split_hash": folds.folds_hash, "fold": str(fold)}
    write_config(run, config, about, start_runtime("cpu", "fp32"), identity)
    data.save_oof(run, fold, logits[None], VIEWS, identity)
    done: Done = {"config_hash": identity, "config": dict(options), "epochs": 0, "best_epoch": 0}
    done |= {"split_hash": folds.folds_hash, "monitor": task.monitor}
    done |= {"score": round(float(scores[task.monitor]), 6)}
    finish_run(run, done, keep_last=False)
    with write_test_logits(run, test, VIEWS, data.classes) as out:
        out[:] = unseen[None].clip(-6e4, 6e4)
    inner, frequencies = (float(np.mean([getattr(m, name) for m in models]))
                          for name in ("log_loss", "base"))  # fmt: skip
    print(
        f"{run.folder}: {'; '.join(kinds[:3])}; log loss on inner folds {inner:.4f}, of the class "
        f"frequencies {frequencies:.4f}; {task.monitor} of the fold {done['score']}", flush=True,
    )  # fmt: skip


def fit_one(inputs: Inputs, data: ClassData, rows: Array, target: Array, seed: int) -> TabularModel:
    """Fit the classes of ``rows``, or one label; inner folds share out groups as the outer do."""
    num_classes = 2 if data.index.several else len(data.classes)
    groups = data.folds.table["group"].iloc[rows].tolist()
    names = [str(k) for k in target.tolist()]
    try:
        parts = assign_folds(names, INNER_FOLDS, seed, groups)
    except UserError:  # fewer groups than inner folds
        parts = assign_folds(names, INNER_FOLDS, seed, [""] * len(rows))
    return fit_tabular(
        inputs.train.iloc[rows], target, num_classes, parts, numbers=inputs.numbers,
        words=inputs.words, seed=seed,
    )  # fmt: skip


def predict(models: Sequence[TabularModel], frame: pd.DataFrame, data: ClassData) -> Array:
    """Return logits (N, K) float32: log probabilities, or log odds of each label."""
    found = [np.log(model.predict(frame)) for model in models]
    if not data.index.several:
        return found[0].astype(np.float32)
    return np.stack([logs[:, 1] - logs[:, 0] for logs in found], axis=1).astype(np.float32)


def read_inputs(
    config: TabularConfig, output: Output, data: ClassData, test: Index, found: Metadata
) -> Inputs:
    """Return the columns, those of the image models behind them where ``--stack`` asks."""
    every = range(data.folds.num_folds)
    plain = Inputs(
        found.numbers, found.words, found.train, dict.fromkeys(every, found.test), found.mark
    )
    if not config.stack:
        return plain
    models = stackable(config, output, data.folds)
    print(f"stacked on: {', '.join(models)}", flush=True)
    rows = dict(zip(data.index.table["id"].tolist(), range(len(data.index)), strict=True))
    seen = np.full((len(data.index), len(data.classes)), np.nan)
    test_frames, marks = {}, [found.mark]
    names = [f"{name} of the images" for name in data.classes]
    for fold in every:
        said = [read_member(config, output.run(model, fold), data, test) for model in models]
        places = [rows[id_] for id_ in said[0][0]]
        if any(ids != said[0][0] for ids, *_ in said):
            raise UserError(f"--stack: the models hold out different images in fold {fold}")
        seen[places] = np.mean([oof for _, oof, _ in said], axis=0)
        unseen = pd.DataFrame(np.mean([logits for *_, logits in said], axis=0), columns=names)
        test_frames[fold] = pd.concat([found.test, unseen], axis=1)
        marks += [training_mark(read_done(output.run(model, fold))) for model in models]
    train = pd.concat([found.train, pd.DataFrame(seen, columns=names)], axis=1)
    return Inputs((*found.numbers, *names), found.words, train, test_frames, repr(marks))


def stackable(config: TabularConfig, output: Output, folds: Folds) -> list[str]:
    """Return the image models whose folds are all finished."""
    known = [safe_name(model) for model in config.models] or list(find_models(output.root))
    whole = []
    for name in known:
        runs = output.finished_runs(name)
        networks = [run for run in runs if run.best.exists()]
        if len(networks) >= folds.num_folds:
            whole.append(name)
        elif config.models:
            raise UserError(
                f"--models {name}: {len(networks)} of {folds.num_folds} folds of a network are "
                "finished: train them all (--fold all)"
            )
    if not whole:
        raise UserError(
            f"--stack: no image model in {output.root} has all {folds.num_folds} folds; run "
            "train_fold.py --fold all first"
        )
    return whole


def read_member(
    config: TabularConfig, run: Run, data: ClassData, test: Index
) -> tuple[list[str], Array, Array]:
    """Return ids, log probabilities (or log odds) of the fold's rows, and of the test rows."""
    oof = open_oof(run.oof)
    if oof.folds_hash != data.folds.folds_hash or oof.classes != data.classes:
        raise UserError(f"{run.folder}: of other folds or classes; leave it out with --models")
    ids_hash = hash_images(test)
    if not has_logits(run, ids_hash, VIEWS):
        infer = InferConfig(**config.shared(InferConfig) | {"models": ()})
        with run.hold():
            infer_fold(infer, run, test, oof.views, None)
    opened = open_test_run(
        run.folder, num_rows=len(test), ids_hash=ids_hash, classes=data.classes, views=VIEWS
    )
    at, there = oof.views.index(VIEWS[0]), opened.views.index(VIEWS[0])
    pair = (np.asarray(x, dtype=np.float32) for x in (oof.logits[at, :], opened.logits[there, :]))
    plain, unseen = (x if data.index.several else log_softmax(x) for x in pair)
    return oof.ids.tolist(), plain, unseen
