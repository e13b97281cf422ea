"""``--metric`` among the options: what it accepts, and which runs it tells apart."""

from __future__ import annotations

import pytest

from scripts.plan import fold_flags
from src.config import FoldConfig, config_hash, learned_options
from src.mask_config import LaneConfig
from src.metrics.contest import find_metric
from src.reader import fill, parse
from src.script import UserError
from src.tool_config import PlanConfig


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
    for wrong in ("acc", "map@0", "map@K"):
        with pytest.raises(UserError, match=r"expected .*balanced_accuracy"):
            read("--metric", wrong)


def test_what_is_not_learned_is_said() -> None:
    for wrong in ("mean_auc", "f1_samples", "map", "rmse"):
        with pytest.raises(UserError, match=r"(several labels|not learned) .* qwk, auc, map@K$"):
            find_metric(read("--metric", wrong).metric, ("a", "b"))


def test_a_plan_trains_for_the_metric() -> None:
    plan = parse(
        PlanConfig, ["--metric", "qwk", "--ordinal", "low", "high"], prog="p", description=""
    )
    flags = fold_flags(plan)
    row = fill(FoldConfig, flags | {"config": ""}, row_by="model")
    assert row.metric == "qwk" and row.ordinal == ("low", "high")


def test_mask_runs_of_before_groups_by_name_keep_their_hash() -> None:
    assert "group_by_name" not in learned_options(LaneConfig())
    assert learned_options(LaneConfig(group_by_name=False))["group_by_name"] is False
