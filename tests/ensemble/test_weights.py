from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from src.ensemble.pool import Blend
from src.ensemble.weights import (
    OofSummary,
    Weights,
    needed_views,
    read_weights,
    restrict,
    used_models,
    write_weights,
)
from src.script import UserError

VIEWS = ("identity", "hflip", "vflip")
MEMBERS = tuple((model, view) for model in "ab" for view in VIEWS)
BLEND = Blend(
    "linear", MEMBERS, np.array([0.1, 0.2, 0.1, 0.0, 0.0, 0.5]), np.linspace(0.9, 1.4, 6),
    1.0 / 3.0, (0.1, 0.0), np.array([0.25, 0.75]),
)  # fmt: skip


def example() -> Weights:
    summary = OofSummary(
        loss=0.1, implied_prior=np.array([1 / 3, 2 / 3]), accuracy=0.9, entropy=0.11,
        residual_error=0.01, confidence=0.91, confidence_error=0.02,
        design_effect=1.5, num_rows=90.0, num_units=60.0,
    )  # fmt: skip
    return Weights(
        blend=BLEND, order="before", classes=("가", "나"), source_classes=("가", "나", "다"),
        alias_groups=(("나", "다"),), folds_hash="f", config_hashes={"a": {"0": "h"}},
        scores={"convex": {"nested": 0.1}}, summary=summary, adaptive_threshold=0.99,
    )  # fmt: skip


def test_round_trip_to_the_last_bit(tmp_path):
    path = tmp_path / "weights.json"
    weights = example()
    write_weights(path, weights)
    again = read_weights(path)
    for one, other in ((weights, again), (BLEND, again.blend), (weights.summary, again.summary)):
        for entry in dataclasses.fields(one):
            if entry.name not in ("blend", "summary"):
                a, b = getattr(one, entry.name), getattr(other, entry.name)
                np.testing.assert_array_equal(a, b) if isinstance(a, np.ndarray) else None
                assert isinstance(a, np.ndarray) or a == b, entry.name
    member = json.loads(path.read_text(encoding="utf-8"))["members"][5]
    assert (member["model"], member["view"], member["weight"]) == ("b", "vflip", 0.5)


@pytest.mark.parametrize(
    "harm", ["[]", "{", '{"version": 0}', '{"version": 1}', "NaN", "negative", "pool", "list"]
)
def test_damaged_files_are_refused_by_name(tmp_path, harm):
    path = tmp_path / "weights.json"
    write_weights(path, example())
    content = json.loads(path.read_text(encoding="utf-8"))
    if harm == "NaN":
        content["members"][0]["weight"] = float("nan")
    elif harm == "negative":
        content["members"][0]["weight"] = -1.0
    elif harm == "pool":
        content["pool"] = "exec"
    elif harm == "list":
        content["members"] = "abc"
    path.write_text(json.dumps(content) if harm.isalpha() else harm, encoding="utf-8")
    with pytest.raises(UserError, match=r"weights\.json") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"run optimize_weights\.py first"):
        read_weights(tmp_path / "weights.json")


def test_used_models_and_views():
    assert used_models(BLEND) == ("a", "b")
    assert needed_views(BLEND, "a", VIEWS) == needed_views(BLEND, "b", VIEWS) == VIEWS[:3]
    only_first = dataclasses.replace(BLEND, weights=np.array([0.9, 0, 0, 0, 0, 0]))
    assert used_models(only_first) == ("a",) and needed_views(only_first, "a", VIEWS) == VIEWS[:1]


def test_restriction_by_hand():
    same, moved = restrict(BLEND)
    np.testing.assert_allclose(same.weights, BLEND.weights)
    assert moved == 0
    # views: a keeps .4 on (.1, .2); b had nothing on the kept ones, so its first view takes .5
    fewer, moved = restrict(BLEND, views=VIEWS[:2])
    np.testing.assert_allclose(fewer.weights, [0.4 / 3, 0.8 / 3, 0, 0.5, 0, 0])
    assert moved == pytest.approx((0.1 + 0.5) / 0.9)
    # models: a weighs what both weighed, .9; the floor stays
    one, moved = restrict(BLEND, models=["a"])
    np.testing.assert_allclose(one.weights, np.array([0.1, 0.2, 0.1, 0, 0, 0]) * 0.9 / 0.4)
    assert one.floors == BLEND.floors
    named = dataclasses.replace(BLEND, members=tuple((f"my_{m}", v) for m, v in BLEND.members))
    assert used_models(restrict(named, models=["my a"])[0]) == ("my_a",)  # as --name was given
    for models in (["c"], ["a", "c"]):  # beside others, too
        with pytest.raises(UserError, match=r"--models c: .* its models are a, b"):
            restrict(BLEND, models=models)
    with pytest.raises(UserError, match=r"leave nothing .* its models are a, b"):
        restrict(BLEND, views=["rot90"])
