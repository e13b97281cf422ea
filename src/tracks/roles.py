"""The config of a distillation in, one run a role out: student, teacher, student with teacher.

A role's own config keeps only the options that shape it, so that a change of a distillation weight
does not make the finished student and teacher look foreign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from src.engine.checkpoint import load_weights
from src.engine.runtime import Runtime
from src.losses.distillation import TERMS
from src.mask_config import DistillConfig
from src.models.distilled import build_student, show_features
from src.runs import Output, Run
from src.script import UserError
from src.tasks.distillation import NAMES, Distillation
from src.tracks.folder import finished, fold_of

OF_RUNS = ("ablate", "tune", "tune_epochs", "seeds", "allow_weak_teacher", "model")
OF_TEACHING = (*(f"weight_{name}" for name in TERMS), "temperature", "share_every")
DEFAULT_WEIGHT = 0.3


def role_config(config: DistillConfig, role: str) -> DistillConfig:
    """Return ``config`` with every option that does not shape ``role`` at its default.

    Args:
        config: of the whole distillation.
        role: ``student``, ``teacher``, or anything else for a taught student.
    """
    idle = [*OF_RUNS, "teacher_epochs"]
    if role == "teacher" and config.teacher_epochs:
        config = replace(config, epochs=config.teacher_epochs)
    if role in ("student", "teacher"):
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
        UserError: such a term was asked for.
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
    return with_weights(config, kept)


def alone(config: DistillConfig, term: str) -> DistillConfig:
    """Return ``config`` with one term alone."""
    weight = getattr(config, f"weight_{term}") or DEFAULT_WEIGHT
    return with_weights(config, {term: weight})


@dataclass(frozen=True)
class Field:
    """What segmentation and classification do differently.

    Attributes:
        task: the task itself.
        spec: role → description of its net.
        build: (role, description, pretrained?) → the net, with its pretrained weights if asked.
        train: (config, run, model, task, network description) → content of ``finished.json``.
        terms: distillation terms that exist here.
        image_size: side of a square that every net accepts.
    """

    task: Any
    spec: Callable[[str], dict[str, Any]]
    build: Callable[[str, Mapping[str, Any], bool], nn.Module]
    train: Callable[..., dict[str, Any]]
    terms: tuple[str, ...] = TERMS
    image_size: int = 64


def train_role(
    config: DistillConfig, role: str, field: Field, output: Output, runtime: Runtime, name: str
) -> tuple[Run, dict[str, Any]]:
    """Train one role unless it is finished; return its run and what it left.

    Args:
        config: of the distillation; for a taught student, with its weights.
        role: ``student``, ``teacher``, ``distilled`` or another taught student's name.
        field: segmentation or classification.
        output: folder of the track.
        runtime: device.
        name: first part of the runs' names.
    """
    own = role_config(config, role)
    run = output.run(f"{name}-{role}", fold_of(config.fold))
    with run.hold():
        done = finished(run, own)
        if done is None:
            done = train_fresh(own, role, field, output, runtime, name, run)
    return run, done


def train_fresh(
    own: DistillConfig, role: str, field: Field, output: Output, runtime: Runtime, name: str,
    run: Run, wrap: Callable[[Any], Any] = lambda task: task,
) -> dict[str, Any]:  # fmt: skip
    """Train a role in a run that is held; ``wrap`` may watch its task."""
    base = "teacher" if role == "teacher" else "student"
    spec = field.spec(base)
    torch.manual_seed(own.seed)
    model = field.build(base, spec, True)
    task: Any = field.task
    if role not in ("student", "teacher"):
        weights = weights_of(own)
        if not weights:
            raise UserError(f"no term has a weight; choose from {', '.join(field.terms)}")
        teacher = load_teacher(field, output, name, own).to(runtime.device)
        model = build_student(
            model, teacher, project="feature" in weights, num_terms=len(NAMES),
            size=field.image_size,
        )  # fmt: skip
        task = Distillation(
            field.task, teacher, show_features, weights, own.temperature, own.share_every
        )
    return field.train(own, run, model, wrap(task), spec)


def load_teacher(field: Field, output: Output, name: str, config: DistillConfig) -> nn.Module:
    """Build the finished teacher with its best weights, frozen."""
    run = output.run(f"{name}-teacher", fold_of(config.fold))
    teacher = field.build("teacher", field.spec("teacher"), False)
    teacher.load_state_dict(load_weights(run.best))
    return teacher.eval().requires_grad_(False)


def gate(student: Mapping[str, Any], teacher: Mapping[str, Any], *, lower_is_better: bool,
         force: bool) -> None:  # fmt: skip
    """Refuse a teacher that does not beat the student on the same held-out images.

    Raises:
        UserError: it does not, and ``force`` is off.
    """
    sign = -1.0 if lower_is_better else 1.0
    low, high = student["score"], teacher["score"]
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
