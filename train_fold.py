"""Train one backbone on one fold: python train_fold.py --model convnext_large --fold 1.

Photographs in, output/<model>/fold<k>/ out: weights, metrics and the logits of the held-out
images. Started again, it goes on where it stopped; a finished fold is skipped.
"""

from __future__ import annotations

from pathlib import Path

from src.config import FoldConfig
from src.pipelines.run_folder import finished, fold_of
from src.reader import parse
from src.runs import Output
from src.script import UserError, is_launched, run_script


def main(argv: list[str]) -> int:
    """Train the folds that ``argv`` asks for, one after another."""
    config = parse(
        FoldConfig, argv, prog="train_fold.py", description=__doc__ or "", row_by="model"
    )
    output = Output(Path(config.output_dir))
    if config.dry_run:
        from src.pipelines.classification.dry_run import show_data

        show_data(config, output)
        return 0
    if not config.model:
        raise UserError("--model is missing: a preset of configs/classify.yaml, or any timm id")
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
    from src.pipelines.classification.train import train_fold

    runtime = start_runtime(config.device, config.precision, config.channels_last)
    for fold, run in waiting:
        try:
            with run.hold():
                # another process may have finished it meanwhile
                if not runtime.from_main(finished(run, config, folds.folds_hash)):
                    train_fold(config, output, run, index, folds, fold, runtime)
        except Interrupted as stop:
            print(f"{stop}; the state is saved, the same command goes on from here")
            return stop.status
    return 0


if __name__ == "__main__":
    run_script(main, launched=True)
