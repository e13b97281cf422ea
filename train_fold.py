"""Train one backbone on one fold: python train_fold.py --model convnext_large --fold 1.

Photographs in, output/<model>/fold<k>/ out: weights, metrics and the logits of the held-out
images. Started again, it goes on where it stopped; a finished fold is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import FoldConfig
from src.pipelines.run_folder import finished, fold_of
from src.reader import parse
from src.runs import Output, Run
from src.script import UserError, is_launched, run_script

if TYPE_CHECKING:
    from src.data.folds import Folds
    from src.data.index import Index
    from src.engine.loop import Mix
    from src.engine.runtime import Runtime


def main(argv: list[str]) -> int:
    """Train the folds that ``argv`` asks for, one after another."""
    config = parse(
        FoldConfig, argv, prog="train_fold.py", description=__doc__ or "", row_by="model"
    )
    if not config.model:
        raise UserError("--model is missing: a preset of configs/classify.yaml, or any timm id")
    output = Output(Path(config.output_dir))
    name = config.name or config.model

    from src.pipelines.classification.prepare import prepare_data

    index, folds = prepare_data(config, output)
    every: list[int | None] = list(range(folds.num_folds))
    wanted = every if config.fold == "all" else [fold_of(config.fold)]
    if wanted[0] not in (*every, None):
        raise UserError(f"--fold {config.fold}: folds.csv has folds 0 to {folds.num_folds - 1}")
    waiting = [(fold, output.run(name, fold)) for fold in wanted]
    if not is_launched():  # several processes ask the first one below
        waiting = [(k, run) for k, run in waiting if not finished(run, config, folds.folds_hash)]
    if not waiting:
        return 0  # before torch is imported

    from src.engine.interrupt import Interrupted
    from src.engine.runtime import start_runtime

    runtime = start_runtime(config.device, config.precision, config.channels_last)
    for fold, run in waiting:
        try:
            with run.hold():
                # another process may have finished it meanwhile
                if not runtime.from_main(finished(run, config, folds.folds_hash)):
                    train(config, output, run, index, folds, fold, runtime)
        except Interrupted as stop:
            print(f"{stop}; the state is saved, the same command goes on from here")
            return stop.status
    return 0


def train(
    config: FoldConfig,
    output: Output,
    run: Run,
    index: Index,
    folds: Folds,
    fold: int | None,
    runtime: Runtime,
) -> None:
    """Build the backbone and what it learns by, and train it to its finished folder."""
    import torch

    from src.data.transforms import train_transform
    from src.losses.classification import build_loss
    from src.models.classifier import build_classifier
    from src.models.pretrained import find_weights
    from src.models.zoo import check_timm_id, find_data_config
    from src.pipelines.classification.prepare import find_aliases
    from src.pipelines.classification.train import ClassData, train_classes
    from src.tasks.classification import Classification

    timm_id = check_timm_id(config.timm_id or config.model)
    size = config.image_size or find_data_config(timm_id).image_size
    weights = find_weights(timm_id, config.pretrained)
    data = ClassData(index, folds, find_aliases(config, index), size)
    num_classes = len(data.classes)
    torch.manual_seed(config.seed)
    model = build_classifier(
        timm_id,
        num_classes,
        image_size=size,
        pool=config.pool,
        gem_p=config.gem_p,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        weights=weights,
        frozen_norms=config.norms == "frozen",
    )
    loss = build_loss(
        config.loss,
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        t1=config.bi_tempered_t1,
        t2=config.bi_tempered_t2,
    )
    augment = train_transform(
        size,
        scale_min=config.scale_min,
        hflip=config.hflip,
        vflip=config.vflip,
        rotate=config.rotate,
        color=config.color,
        erase=config.erase,
    )
    train_classes(
        config, run, data, fold, model, Classification(num_classes, loss), augment,
        output=output, about={"timm_id": timm_id, "weights": str(weights)}, runtime=runtime,
        mix=make_mix(config, num_classes), probe=config.head_start == "probe",
    )  # fmt: skip


def make_mix(config: FoldConfig, num_classes: int) -> Mix | None:
    """Return the mixing of batches, None if there is none."""
    from src.data.mixing import mix

    if not (config.mixup_alpha or config.cutmix_alpha):
        return None

    def mix_batch(batch: dict[str, Any], step: int, epoch: int) -> dict[str, Any]:
        if epoch >= config.epochs - config.mix_off_epochs:
            return batch
        image, target = mix(
            batch["image"],
            batch["target"],
            num_classes=num_classes,
            seed=config.seed,
            step=step,
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            prob=config.mix_prob,
        )
        return batch | {"image": image, "target": target}

    return mix_batch


if __name__ == "__main__":
    run_script(main, launched=True)
