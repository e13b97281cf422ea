from __future__ import annotations

import numpy as np

from src.ensemble.calibration import Shift, no_shift
from src.ensemble.report import least_certain_table, scores_table, shift_lines
from src.ensemble.test_predictions import Averaging, BlendedPredictions
from src.script import format_table


def test_tables_align_double_width_text():
    text = format_table(["name", "loss"], [["한글", 0.5], ["ab", float("nan")], ["c", 12.25]])
    assert text == "name      loss\n한글   0.50000\nab\nc     12.25000"


def test_scores_mark_what_is_adopted():
    score = {"fitted": 0.1, "nested": 0.2, "low": 0.15, "high": 0.25}
    text = scores_table({"uniform": score, "calibrated": score}, "calibrated")
    assert "→ calibrated       0.10000  0.20000  [0.15000, 0.25000]" in text
    assert "  uniform" in text


def test_least_certain_first():
    log_probs = np.log(np.array([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7]], dtype=np.float32))
    text = least_certain_table(
        BlendedPredictions(log_probs, Averaging(*np.zeros((3, 3))), {}), ["a", "b", "c"], ["x", "y"]
    )
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["b", "c", "a"]
    assert "x 0.550" in text and "y 0.450" in text


def test_shift_is_reported_with_the_warning_or_not_at_all():
    prior = np.array([0.9, 0.1])
    assert "none beyond chance" in "".join(shift_lines(no_shift(prior), "ab", corrected=False))
    shift = Shift(np.array([0.5, 0.5]), prior, 1e-9, 0.02)
    text = "\n".join(shift_lines(shift, "ab", corrected=False))
    assert "gain about 0.02000" in text and "forbid" in text and "p = 1e-09" in text
    assert "is corrected" in "\n".join(shift_lines(shift, "ab", corrected=True))
