"""Stopping between two steps: by a signal here or in another process, by another's failure."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from src.engine import interrupt
from src.engine.interrupt import FAILED, Interrupted, Pause, catch_signals
from src.script import MachineError, UserError


def test_a_signal_stops_before_the_next_batch() -> None:
    seen = []
    with pytest.raises(Interrupted, match="SIGTERM") as stop, catch_signals() as pause:
        for batch in pause.between(range(9)):
            seen.append(batch)
            if batch == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # a launcher's echo of it
    assert seen == [0, 1, 2, 3] and stop.value.status == 143


def test_only_a_later_ctrl_c_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    with catch_signals() as pause:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert pause.signum == signal.SIGINT
        monkeypatch.setattr(interrupt, "INSIST_AFTER_S", -1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_another_process_says_when_to_stop() -> None:
    heard = iter([0, 0, signal.SIGTERM])
    pause = Pause(lambda said: next(heard))
    seen = []
    with pytest.raises(Interrupted):
        for batch in pause.between(range(9)):
            seen.append(batch)
    assert seen == [0, 1]
    with pytest.raises(MachineError, match="another process"):
        Pause(lambda said: FAILED)()


@pytest.mark.parametrize("error", [UserError("photo.jpg is damaged"), MachineError("died")])
def test_a_process_without_its_batch_says_so_to_the_others(error: Exception) -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise error

    said: list[int] = []

    def agree(word: int) -> int:
        said.append(word)
        return word

    with pytest.raises(type(error)):
        list(Pause(agree).between(broken()))
    assert said == [0, FAILED]
