"""Distil a teacher into a student: python train_distill.py --model camvid --data_dir input/camvid.

One command trains the student alone, the teacher, and the student with the teacher, each in
output/distill/<name>-<role>/fold<k>/, and prints the table. A teacher that does not beat the
student is refused. Without --data_dir road scenes are generated. Started again, it goes on where
it stopped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import FoldConfig
from src.engine.interrupt import stoppable
from src.mask_config import DistillConfig
from src.pipelines.run_folder import data_label, parse_fold
from src.reader import parse
from src.runs import Output, Run
from src.script import UserError, counted, run_script

if TYPE_CHECKING:
    from torch import nn

    from src.engine.runtime import Runtime
    from src.files import Json
    from src.pipelines.distillation import Field
    from src.runs import Done
    from src.tasks.protocols import Task

LOSSES = {"segmentation": "ce + dice", "classification": "cross_entropy"}  # where none is named


@stoppable()
def main(argv: list[str]) -> int:
    """Train all roles that ``argv`` asks for and print how they stand."""
    config = parse(
        DistillConfig, argv, prog="train_distill.py", description=__doc__ or "", row_by="model",
        rows_only=True,
    )  # fmt: skip
    if config.fold == "full":
        raise UserError("--fold full: distillation is judged on held-out images, name a fold")
    if config.kind == "classification" and not config.data_dir:
        raise UserError("--data_dir is missing: a folder of labelled photographs")
    config = replace(config, loss=config.loss or LOSSES[config.kind])
    output = Output(Path(config.output_dir)).track("distill")
    name = config.name or f"{data_label(config.data_dir)}-{config.student}-{config.teacher}"

    if config.dry_run:
        show(config, output, name)
    else:
        train_all(config, output, name, own_runtime(config))
    return 0


def show(config: DistillConfig, output: Output, name: str) -> None:
    """Print what the nets would learn from."""
    if config.kind == "classification":
        from src.pipelines.classification.prepare import show_data

        show_data(fold_options(config), output)
        return
    from src.pipelines.segmentation import train as masks

    run = output.run(f"{name}-student", parse_fold(config.fold))
    masks.show_data(masks.find_data(config), run.folder)


def train_all(config: DistillConfig, output: Output, name: str, runtime: Runtime) -> None:
    """Train every role with every seed, then print table and intervals."""
    from src.pipelines.distillation import (
        alone,
        compare_roles,
        fit_terms,
        gate,
        print_table,
        train_role,
        tune,
    )

    if config.tune and runtime.num_processes > 1:
        raise UserError("--tune searches in one process: start it without torchrun")
    make_field = segmentation_field if config.kind == "segmentation" else classification_field
    field = make_field(config, output)
    config = fit_terms(config, field.terms)
    results: dict[str, list[tuple[Run, Done]]] = {}
    for number, seed in enumerate(config.seeds or (config.seed,)):
        tag = f"{name}-seed{seed}" if config.seeds else name
        own = replace(config, seed=seed)

        def train(role: str, options: DistillConfig, tag: str = tag) -> tuple[Run, Done]:
            result = train_role(options, role, field, output, runtime, tag)
            results.setdefault(role, []).append(result)
            return result

        student, teacher = train("student", own)[1], train("teacher", own)[1]
        gate(
            student, teacher, lower_is_better=field.task.lower_is_better,
            force=config.allow_weak_teacher,
        )  # fmt: skip
        if config.tune and number == 0:  # the first seed's search serves the others
            found = tune(own, field, output, runtime, tag)
            config = replace(found, seed=config.seed)
            own = replace(config, seed=seed)
        train("distilled", own)
        for term in field.terms if config.ablate else ():
            if alone(own, term) != own:  # else it is the taught student itself
                train(f"only_{term}", alone(own, term))
    print_table(results)
    student_runs = [run for run, _ in results.pop("student")]
    for role, runs in results.items() if config.kind == "segmentation" else ():
        gain = compare_roles(student_runs, [run for run, _ in runs])
        print(f"student -> {role}, {counted(len(student_runs), 'seed')}: {gain}")


def segmentation_field(config: DistillConfig, output: Output) -> Field:
    """Read the masks once and say how their nets are built and trained."""
    import torch

    from src.pipelines.distillation import Field
    from src.pipelines.segmentation import train as masks

    data = masks.find_data(config)
    task = masks.build_task(config, data)

    def spec(role: str) -> Json:
        arch = getattr(config, f"{role}_arch") or config.arch
        width = getattr(config, f"{role}_width")
        return masks.segmenter_spec(arch, getattr(config, role), task.num_outputs, width)

    with torch.random.fork_rng(devices=[]):  # what is learned stays the same bits
        for role in ("student", "teacher"):
            masks.build_network(spec(role))  # a teacher that cannot be built is met before training

    def build(role: str, pretrained: bool) -> nn.Module:
        mode = getattr(config, f"{role}_pretrained") if pretrained else "none"
        weights = masks.find_encoder_weights(getattr(config, role), mode)
        model = masks.build_network(spec(role), weights)
        if pretrained and config.prior:
            masks.start_at_prior(model, data)
        return model

    def train(
        own: DistillConfig, run: Run, model: nn.Module, task: Task, role: str, about: Json
    ) -> Done:
        runtime = own_runtime(own)
        return masks.train_masks(
            own, run, data, model, task, output=output, network=spec(role), runtime=runtime,
            extra={"track": "distill", **about},
        )  # fmt: skip

    return Field(task, build, train, data.hash)


def classification_field(config: DistillConfig, output: Output) -> Field:
    """Index the photographs once and say how their nets are built and trained."""
    from src.config import AugmentConfig
    from src.data.transforms import build_augmentations, train_transform
    from src.losses.classification import build_loss
    from src.models.classifier import build_classifier
    from src.models.pretrained import check_timm_id, find_data_config, find_weights
    from src.pipelines.classification.prepare import find_aliases, prepare_data
    from src.pipelines.classification.train import ClassData, train_classifier
    from src.pipelines.distillation import Field
    from src.tasks.classification import Classification

    build_augmentations(config.augment)
    criterion = build_loss(config.loss)  # a mistake in it is met before anything is read
    student, _ = check_timm_id(config.student), check_timm_id(config.teacher)
    size = config.image_size or find_data_config(student).image_size
    where = fold_options(config)
    index, folds = prepare_data(where, output)
    if index.several:
        raise UserError(
            "train_distill.py learns one class an image, and these have several labels: use "
            "train_fold.py"
        )
    data = ClassData(index, folds, find_aliases(where, index), size)
    num_classes = len(data.classes)

    def build(role: str, pretrained: bool) -> nn.Module:
        mode = getattr(config, f"{role}_pretrained") if pretrained else "none"
        weights = find_weights(timm_id := check_timm_id(getattr(config, role)), mode)
        return build_classifier(
            timm_id, num_classes, image_size=size, weights=weights, frozen_norms=True
        )

    def train(
        own: DistillConfig, run: Run, model: nn.Module, task: Task, role: str, about: Json
    ) -> Done:
        augment = train_transform(size, **own.shared(AugmentConfig))
        about = {"kind": "classifier", "timm_id": check_timm_id(getattr(config, role)), **about}
        return train_classifier(
            own, run, data, parse_fold(own.fold), model, task, augment,
            output=output, about=about, runtime=own_runtime(own),
        )  # fmt: skip

    terms = ("kl", "attention", "similarity", "feature")
    task = Classification(num_classes, criterion)
    return Field(task, build, train, folds.folds_hash, terms, size)


def fold_options(config: DistillConfig) -> FoldConfig:
    """Return the options of ``train_fold.py`` by which photographs are read and dealt."""
    shared = ("data_dir", "allow_outside", "folds")
    return FoldConfig(seed=config.fold_seed, **{name: getattr(config, name) for name in shared})


def own_runtime(config: DistillConfig) -> Runtime:
    """Return the runtime of one run: layout and precision are settled for each anew."""
    from src.engine.runtime import start_runtime

    return start_runtime(config.device, config.precision, config.channels_last)


if __name__ == "__main__":
    run_script(main, launched=True)
