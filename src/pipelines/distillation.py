"""Distillation runs (student, teacher, taught student), their results table and Optuna tuning.

A role's own config keeps only the options that shape it, so that a change of a distillation weight
does not make the finished student and teacher look foreign.

The table shows mean ± std over seeds and bootstrap intervals. In the search for term weights and
temperature each trial is a short training of the taught student. Trials are kept in a journal, so a
killed search goes on; one that lags behind the median of the others at the same epoch is stopped.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from src.config import config_hash
from src.engine.runtime import Runtime
from src.engine.weights import load_weights
from src.ensemble.studies import Direction, Journal, ask_until, open_study
from src.files import Json, hold
from src.losses.distillation import TERMS
from src.mask_config import DistillConfig
from src.metrics.bootstrap import Difference, Score, bootstrap_difference
from src.metrics.counts import STATISTICS, SegmentationCounts
from src.models.distilled import build_student, show_features
from src.pipelines.run_folder import finished, parse_fold, refuse_lost
from src.pipelines.segmentation.report import load_held_out
from src.runs import Done, Output, Run, mark_teacher, read_done, training_mark
from src.script import UserError, counted, format_table
from src.tasks.classification import Classification
from src.tasks.distillation import NAMES, Distillation
from src.tasks.protocols import Meter, Task
from src.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from optuna import Trial

OF_RUNS = ("ablate", "tune", "tune_epochs", "seeds", "allow_weak_teacher", "model")
OF_TEACHING = (*(f"weight_{name}" for name in TERMS), "temperature", "share_every")
DEFAULT_WEIGHT = 0.3
ALONE = ("student", "teacher")  # roles that nobody teaches


def role_config(config: DistillConfig, role: str) -> DistillConfig:
    """Return ``config`` with every option that does not shape ``role`` at its default.

    ``role`` is student, teacher, or anything else for a taught student.
    """
    idle = [*OF_RUNS, "teacher_epochs"]
    if role == "teacher" and config.teacher_epochs:
        config = replace(config, epochs=config.teacher_epochs)
    if role in ALONE:
        other = "teacher" if role == "student" else "student"
        idle += OF_TEACHING
        idle += [f.name for f in dataclasses.fields(config) if f.name.startswith(other)]
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in idle}
    return replace(config, **defaults)  # type: ignore[arg-type]


def weights_of(config: DistillConfig) -> dict[str, float]:
    """Return {term: weight} without the terms that are off."""
    found = {name: float(getattr(config, f"weight_{name}")) for name in TERMS}
    return {name: weight for name, weight in found.items() if weight > 0}


def with_weights(config: DistillConfig, weights: Mapping[str, float]) -> DistillConfig:
    """Return ``config`` with these weights alone."""
    return replace(config, **{f"weight_{name}": weights.get(name, 0.0) for name in TERMS})  # type: ignore[arg-type]


def fit_terms(config: DistillConfig, terms: Sequence[str]) -> DistillConfig:
    """Drop the default weights of terms that this kind of task does not have.

    Raises:
        UserError: such a term was asked for, or none is left to teach by.
    """
    defaults = weights_of(DistillConfig())
    kept = {}
    for name, weight in weights_of(config).items():
        if name in terms:
            kept[name] = weight
        elif weight != defaults.get(name):
            raise UserError(
                f"--weight_{name}: --kind {config.kind} has no such term; it has {', '.join(terms)}"
            )
    if not kept and not config.tune:
        raise UserError(f"no term has a weight: give one, --weight_{' or --weight_'.join(terms)}")
    return with_weights(config, kept)


def alone(config: DistillConfig, term: str) -> DistillConfig:
    """Return ``config`` with one term alone."""
    weight = getattr(config, f"weight_{term}") or DEFAULT_WEIGHT
    return with_weights(config, {term: weight})


@dataclass(frozen=True)
class Field:
    """What segmentation and classification do differently."""

    task: Segmentation | Classification
    # (role, pretrained?) → the net, with its pretrained weights if asked
    build: Callable[[str, bool], nn.Module]
    # (config, run, model, task, role, more for ``config.yaml``) → content of ``finished.json``
    train: Callable[[DistillConfig, Run, nn.Module, Task, str, Json], Done]
    data_hash: str  # of images, labels and who is held out
    terms: tuple[str, ...] = TERMS  # distillation terms that exist here
    image_size: int = 64  # side of a square that every net accepts


def train_role(
    config: DistillConfig, role: str, field: Field, output: Output, runtime: Runtime, name: str
) -> tuple[Run, Done]:
    """Train one role unless it is finished; return its run and what it left.

    ``config`` is that of the distillation, for a taught student with its weights; ``role`` is
    student, teacher, distilled or another taught student's name. ``name`` is the first part of the
    runs' names.
    """
    own = role_config(config, role)
    run = output.run(f"{name}-{role}", parse_fold(config.fold))
    with run.hold():
        about = {} if role in ALONE else mark_teacher(run, teacher_of(config, output, name))
        done = runtime.from_main(finished(run, own, field.data_hash))
        if done is None:
            done = train_fresh(own, role, field, output, runtime, name, run, about)
    return run, done


def teacher_of(config: DistillConfig, output: Output, name: str) -> Run:
    """Return the run that teaches."""
    return output.run(f"{name}-teacher", parse_fold(config.fold))


def train_fresh(
    own: DistillConfig, role: str, field: Field, output: Output, runtime: Runtime, name: str,
    run: Run, about: Json, wrap: Callable[[Task], Task] = lambda task: task,
) -> Done:  # fmt: skip
    """Train a role in a run that is held; it keeps ``about``, and ``wrap`` may watch its task."""
    base = "teacher" if role == "teacher" else "student"
    torch.manual_seed(own.seed)
    model = field.build(base, True)
    task: Task = field.task
    if role not in ALONE:
        weights = weights_of(own)
        assert weights, "fit_terms() and the search see to it"
        taught = teacher_of(own, output, name)
        refuse_lost(taught, read_done(taught), taught.best)
        teacher = field.build("teacher", False)
        teacher.load_state_dict(load_weights(taught.best))
        teacher = teacher.to(runtime.device).eval().requires_grad_(False)
        model = build_student(
            model, teacher, project="feature" in weights, num_terms=len(NAMES),
            size=field.image_size,
        )  # fmt: skip
        task = Distillation(
            field.task, teacher, show_features, weights, own.temperature, own.share_every
        )
    return field.train(own, run, model, wrap(task), base, about)


def gate(student: Done, teacher: Done, *, lower_is_better: bool,
         force: bool) -> None:  # fmt: skip
    """Refuse a teacher that does not beat the student on the same held-out images.

    Raises:
        UserError: it does not, and ``force`` is off.
    """
    sign = -1.0 if lower_is_better else 1.0
    low, high = student["score"], teacher["score"]
    assert low is not None and high is not None
    said = f"teacher {high:.4f}, student {low:.4f} ({teacher['monitor']}, held-out images)"
    if sign * high > sign * low:
        print(f"gate: {said}: it may teach", flush=True)
        return
    if not force:
        raise UserError(
            f"the teacher does not beat the student: {said}; train it longer or with its own "
            "learning rate, or pass --allow_weak_teacher"
        )
    print(f"warning: {said}: it teaches all the same", flush=True)


COLUMNS = {
    "mIoU": "pooled_mean_iou",
    "mAcc": "pooled_mean_accuracy",
    "aAcc": "pooled_pixel_accuracy",
    "mIoU+void": "pooled_mean_iou_with_void",
    "log loss": "log_loss",
    "calibrated": "calibrated_log_loss",
    "accuracy": "accuracy",
}


def best_and_final(done: Done) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores of the best and of the last validated epoch, of the better weights."""
    rows = [r for r in done["history"] if any(key.startswith(("valid_", "ema_")) for key in r)]
    best = next((row for row in rows if row["epoch"] == done["best_epoch"]), rows[-1])
    return _scores(best, done), _scores(rows[-1], done)


def _scores(row: Mapping[str, float], done: Done) -> dict[str, float]:
    """Drop the prefix, from raw or averaged weights, whichever the best score is of."""
    found = [p for p in ("valid_", "ema_") if f"{p}{done['monitor']}" in row]
    score = done["score"] or 0.0
    prefix = min(found, key=lambda p: abs(row[f"{p}{done['monitor']}"] - score))
    return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}


def print_table(results: Mapping[str, Sequence[tuple[Run, Done]]]) -> None:
    """Print best and final scores of every role, mean ± std where there are several seeds.

    ``results`` are role → (run, content of ``finished.json``) of every seed.
    """
    tables = {role: [best_and_final(done) for _, done in runs] for role, runs in results.items()}
    known = {key for pairs in tables.values() for key in pairs[0][0]}
    columns = {k: v for k, v in COLUMNS.items() if v in known}
    heads = [f"{when} {name}" for when in ("best", "final") for name in columns]
    rows = []
    for role, pairs in tables.items():
        cells = []
        for when in (0, 1):
            for key in columns.values():
                cells.append(mean_spread([pair[when].get(key, np.nan) for pair in pairs]))
        rows.append([role, *cells])
    print("\n" + format_table(["", *heads], rows))
    if "pooled_mean_iou_with_void" in known:
        print(
            "mIoU leaves void out; mIoU+void counts it as one more class that is never predicted, "
            "as published 12-class figures do"
        )


def mean_spread(values: Sequence[float]) -> str:
    """Write the mean, and the standard deviation of several."""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def compare_roles(
    first: Sequence[Run], second: Sequence[Run], statistic: str = "pooled_mean_iou"
) -> Difference:
    """Bootstrap the difference of two roles' mean score over seeds, images paired.

    Whole groups of frames are resampled where there are at least five of them, else images. Both
    roles have one run a seed; ``statistic`` is a name in ``STATISTICS``.

    Raises:
        UserError: the runs held out different images.
    """
    found = {run.folder: load_held_out(run) for run in (*first, *second)}
    counts = [[found[run.folder][0].sort() for run in runs] for runs in (first, second)]
    _, ids, groups = found[first[0].folder]
    for run in (*first, *second):
        if found[run.folder][1] != ids:
            raise UserError(
                f"{run.folder} held out other images than {first[0].folder}: use one split"
            )
    one, other = (_mean_over(runs, statistic) for runs in counts)
    many = len({group or f"\0{row}" for row, group in enumerate(groups)}) >= 5
    return bootstrap_difference(
        statistic, one, other, len(counts[0][0]), groups=groups if many else None
    )


def _mean_over(runs: Sequence[SegmentationCounts], statistic: str) -> Score:
    score = STATISTICS[statistic]
    return lambda weights: np.mean([score(counts, weights) for counts in runs], axis=0)


WEIGHTS = (0.05, 1.0)  # log-uniform
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True, kw_only=True)
class Watched(Distillation):
    """A distillation that calls ``report`` with the monitored score of every validation."""

    report: Callable[[float], None]

    def meter(self) -> Meter:
        """Return an empty meter, which reports when it is computed."""
        meter = super().meter()
        plain = meter.compute

        def compute() -> dict[str, float]:
            scores = plain()
            self.report(scores[self.monitor])  # may raise, to stop the trial
            return scores

        meter.compute = compute  # type: ignore[method-assign]
        return meter


def tune(
    config: DistillConfig, field: Field, output: Output, runtime: Runtime, name: str
) -> DistillConfig:
    """Search the weights of the active terms and the temperature; return the best config.

    ``config.tune`` is the number of trials in all; ``name`` is the first part of the runs' names.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    terms = tuple(weights_of(config)) or field.terms
    epochs = config.tune_epochs or max(1, config.epochs // 4)
    short = replace(config, epochs=epochs, valid_ema_only=True)
    learned = config_hash(role_config(with_weights(short, {}), ""))
    study_name = f"{'+'.join(terms)} {learned} {field.data_hash}"
    direction: Direction = "minimize" if field.task.lower_is_better else "maximize"
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    sampler = optuna.samplers.TPESampler(seed=config.seed)
    if config.storage:
        study = open_study(config.storage, study_name, direction=direction, pruner=pruner)
    else:
        study = optuna.create_study(direction=direction, sampler=sampler, pruner=pruner)
    path = output.trials(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_suffix(".held"), str(path)):
        taught = training_mark(read_done(teacher_of(config, output, name)))
        kept = Journal(path, f"{study_name} {taught}")
        for trial in ask_until(study, config.tune):
            own = suggest(trial, short, terms)
            record = find_trial(kept, trial)
            run = output.run(f"{name}-trial{trial.number}", parse_fold(own.fold))
            if record is None:
                record = run_trial(trial, own, field, output, runtime, name, run)
                kept.append(record)
            shutil.rmtree(run.folder, ignore_errors=True)  # nobody reads what the journal has
            with suppress(OSError):  # other folds' trials are in it, or it is gone
                run.folder.parent.rmdir()
            if record["score"] is None:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, record["score"])
    best = study.best_params
    print(f"search: {counted(len(study.trials), 'trial')}, best {study.best_value:.4f} with {best}")
    weights = {term: best[term] for term in terms}
    return replace(with_weights(config, weights), temperature=best["temperature"])


def suggest(trial: Trial, short: DistillConfig, terms: Sequence[str]) -> DistillConfig:
    """Return the options of a trial."""
    weights = {term: trial.suggest_float(term, *WEIGHTS, log=True) for term in terms}
    temperature = trial.suggest_categorical("temperature", TEMPERATURES)
    return role_config(replace(with_weights(short, weights), temperature=temperature), "trial")


def find_trial(kept: Journal, trial: Trial) -> Json | None:
    """Return what an earlier process made of this trial, its scores reported; None = nothing."""
    for record in kept.records:
        if (record.get("number"), record.get("params")) == (trial.number, trial.params):
            for step, score in enumerate(record["scores"]):
                trial.report(score, step)
            return record
    return None


def run_trial(
    trial: Trial, own: DistillConfig, field: Field, output: Output, runtime: Runtime, name: str,
    run: Run,
) -> Json:  # fmt: skip
    """Train one trial from its start; return its scores, and the best one unless it was stopped."""
    import optuna

    scores: list[float] = []

    def report(score: float) -> None:
        trial.report(score, len(scores))
        scores.append(float(score))
        if trial.should_prune():
            raise optuna.TrialPruned

    score = None
    with run.hold():
        # a state to go on from would lack the scores reported before it
        for path in (run.finished, run.last, run.previous, run.start, run.best):
            path.unlink(missing_ok=True)
        try:
            done = train_fresh(
                own, "trial", field, output, runtime, name, run, {},
                lambda task: Watched(**vars(task), report=report),
            )  # fmt: skip
            score = done["score"]
        except optuna.TrialPruned:
            pass
    return {"number": trial.number, "params": trial.params, "scores": scores, "score": score}
