"""A Prefect runner that lets its flow runs commit before it ends.

Prefect 3.8.8's own, told to stop, leaves its event loop at once, and with it goes every process that the
loop has started. A terminal's Ctrl-C, which is for everybody in the foreground, would besides reach flow
runs that the runner then asks, too; and asked twice, they end at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.runner import Runner

from rl_research.orchestration.local_server import COMMITTING

_EVERY = 0.5  # seconds between two looks for flow runs that have only now been started
_SECOND = 1.0  # seconds; a terminal that is closed sends SIGHUP twice within milliseconds


class PatientRunner(Runner):
    """Runs what is scheduled; the first signal lets all flow runs commit, a second ends at once."""

    _asked: float | None = None
    _processes: _OwnSessions
    _terminals: list[int]

    def run(self) -> None:
        """Run until a signal comes and the flow runs have ended."""
        self._processes = loop = _OwnSessions()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self.start())
        finally:
            loop.close()

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        """Listen to the signals of a terminal, too; Prefect listens to SIGTERM."""
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or by a shell's `&`
                signal.signal(number, self.handle_sigterm)
        await super().start(run_once, webserver)

    def handle_sigterm(self, *given: Any) -> None:
        """Take up nothing more and ask the flow runs to stop; at the second signal, end all at once.

        One that follows within a second belongs to the first, and a SIGHUP is nobody's second wish.
        """
        number, _frame = given
        if number == signal.SIGHUP:
            self._leave_terminal()
        if self._asked is not None:
            if number != signal.SIGHUP and time.monotonic() - self._asked >= _SECOND:
                self._end(number)
            return
        if not self.started:
            self._end(number)
        self._asked = time.monotonic()
        self._logger.warning(
            "%s: flow runs commit first; once more to end at once", signal.Signals(number).name
        )
        self.execute_in_background(self.astop)

    def _leave_terminal(self) -> None:
        """Say nothing more to a closed terminal: Prefect takes the error for a crash of the flow run."""
        with Path(os.devnull).open("wb") as nowhere:
            for number in self._terminals:
                os.dup2(nowhere.fileno(), number)

    async def cancel_all(self) -> None:
        """Ask the flow runs to stop; `Runner.start` returns when they have."""
        self._ask(set(), time.monotonic() + COMMITTING)

    def _ask(self, asked: set[int], until: float) -> None:
        """SIGTERM for each flow run, once; also for those whose process is only now being started."""
        if time.monotonic() > until:
            self._logger.warning("a flow run does not end; its last checkpoint stands")
            self._end(signal.SIGTERM)
        running = self._processes.running()
        for pid in running - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        asyncio.get_running_loop().call_later(_EVERY, self._ask, asked | running, until)

    def _end(self, number: int) -> None:
        for pid in self._processes.running():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class _OwnSessions(asyncio.SelectorEventLoop):
    """Starts each process in a session of its own, out of the terminal's reach, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[asyncio.SubprocessTransport] = []

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        own = {**options, "start_new_session": True}
        transport, protocol = await super().subprocess_exec(*args, **own)
        self._started = [*self._alive(), transport]
        return transport, protocol

    def running(self) -> set[int]:
        """The processes that were started here and have not ended."""
        return {transport.get_pid() for transport in self._alive()}

    def _alive(self) -> list[asyncio.SubprocessTransport]:
        return [started for started in self._started if started.get_returncode() is None]
