"""Signal handling: SIGTERM and SIGINT stop all processes between the same two steps."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from src.script import MachineError, UserError

T = TypeVar("T")
Main = Callable[[list[str]], int]

FAILED = 1000  # what a process says that cannot go on; above every signal's number
INSIST_AFTER_S = 1.0  # a second Ctrl-C this much later wants no saving; sooner, it is an echo


class Interrupted(Exception):  # noqa: N818 (it is no error: the state is saved)
    """A signal asked the run to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = 128 + signum  # exit status by the shell's convention


GOES_ON = "the state is saved, the same command goes on from here"


def stoppable(said: str = GOES_ON) -> Callable[[Main], Main]:
    """Let a script's ``main`` end with the signal's exit status where a signal stopped it.

    ``said`` is printed behind the signal's name.
    """

    def wrap(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: list[str]) -> int:
            try:
                return main(argv)
            except Interrupted as stop:
                print(f"{stop}; {said}")
                return stop.status

        return run

    return wrap


class Pause:
    """Raises ``Interrupted`` when called after a signal came, to whichever process.

    ``agree`` returns the greatest of what all processes say, who all call it equally often; see
    :meth:`src.engine.runtime.Runtime.agree`.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self.agree = agree
        self.signum: int | None = None

    def __call__(self) -> None:
        """Raise if a signal has asked any process to stop, or if another cannot go on.

        Raises:
            Interrupted: a signal.
            MachineError: another process has failed.
        """
        said = self.agree(self.signum or 0)
        if said == FAILED:
            raise MachineError("another process of this run failed; it says why")
        if said:
            raise Interrupted(said)

    def between(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield ``batches``, equally many in every process, and may stop before each.

        Raises:
            Interrupted: a signal asked to stop.
            MachineError: a batch cannot be had, here or in another process.
            UserError: a file of the batch cannot be read.
        """
        left = iter(batches)
        while True:
            try:
                batch = next(left)
            except StopIteration:
                return
            except (MachineError, UserError):
                self.agree(FAILED)
                raise
            self()
            yield batch


@contextmanager
def catch_signals(agree: Callable[[int], int] = int) -> Iterator[Pause]:
    """Turn the first SIGTERM or SIGINT into a request; handlers are put back afterwards.

    A launcher and a cluster may both send the same signal, so that only a later Ctrl-C insists.
    """
    pause = Pause(agree)
    if threading.current_thread() is not threading.main_thread():
        yield pause  # only the main thread may set handlers
        return
    asked = 0.0

    def request(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if pause.signum is None:
            pause.signum, asked = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - asked > INSIST_AFTER_S:
            raise KeyboardInterrupt

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pause
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
