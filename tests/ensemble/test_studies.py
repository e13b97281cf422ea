"""Optuna studies that several processes share: a journal file, a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.ensemble.search import search_structures
from src.ensemble.studies import ask_until, open_study
from src.script import UserError
from tests.ensemble.test_search import MEMBERS, Structure, distance


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_two_searches_share_their_trials(tmp_path: Path, kind: str) -> None:
    shared = tmp_path / "deep" / "shared"
    if kind == "sqlite":
        tmp_path.joinpath("deep").mkdir()
    storage = {"file": str(shared), "sqlite": f"sqlite:///{shared}"}[kind]
    scored: list[Structure] = []

    def counted(structure: Structure) -> float:
        scored.append(structure)
        return distance(structure)

    def search(machine: str, trials: int) -> tuple[Structure, float]:
        journal = tmp_path / machine / "journal"  # each its own
        return search_structures(
            counted, MEMBERS, journal=journal, name="x", trials=trials, storage=storage
        )

    assert search("first", 3)[1] == 2.0 and len(scored) == 3  # linear or calibrated after
    assert search("second", 3)[1] == 2.0 and len(scored) == 3  # the first's trials count
    found = search("second", 5)
    assert 3 < len(scored) <= 5 and found[1] <= 1.0  # the fourth is log, before
    assert search("first", 5) == found  # both see the same


def test_trials_of_both_count_and_stopped_ones_do(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    path = str(tmp_path / "j")
    one, other = (open_study(path, "x", direction="maximize") for _ in range(2))
    one.tell(one.ask(), 1.0)
    other.tell(other.ask(), state=TrialState.PRUNED)
    one.ask()  # of a process that was killed
    numbers = []
    for trial in ask_until(one, 3):
        numbers.append(trial.number)
        one.tell(trial, 2.0)
    assert numbers == [3] and not list(ask_until(other, 3)) and other.best_value == 2.0


@pytest.mark.parametrize(
    "storage", ["nosuch://host/x", "sqlite:////nowhere/at/all.db", "postgresql+nodriver://h/x"]
)
def test_a_storage_that_cannot_be_opened_is_one_line(storage: str) -> None:
    with pytest.raises(UserError, match=r"--storage .*: cannot be opened") as refused:
        open_study(storage, "x")
    assert "\n" not in str(refused.value)
