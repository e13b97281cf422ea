"""``--metric`` among the options: what it accepts, and which runs it tells apart."""

from __future__ import annotations

import pytest

from src.config import FoldConfig, config_hash, learned_options
from src.reader import parse
from src.script import UserError


def read(*flags: str) -> FoldConfig:
    return parse(FoldConfig, ["--config", "", "--model", "m", *flags], prog="p", description="")


def test_runs_from_before_the_choice_keep_their_hash() -> None:
    plain = FoldConfig(model="m")
    assert not {"metric", "ordinal"} & set(learned_options(plain))
    assert config_hash(FoldConfig(model="m", metric="log_loss")) == config_hash(plain)
    other = FoldConfig(model="m", metric="qwk", ordinal=("low", "high"))
    assert learned_options(other)["metric"] == "qwk"
    assert len({config_hash(c) for c in (plain, other, FoldConfig(model="m", metric="qwk"))}) == 3


def test_names_of_metrics() -> None:
    assert read().metric == "log_loss"
    assert read("--metric", "map@5").metric == "map@5"
    assert read("--metric", "qwk", "--ordinal", "low", "high").ordinal == ("low", "high")
    for wrong in ("acc", "map@0", "map", "map@K", "mean_auc", "f1_samples"):
        with pytest.raises(UserError, match="balanced_accuracy"):
            read("--metric", wrong)
