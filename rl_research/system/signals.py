"""A polite request to stop: the first signal is remembered and polled, a second one ends at once."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rl_research.errors import Interrupted

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Overdue(BaseException):
    """Raised wherever the process is when the deadline has passed; `open_run` makes it `Interrupted`.

    No `Exception`, so that nobody who guards against failing libraries takes it for one.
    """


class StopRequest:
    """Whether, and by which signal, the run has been asked to stop.

    Whoever does not poll it for *deadline* seconds after the signal gets `Overdue` wherever it is.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.by: signal.Signals | None = None
        self._until = 0.0

    def seconds_left(self) -> float:
        """Return how much of the deadline is left, 0 if nobody asked to stop."""
        return max(0.0, self._until - time.monotonic())

    def __bool__(self) -> bool:
        return self.by is not None

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` if the run has been asked to stop."""
        if self.by is not None:
            raise Interrupted(f"stopped by {self.by.name}")

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal and set the alarm; leave at once if there was a signal before."""
        if self.by is not None:
            raise KeyboardInterrupt
        self.by = signal.Signals(number)
        self._until = time.monotonic() + self.deadline
        signal.setitimer(signal.ITIMER_REAL, self.deadline)
        _log.warning("%s: stopping at the next rollout; once more to stop now", self.by.name)

    def overdue(self, _number: int, _frame: FrameType | None) -> None:
        """End what could not end in time."""
        assert self.by is not None
        raise Overdue(
            f"{self.by.name}: nothing could be committed within checkpoint.deadline={self.deadline:g} "
            "seconds; the last checkpoint stands"
        )

    def disarm(self) -> None:
        """Cancel the alarm: the run is ending."""
        if self.by is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextmanager
def listening(deadline: float = 25.0) -> Iterator[StopRequest]:
    """Take SIGINT, SIGTERM, SIGUSR1 and SIGHUP (a closed terminal) as requests to stop, until the block ends.

    A SIGHUP that is ignored, as under `nohup`, stays so.

    Only the main thread may: elsewhere the request is never made, and the signals keep their meaning.
    """
    request = StopRequest(deadline)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, request.receive) for number in _SIGNALS if number not in ignored}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, request.overdue)
    try:
        yield request
    finally:
        request.disarm()
        for number, handler in before.items():
            signal.signal(number, handler)
