"""Train a net of at most 10,000 parameters: python train_micro.py --data_dir input/micro.

Images with masks in, output/micro/<name>-<set>-seed<n>/fold<k>/ out, and a table of the scores.
One net a data set. The budget is checked before training, with a 21-class head. Without --data_dir
road scenes are generated. Started again, it goes on where it stopped; finished runs are skipped.
"""

from __future__ import annotations

from pathlib import Path

from src.engine.interrupt import stoppable
from src.mask_config import MicroConfig
from src.reader import parse
from src.runs import Output
from src.script import UserError, run_script


@stoppable()
def main(argv: list[str]) -> int:
    """Train every run that ``argv`` asks for and print how they stand."""
    config = parse(
        MicroConfig, argv, prog="train_micro.py", description=__doc__ or "", row_by="model"
    )
    judged = [f"--{name}" for name in ("ablate", "report", "chain") if getattr(config, name)]
    if judged and config.fold == "full":
        raise UserError(f"{judged[0]} is judged on held-out images: name a --fold")
    if config.chain and (config.ablate or config.report or config.teacher):
        raise UserError("--chain goes without --ablate, --report and --teacher")
    if config.ablate and len(config.seeds) < 3:
        raise UserError("--ablate: a block's worth is within the seeds' noise; pass --seeds 0 1 2")
    output = Output(Path(config.output_dir)).track("micro")

    from src.pipelines.micro import check_protocol, compete, find_sets, show_sets, teach

    check_protocol(config)
    way = show_sets if config.dry_run else teach if config.chain else compete
    way(config, find_sets(config), output)
    return 0


if __name__ == "__main__":
    run_script(main, launched=True)
