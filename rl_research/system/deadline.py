"""Calls that may hang, made in a thread that nobody has to wait for."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_PAUSE = 0.1  # seconds between two looks at how much time is left


class Attempt(Generic[T]):
    """A call of *function*, begun now; the end of the process does not wait for it."""

    def __init__(self, function: Callable[[], T]):
        self._function = function
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended_within(self, patience: Callable[[], float]) -> bool:
        """Wait while *patience*, asked again and again, has seconds left; whether the call has ended."""
        while self._thread.is_alive() and (left := patience()) > 0:
            self._thread.join(min(left, _PAUSE))
        return not self._thread.is_alive()

    def result(self) -> T:
        """Return what the ended call has returned, or raise what it has raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # noqa: BLE001  # `result` raises it where it is asked for
            self._error = error


def lasting(seconds: float) -> Callable[[], float]:
    """A patience of *seconds* from now on."""
    until = time.monotonic() + seconds
    return lambda: until - time.monotonic()
