"""Which rows the linear probe of a large data set is fitted to."""

from __future__ import annotations

import numpy as np

from src.pipelines.classification.wise_ft import MAX_ROWS, pick_rows


def test_few_rows_are_all_taken_and_of_many_an_even_choice() -> None:
    few = np.arange(5, 50)
    assert pick_rows(few, 0) is few
    many = np.arange(3 * MAX_ROWS)
    picked = pick_rows(many, 0)
    assert len(np.unique(picked)) == MAX_ROWS and (np.diff(picked) > 0).all()
    assert abs(picked.mean() / many.mean() - 1) < 0.02
    assert np.array_equal(picked, pick_rows(many, 0)) and not np.array_equal(
        picked, pick_rows(many, 1)
    )
