"""Train one backbone on one fold: python train_fold.py --model convnext_large --fold 1.

Photographs in, output/<model>/fold<k>/ out: weights, metrics and the logits of the held-out
images. Started again, it goes on where it stopped; a finished fold is skipped.
"""

from __future__ import annotations

from pathlib import Path

from src.config import FoldConfig
from src.engine.interrupt import stoppable
from src.reader import parse
from src.runs import Output
from src.script import run_script


@stoppable()
def main(argv: list[str]) -> int:
    """Train the folds that ``argv`` asks for, one after another."""
    config = parse(
        FoldConfig, argv, prog="train_fold.py", description=__doc__ or "", row_by="model"
    )
    if config.dry_run:
        from src.pipelines.classification.prepare import show_data

        show_data(config, Output(Path(config.output_dir)))
        return 0
    from src.pipelines.classification.train_folds import train

    train(config)
    return 0


if __name__ == "__main__":
    run_script(main, launched=True)
