"""The search for a micro net's form: sizes within the budget, pruning, a journal that goes on."""

import re
from pathlib import Path

import optuna
import pytest

from benchmarks import micro_search
from benchmarks.micro_search import FIRST, draw_form
from src.models.micro.registry import BUDGET_CLASSES, count_trainable
from src.models.micro.unet import MegaNetV1
from tests.mask_runs import FREE, draw


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_channels_are_as_wide_as_the_budget_allows(levels: int) -> None:
    form = draw_form(optuna.trial.FixedTrial({**FIRST, "levels": levels}), 10_000)
    assert len(form["widths"]) == levels and form["gradient"] and not form["pyramid"]
    assert 9_000 < count_trainable(MegaNetV1(BUDGET_CLASSES, **form)) <= 10_000


def test_the_largest_form_of_the_search_fits() -> None:
    largest = {"levels": 5, "growth": 1.9, "gradient": True, "pyramid": True, "attention": True}
    form = draw_form(optuna.trial.FixedTrial(largest), 10_000)
    assert count_trainable(MegaNetV1(BUDGET_CLASSES, **form)) <= 10_000


def test_a_form_that_fits_no_budget_is_given_up() -> None:
    with pytest.raises(optuna.TrialPruned):
        draw_form(optuna.trial.FixedTrial(FIRST), 300)


def test_a_form_near_that_in_use_is_judged_first_and_a_search_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, names in (("train", "abcdefg"), ("val", "hij")):
        draw(tmp_path / "micro" / "CFD", split, names)
    argv = ["--data_dir", str(tmp_path / "micro"), "--out", str(tmp_path / "out")]
    argv += ["--hours", "1e-6", "--folds", "2"]  # one candidate: the first starts in time
    for number in range(2):
        assert micro_search.main([*argv, "--", *FREE]) == 0
        shown = re.findall(r"^(trial\d)  +(\d) ", capsys.readouterr().out, re.MULTILINE)
        assert len(shown) == number + 1 and ("trial0", "2") in shown  # of two folds
