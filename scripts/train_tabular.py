"""Further columns of train.csv and test.csv as a member: python scripts/train_tabular.py --stack.

Trains gradient boosting or logistic regression on columns such as age, site or hour, on the folds
of the image runs, and writes run folders that optimize_weights.py and infer_ensemble.py take.
--stack adds what the image models say of each image. Seconds; finished folds are skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.engine.interrupt import stoppable
from src.reader import parse
from src.script import counted, run_script
from src.tool_config import TabularConfig


@stoppable()
def main(argv: list[str]) -> int:
    """Train the member that ``argv`` asks for."""
    config = parse(TabularConfig, argv, prog="scripts/train_tabular.py", description=__doc__ or "")
    from src.pipelines.classification.tabular import train_tabular

    folders = train_tabular(config)
    if folders:
        print(
            f"{folders[0].parent}: {counted(len(folders), 'fold')}; optimize_weights.py blends them"
        )
    return 0


if __name__ == "__main__":
    run_script(main)
