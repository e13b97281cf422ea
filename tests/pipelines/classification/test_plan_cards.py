"""Processes of further cards: what they ask, what becomes of their failures, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from src.engine.runtime import start_runtime
from src.files import hold
from src.pipelines.classification import plan_cards
from src.pipelines.classification.follow import CardLost, Train
from src.pipelines.classification.plan import Member, Work
from src.pipelines.classification.plan_cards import Cards
from src.pipelines.classification.plan_runs import Place
from src.runs import Output
from src.script import UserError
from src.tool_config import PlanConfig
from tests.pipelines.classification.test_plan import WORK

MEMBER = Member("a", {"epochs": 9}, 1.0, 1.0)
# one card, whose fold takes for ever; then this process is killed
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from src.pipelines.classification.plan_cards import Card, Cards
from tests.pipelines.classification.test_plan_cards import MEMBER, make_place
if __name__ == "__main__":
    root = Path(sys.argv[1])
    card = Card("card 1", make_place(root), {"DOES": "wait"}, root / "log", Cards({}))
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
        said = f"{does} {torch.get_num_threads()} {shorten(1, 9)} {torch.get_num_threads()}"
        (self.output.root / f"{member.name}{fold}").write_text(said)
        while does == "well" and not (self.output.root / "a2").exists():
            time.sleep(0.01)  # until the fold of the other process has looked at its threads
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


def start(
    root: Path, environments: dict[str, dict[str, str]], cards: Cards | None = None
) -> AbstractContextManager[tuple[Train, list[Train], Work]]:
    """Start a process for each of the environments."""
    cards = cards or Cards(environments)
    cards.further = environments
    return cards.training(make_place(root), cards.share(WORK), [MEMBER])


def test_cards_train_and_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.engine.cpu.seconds_with", lambda threads: 1 / threads)
    usual, cards = torch.get_num_threads(), Cards({}, threads=2)
    asked: list[tuple[int, int]] = []
    both = threading.Barrier(2)

    def shorten(done: int, epochs: int) -> int:
        asked.append((done, epochs))
        both.wait(60)
        assert cards.folds == 2 and both.wait(60) >= 0
        return 5

    try:
        with start(tmp_path, {"process 2": {"DOES": "well"}}, cards) as (here, (there,), work):
            assert work.num_cards == 2 and "DOES" not in os.environ
            other = threading.Thread(target=there, args=(MEMBER, 0, shorten))
            other.start()
            while not cards.folds:
                time.sleep(0.01)
            here(MEMBER, 2, shorten)
            assert torch.get_num_threads() == 2, "all of them are there for the blend"
            other.join(60)
            assert cards.folds == 0
    finally:
        torch.set_num_threads(usual)
    assert asked == [(1, 9), (1, 9)]
    assert (tmp_path / "a0").read_text() in ("well 2 5 1", "well 1 5 1")
    assert (tmp_path / "a2").read_text() == " 1 5 1", "two folds, a thread each"
    assert (tmp_path / "logs" / "plan_process2.log").read_text() == "a fold 0 fp32\n"


def test_a_card_that_fails_says_why_and_where_its_log_is(tmp_path: Path) -> None:
    said = {
        "fail": "no such weights; fetch them", "break": "ZeroDivisionError",
        "end": "its process has ended",
    }  # fmt: skip
    with start(tmp_path, {does: {"DOES": does} for does in said}) as (_, trains, _):
        for train, (does, words) in zip(trains, said.items(), strict=True):
            with pytest.raises(CardLost, match=rf"a fold 1 on {does}: {words} \(log: .*{does}"):
                train(MEMBER, 1, max)
            with pytest.raises(CardLost, match="has ended"):
                train(MEMBER, 2, max)
    for does in said:
        log = tmp_path / "logs" / f"plan_{does}.log"
        assert ("Traceback" in log.read_text()) == (does == "break")


def test_cards_end_where_the_plan_is_stopped(tmp_path: Path) -> None:
    lost: list[CardLost] = []
    with (
        pytest.raises(KeyboardInterrupt),
        start(tmp_path, {"card 1": {"DOES": "wait"}}) as (_, (train,), _),
    ):

        def train_one() -> None:
            try:
                train(MEMBER, 0, max)
            except CardLost as error:
                lost.append(error)

        thread = threading.Thread(target=train_one)
        thread.start()
        while not (tmp_path / "held").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt
    thread.join(20)
    with hold(tmp_path / "lock", "the run"):
        assert lost


def test_a_cpu_is_shared_where_it_has_threads_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PlanConfig(device="cpu")
    free = [2 * plan_cards.LEAST_FREE]
    threads = [2]
    monkeypatch.setattr(plan_cards, "free_memory", lambda: free[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    _, cards = plan_cards.start_cards(config)
    assert list(cards.further) == ["process 2"] and cards.threads == 2
    shared = cards.share(WORK)
    assert shared.num_cards == 2 and shared.pace == plan_cards.CPU_PACE
    place = make_place(tmp_path)
    with cards.training(place, shared, []) as (_, elsewhere, work):
        assert not elsewhere and work == WORK, "there is nothing to train"
    _, cards = plan_cards.start_cards(config)
    free[0] = plan_cards.LEAST_FREE - 1
    with cards.training(place, shared, [MEMBER]) as (_, elsewhere, work):
        assert not elsewhere and work == WORK, "the survey showed how much it takes"
    assert not plan_cards.start_cards(config)[1].further
    free[0], threads[0] = 2 * plan_cards.LEAST_FREE, 1
    assert not plan_cards.start_cards(config)[1].further


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
