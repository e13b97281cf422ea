"""Check of a data set before the first epoch: python scripts/check_data.py --data_dir input.

Counts, sizes, unreadable files, copies within and across train and test, conflicting and suspicious
labels, train/test shift, class names alike; for masks labels, foreground and sizes. Writes
output/report/data.html, data.json and suspect_labels.csv. Exits with 1 only on errors: files
without which training or prediction would stop.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.reader import parse
from src.runs import Output
from src.script import UserError, counted, quote, run_script
from src.tool_config import CheckConfig

if TYPE_CHECKING:
    from src.pipelines.check_data import Check


def main(argv: list[str]) -> int:
    """Check the data that ``argv`` names."""
    config = parse(CheckConfig, argv, prog="scripts/check_data.py", description=__doc__ or "")
    output = Output(Path(config.output_dir))
    check = run_check(config, output)
    path = check.write(output, f"Data of {config.data_dir}")
    for gravity, text in check.findings:
        print(f"{gravity}: {text}")
    errors, findings = (counted(check.num_errors, "error"), counted(len(check.findings), "finding"))
    print(f"{path} written: {errors}, {findings} in all")
    return 1 if check.num_errors else 0


def run_check(config: CheckConfig, output: Output) -> Check:
    """Check photographs of classes or images with masks, whichever lies there."""
    from src.data.sources.folders import holds_masks
    from src.data.sources.masks import JPEG, MASK_SUFFIXES
    from src.data.sources.registry import SOURCES, detect_source
    from src.pipelines.check_data import check_classes

    if config.source not in ("auto", *SOURCES):
        raise UserError(f"--source {quote(config.source)}: auto, or one of {', '.join(SOURCES)}")
    root = Path(config.data_dir)
    masks = config.masks == "on"
    if config.masks == "auto" and root.is_dir():
        masks = holds_masks(root, MASK_SUFFIXES | JPEG) or detect_source(root) != "folders"
    kinds = [partial(check_classes, config, output), partial(check_drawn, config)]
    first, second = kinds[::-1] if masks else kinds
    try:
        return first()
    except UserError:
        if config.masks == "auto":
            # masks that are worn, perhaps, train/with_mask/; or masks beside the images, 7_mask.png
            with contextlib.suppress(UserError):
                return second()
        raise


def check_drawn(config: CheckConfig) -> Check:
    """Check images with masks; refuse options of a table of classes."""
    from src.pipelines.check_data import check_masks

    for name in ("image_column", "label_column", "group_column"):
        if getattr(config, name):
            raise UserError(
                f"--{name}: names a column of a table of classes, and images with masks are "
                "checked: leave it out"
            )
    return check_masks(config)


if __name__ == "__main__":
    run_script(main)
