"""The sample submission in, its ids and column names out, as they must be handed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.data.scan import find_entry
from src.data.tables import read_csv, refuse_duplicates
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd


def find_sample(root: Path) -> Path | None:
    """Return the sample submission's path, or None where there is none."""
    return find_entry(
        root, "sample_submission.csv", "samplesubmission.csv", "sample-submission.csv"
    )


def read_sample_submission(root: Path | str) -> pd.DataFrame | None:
    """Read the sample submission, or None where there is none.

    The first column holds the ids, as text; the column names are the file's own, untouched.

    Raises:
        UserError: malformed, only one column, or duplicate ids.
    """
    path = find_sample(Path(root))
    if path is None:
        return None
    table = read_csv(path, text_columns=slice(0, 1))
    if table.shape[1] < 2:
        raise UserError(f"{path} has one column: expected an id and the columns to fill")
    refuse_duplicates(table.iloc[:, 0].tolist(), str(path))
    return table


def compare_ids(ids: Sequence[str], sample_ids: Sequence[str], path: Path) -> None:
    """Raise a UserError unless test.csv, at ``path``, and the sample name the same ids."""
    lacking = sorted(set(sample_ids) - set(ids))
    extra = sorted(set(ids) - set(sample_ids))
    if lacking or extra:
        raise UserError(
            f"{path} and the sample submission differ: {len(lacking)} ids only in the sample, "
            f"{len(extra)} only in {path.name}, first {(lacking + extra)[0]!r}: restore both files"
        )
