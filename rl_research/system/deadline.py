"""Calls that may hang, made in a thread that nobody has to wait for."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")
_PAUSE = 0.1  # seconds between two looks at how much time is left


class Attempt(Generic[T]):
    """A call of *function*, begun now; the end of the process does not wait for it."""

    def __init__(self, function: Callable[[], T]):
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(function,), daemon=True).start()

    def ended_within(self, seconds_left: Callable[[], float]) -> bool:
        """Wait while *seconds_left*, which is called again and again, is above 0; return whether the call ended."""
        while not self._future.done() and (left := seconds_left()) > 0:
            wait([self._future], min(left, _PAUSE))
        return self._future.done()

    def result(self) -> T:
        """Return what the ended call has returned, or raise what it has raised."""
        return self._future.result()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:  # noqa: BLE001  # `result` raises it where it is asked for
            self._future.set_exception(error)


def countdown(seconds: float) -> Callable[[], float]:
    """Return a function that says how many of *seconds*, counted from now on, are left."""
    until = time.monotonic() + seconds
    return lambda: until - time.monotonic()
