"""Training of the folds that are asked for: finished ones are skipped, stopped ones resumed."""

from __future__ import annotations

from pathlib import Path

from src.config import FoldConfig
from src.pipelines.classification.prepare import check_recipe, prepare_data, read_index
from src.pipelines.run_folder import copy_folds, copy_run, finished, parse_fold
from src.runs import Output
from src.script import UserError, is_launched


def train(config: FoldConfig) -> list[Path]:
    """Train the folds that ``config`` asks for; finished ones are skipped, stopped ones go on.

    ``config`` has the options of ``train_fold.py``; ``model`` takes any timm id. The rows of a YAML
    file are read by the script, not here. Return the folders of the folds.

    Raises:
        UserError: a mistake in options or data.
        Interrupted: a signal asked to stop; the state is saved.
    """
    check_recipe(config)
    if not config.model:
        raise UserError("--model is missing: a preset of configs/classify.yaml, or any timm id")
    fold = None if config.fold == "all" else parse_fold(config.fold)
    output = Output(Path(config.output_dir))
    name = config.name or config.model
    if config.resume_from:
        copy_folds(config.resume_from, output)
    index = read_index(config)
    if not output.folds.exists():  # all images are looked through next and folds are settled
        from src.pipelines.classification.train import find_backbone

        find_backbone(config)
    index, folds = prepare_data(config, output, index)
    every: list[int | None] = list(range(folds.num_folds))
    wanted = every if config.fold == "all" else [fold]
    if wanted[0] not in (*every, None):
        raise UserError(f"--fold {config.fold}: folds.csv has folds 0 to {folds.num_folds - 1}")
    runs = [(fold, output.run(name, fold)) for fold in wanted]
    for _, run in runs if config.resume_from else ():
        copy_run(config.resume_from, output, run)
    waiting = runs
    if not is_launched():  # several processes ask the first one below
        waiting = [
            (k, run) for k, run in runs if not finished(run, config, folds.folds_hash, held=False)
        ]
    if waiting:  # only now is torch imported
        from src.engine.runtime import start_runtime
        from src.pipelines.classification.train import train_fold

        runtime = start_runtime(config.device, config.precision, config.channels_last)
        for fold, run in waiting:
            with run.hold():
                # another process may have finished it meanwhile
                if not runtime.from_main(finished(run, config, folds.folds_hash)):
                    train_fold(config, output, run, index, folds, fold, runtime)
    return [run.folder for _, run in runs]
