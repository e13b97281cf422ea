"""Signal handling: SIGTERM and SIGINT stop the loop at the next safe step; a second one aborts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 (it is no error: the state is saved)
    """A signal asked the run to stop.

    Attributes:
        status: exit status by the shell's convention, 128 + the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = 128 + signum


class Pause:
    """Raises ``Interrupted`` when called after a signal came."""

    signum: int | None = None

    def __call__(self) -> None:
        """Raise if a signal has asked to stop."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def catch_signals() -> Iterator[Pause]:
    """Turn the first SIGTERM or SIGINT into a request; handlers are put back afterwards."""
    pause = Pause()
    if threading.current_thread() is not threading.main_thread():
        yield pause  # only the main thread may set handlers
        return

    def request(signum: int, frame: FrameType | None) -> None:
        if pause.signum is not None:
            raise KeyboardInterrupt
        pause.signum = signum

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pause
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
