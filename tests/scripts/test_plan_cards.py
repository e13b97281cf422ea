"""A plan on several cards: two processes on the CPU that stand for two of them."""

from __future__ import annotations

import csv
import json
import re

import pytest

from src.engine.runtime import start_runtime
from src.pipelines.classification import plan, plan_cards
from src.runs import Output
from tests.scripts.conftest import Place


@pytest.mark.slow
def test_folds_are_shared_between_cards(
    fresh: Place, plan_of_a_probe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = plan_cards.Cards({"card 1": {"OMP_NUM_THREADS": "1"}})
    monkeypatch.setattr(plan_cards, "start_cards", lambda config: (start_runtime("cpu"), cards))
    monkeypatch.setattr(plan, "MAX_EPOCHS", 4)

    def members(ranked: list[plan.Candidate], work: plan.Work, *_: object) -> list[plan.Member]:
        assert work.num_cards == 2
        made = plan.make_member(ranked[0], "near", 4, work, 0, "a")
        return [made, plan.make_member(ranked[0], "moving", 4, work, 0, "b")]

    monkeypatch.setattr(plan, "first_members", members)
    said = fresh.start("scripts.plan", *plan_of_a_probe, "--hours", "0.1")
    assert said.status == 0, said.out + said.err
    output = Output(fresh.output)
    for name in "ab":
        for fold in range(2):
            run = output.run(name, fold)
            assert json.loads(run.finished.read_text())["epochs"] == 4
            assert run.test_logits.exists() and run.test_info.exists()
    elsewhere = (output.logs / "plan_card1.log").read_text(encoding="utf-8")
    here = re.findall(r"/([ab])/fold(\d)", said.out)
    there = re.findall(r"/([ab])/fold(\d)", elsewhere)
    assert {*here, *there} == {(name, fold) for name in "ab" for fold in "01"}
    assert not {*here} & {*there}, "each fold on one card"
    with (fresh.output / "history.csv").open(encoding="utf-8") as file:
        assert {"a", "b"} < set(list(csv.DictReader(file))[-1]["models"].split())
    assert json.loads(output.plan_state.read_text())["under_way"] == []
