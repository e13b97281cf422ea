"""A finished run as one file: python scripts/export.py --run output/lite0/fold0 --format onnx.

ONNX holds resizing, mean and std and the softmax: pixels of any size in, probabilities out. It is
checked against PyTorch on images of --data_dir (or noise); nothing is written where they differ.
--precision int8 or fp16 says what it loses on held-out images. --run output: the whole ensemble.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.reader import parse
from src.script import UserError, run_script
from src.tool_config import ExportConfig


def main(argv: list[str]) -> int:
    """Export the run that ``argv`` names."""
    config = parse(ExportConfig, argv, prog="scripts/export.py", description=__doc__ or "")
    if not config.run:
        raise UserError(
            "--run is missing: the folder of a finished run, as output/lite0/fold0, or output"
        )

    from src.pipelines.deploy.export import write_export

    for line in write_export(config):
        print(line)
    return 0


if __name__ == "__main__":
    run_script(main)
