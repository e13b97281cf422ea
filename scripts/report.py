"""Report of an output folder as one page: python scripts/report.py --output_dir output.

Reads runs, OOF predictions, weights and forecast, and writes output/report/index.html: a single
file without network or library, for any browser. Photographs are shown where --data_dir is there.
--submit_log "private 0.128" first records the leaderboard's score of the last submission. --watch
shows the folds that are training, until they are done or Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.reader import parse
from src.runs import Output
from src.script import run_script
from src.tool_config import ReportConfig


def main(argv: list[str]) -> int:
    """Write the page that ``argv`` asks for."""
    config = parse(ReportConfig, argv, prog="scripts/report.py", description=__doc__ or "")

    if config.watch:
        from src.pipelines.watch import watch

        watch(Output(Path(config.output_dir)))
        return 0

    from src.pipelines.report import write_report

    if config.submit_log:
        from src.pipelines.classification.leaderboard import record, summary

        print(summary(record(Output(Path(config.output_dir)), config.submit_log)))
    path = write_report(config)
    print(f"{path} written ({path.stat().st_size / 1e6:.2f} MB): open it in a browser")
    return 0


if __name__ == "__main__":
    run_script(main)
