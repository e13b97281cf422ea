"""Processes of further cards: what they ask, what becomes of their failures, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from src.engine.runtime import start_runtime
from src.files import hold
from src.pipelines.classification.follow import CardLost
from src.pipelines.classification.plan import Member
from src.pipelines.classification.plan_runs import Place, further_cards
from src.runs import Output
from src.script import UserError

MEMBER = Member("a", {"epochs": 9}, 1.0, 1.0)
# one card, whose fold takes for ever; then this process is killed
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from src.pipelines.classification.plan_runs import Card
from tests.pipelines.classification.test_plan_runs import MEMBER, make_place
if __name__ == "__main__":
    root = Path(sys.argv[1])
    card = Card("card 1", make_place(root), {"DOES": "wait"}, root / "log")
    threading.Thread(target=card.train, args=(MEMBER, 0, max), daemon=True).start()
    while not (root / "held").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Played(Place):
    """Trains nothing: does what its environment says."""

    def train(self, member: Member, fold: int, shorten: Callable[[int, int], int]) -> None:
        """Write what was asked and where."""
        does = os.environ.get("DOES", "")
        print(f"{member.name} fold {fold} {self.runtime.precision}")
        (self.output.root / f"{member.name}{fold}").write_text(f"{does} {shorten(1, 9)}")
        if does == "fail":
            raise UserError("no such weights; fetch them")
        if does == "break":
            raise ZeroDivisionError
        if does == "end":
            os._exit(3)
        if does == "wait":
            with hold(self.output.root / "lock", "the run"):
                (self.output.root / "held").touch()
                threading.Event().wait()


def make_place(root: Path) -> Place:
    """A place of nothing but a folder and a runtime."""
    config = cast("Any", SimpleNamespace(device="cpu", precision="auto"))
    nothing = cast("Any", None)
    return Played(config, Output(root), {}, nothing, nothing, nothing, start_runtime("cpu"))


def test_a_card_trains_and_asks(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def shorten(done: int, epochs: int) -> int:
        asked.append((done, epochs))
        return 5

    with further_cards(make_place(tmp_path), {"card 1": {"DOES": "well"}}) as (card,):
        card.train(MEMBER, 0, shorten)
        card.train(MEMBER, 2, shorten)
        assert "DOES" not in os.environ and card.process.pid != os.getpid()
        process = card.process
    assert process.exitcode == 0 and asked == [(1, 9), (1, 9)]
    assert [(tmp_path / name).read_text() for name in ("a0", "a2")] == ["well 5", "well 5"]
    assert (tmp_path / "logs" / "plan_card1.log").read_text() == "a fold 0 fp32\na fold 2 fp32\n"


def test_a_card_that_fails_says_why_and_where_its_log_is(tmp_path: Path) -> None:
    said = {
        "fail": "no such weights; fetch them", "break": "ZeroDivisionError",
        "end": "its process has ended",
    }  # fmt: skip
    with further_cards(make_place(tmp_path), {does: {"DOES": does} for does in said}) as cards:
        for card, (does, words) in zip(cards, said.items(), strict=True):
            with pytest.raises(CardLost, match=rf"a fold 1 on {does}: {words} \(log: .*{does}"):
                card.train(MEMBER, 1, max)
            card.process.join(20)
            with pytest.raises(CardLost, match="has ended"):
                card.train(MEMBER, 2, max)
            log = tmp_path / "logs" / f"plan_{does}.log"
            assert ("Traceback" in log.read_text()) == (does == "break")


def test_cards_end_where_the_plan_is_stopped(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        further_cards(make_place(tmp_path), {"card 1": {"DOES": "wait"}}) as (card,),
    ):
        lost: list[CardLost] = []

        def train() -> None:
            try:
                card.train(MEMBER, 0, max)
            except CardLost as error:
                lost.append(error)

        thread = threading.Thread(target=train)
        thread.start()
        while not (tmp_path / "held").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt
    thread.join(20)
    assert not card.process.is_alive() and lost


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_cards_end_with_a_plan_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(root)}
    said = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=root, env=environment, check=False,
        timeout=120,
    )  # fmt: skip
    assert said.returncode == -signal.SIGKILL
    with hold(tmp_path / "lock", "the run", wait=True):  # else this does not end
        pass
