"""A Prefect runner until it is stopped: the first signal lets its flow runs commit, a second ends at once.

Prefect's own runner, told to stop, leaves its event loop at once, and with it goes every process that the
loop has started.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from prefect.runner import Runner

from rl_research.orchestration.local_server import COMMITTING, children_of

_log = logging.getLogger(__name__)
_INTERVAL = 0.5  # seconds between two looks for flow runs that have only now been started
_ONE_SIGNAL = 1.0  # seconds
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _NewSessions(asyncio.SelectorEventLoop):
    """Starts each process in a session of its own, which a terminal's Ctrl-C does not reach."""

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        return await super().subprocess_exec(*args, **{**options, "start_new_session": True})


def run_until_stopped(runner: Runner) -> None:
    """Run what is scheduled until a signal comes and the flow runs have committed and ended.

    The runner has a thread of its own; the main thread takes the signals. Signals that follow within a second
    are one, and SIGHUP is never a second one: a terminal that is closed sends it twice.
    """
    received: SimpleQueue[int] = SimpleQueue()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or by a shell's `&`
            signal.signal(number, lambda number, _frame: received.put(number))
    terminals = [number for number in (1, 2) if os.isatty(number)]
    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(_NewSessions().run_until_complete, runner.start())
        while not serving.done() and not (first := _next(received, terminals)):
            pass
        if not serving.done():
            if not runner.started:
                _end_at_once(first)
            _log.warning("%s: flow runs commit first; once more to end at once", signal.Signals(first).name)
            runner.execute_in_background(runner.astop)
            _let_commit(serving, received, terminals)
        serving.result()


def _let_commit(serving: Future[None], received: SimpleQueue[int], terminals: Sequence[int]) -> None:
    """Wait until all flow runs have ended; end at once at a second signal, or when that takes too long."""
    since = time.monotonic()
    asked: set[int] = set()
    while not serving.done():
        running = children_of(os.getpid())
        for pid in running - asked:  # some may have been started only now
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        asked |= running
        number, waited = _next(received, terminals), time.monotonic() - since
        if number not in (0, signal.SIGHUP) and waited > _ONE_SIGNAL:
            _end_at_once(number)
        if waited > COMMITTING:
            _log.warning("a flow run does not end; its last checkpoint stands")
            _end_at_once(signal.SIGTERM)


def _next(received: SimpleQueue[int], terminals: Sequence[int]) -> int:
    """Return the next signal, 0 if none comes for now; after SIGHUP write nothing more to closed *terminals*.

    Prefect takes the error of such a write for a crash of the flow run.
    """
    try:
        number = received.get(timeout=_INTERVAL)
    except Empty:
        return 0
    if number == signal.SIGHUP:
        with Path(os.devnull).open("wb") as nowhere:
            for terminal in terminals:
                os.dup2(nowhere.fileno(), terminal)
    return number


def _end_at_once(number: int) -> None:
    for pid in children_of(os.getpid()):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
