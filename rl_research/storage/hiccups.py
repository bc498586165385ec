"""Hiccups: a request to a store that fails for a moment is made again, a few times within seconds.

The clients' own retries cannot be counted, differ from client to client and are none in SFTP's. So they stay off,
and each client makes its requests through `again` or `again_async`; see `clients.prepare` and `Store`.
"""

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rl_research.errors import in_a_line
from rl_research.storage.transient import causes, is_transient, names_of
from rl_research.system import masked, pause_after, retry_async, retry_call

_log = logging.getLogger(__name__)

TRIES = 6
PAUSE = 0.1  # seconds after the first try, doubled with each; three in all
_GIVEN_UP = "rl_research_given_up"  # attribute of an error after which the request has been made again already

T = TypeVar("T")


class _Repeats:
    """Number of requests that this process has made again, and why it did the last one."""

    def __init__(self) -> None:
        self._lock, self.number, self.last = threading.Lock(), 0, ""

    def add(self, error: object) -> None:
        """Note that a request is made again because of *error*."""
        with self._lock:
            self.number, self.last = self.number + 1, masked(in_a_line(error))
        _log.debug("made again: %s", self.last)


_repeats = _Repeats()
note_repeat = _repeats.add


def is_hiccup(error: BaseException) -> bool:
    """Return whether *error* may pass within seconds: no timeout, which has waited, and not `_GIVEN_UP` before."""
    if not (is_transient(error) or has_hung_up(error)):
        return False
    return not any(
        getattr(cause, _GIVEN_UP, False) or any("Timeout" in name for name in names_of(cause))
        for cause in causes(error)
    )


def has_hung_up(error: BaseException) -> bool:
    """Return whether *error* is paramiko's way to say that the server has gone."""
    return isinstance(error, EOFError) or str(error) == "Socket is closed"


def again(request: Callable[[], T]) -> T:
    """Return what *request* returns, which is made again after a hiccup."""
    with _marked():
        return retry_call(request, _counted(), tries=TRIES, pause=PAUSE)


async def again_async(request: Callable[[], Awaitable[T]]) -> T:
    """Return what *request* returns, which is made again after a hiccup."""
    with _marked():
        return await retry_async(request, _counted(), tries=TRIES, pause=PAUSE)


def counted_pause(attempt: int, why: object) -> float:
    """Count a request that the client itself makes again after *attempt*, and return the seconds before it."""
    note_repeat(why)
    return pause_after(attempt, PAUSE)


@contextmanager
def repeats_logged(what: str) -> Iterator[None]:
    """Log in one line how many requests had to be made again in the block, which is about *what*."""
    before = _repeats.number
    try:
        yield
    finally:
        if number := _repeats.number - before:
            requests = "a request" if number == 1 else f"{number} requests"
            _log.info("%s: %s to the store made again; the last after: %s", what, requests, _repeats.last)


def _counted() -> Callable[[BaseException], bool]:
    failures = 0

    def judge(error: BaseException) -> bool:
        nonlocal failures
        failures += 1
        if (hiccup := is_hiccup(error)) and failures < TRIES:
            note_repeat(error)
        return hiccup

    return judge


@contextmanager
def _marked() -> Iterator[None]:
    """Mark the error of the last try, so that no operation around the request makes it again."""
    try:
        yield
    except Exception as error:
        if is_hiccup(error):
            setattr(error, _GIVEN_UP, True)
        raise
