"""A Prefect worker whose flow runs commit when it is asked to stop; a program, ``POOL``, and a function.

Prefect's own worker, asked to stop, kills its flow runs at once. Killed itself, it leaves them alive, and a
SIGTERM has them commit and wait, scheduled, for the next worker.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from queue import SimpleQueue

from rl_research.errors import ConfigError
from rl_research.system import ending_with_us, living_processes

_log = logging.getLogger(__name__)
COMMITTING = 60.0  # seconds for flow runs to commit: checkpoint.deadline, and what W&B needs to close
_POLL = 0.2
_ONE_REQUEST = 1.0  # seconds; signals that follow within them ask once


def work_until_stopped(pool: str, limit: int | None = None) -> None:
    """Run a worker of *pool*, for *limit* flow runs at a time, until SIGTERM, Ctrl-C or a closed terminal.

    Its flow runs commit first. A second SIGTERM or Ctrl-C kills them and raises `KeyboardInterrupt`. A closed
    terminal is never a second request, for it hangs up twice. If this process is killed, so is the worker, and
    the flow runs go on.
    """
    received: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or by a shell's `&`
            signal.signal(number, lambda number, _frame: received.put(number))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with ending_with_us() as (watch, descriptor):
        watcher = subprocess.Popen(
            [*watch, *command, *([] if limit is None else ["--limit", str(limit)])],
            stdin=subprocess.DEVNULL, pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C is meant for this process, which passes it on
        )  # fmt: skip
        while received.empty():
            if (code := watcher.poll()) is not None:
                raise ConfigError(f"the worker of {pool} has ended by itself, with exit code {code}")
            time.sleep(_POLL)
        if (first := received.get()) != signal.SIGHUP:  # of which nobody reads, and to write would fail
            _log.warning("%s: flow runs commit first; once more to end at once", signal.Signals(first).name)
        for worker in _children_of(watcher.pid):
            _end(worker, received)


def _end(worker: int, received: SimpleQueue[int]) -> None:
    """Kill *worker* and let its flow runs commit; kill what does not end in time, or if asked once more."""
    os.kill(worker, signal.SIGSTOP)  # so that it starts nothing more
    flow_runs = _children_of(worker)
    os.kill(worker, signal.SIGKILL)
    for pid in flow_runs:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    since = time.monotonic()
    try:
        while flow_runs & living_processes().keys():
            waited = time.monotonic() - since
            if waited > COMMITTING:
                _log.warning("a flow run does not end and is killed; its last checkpoint stands")
                break
            while not received.empty():
                if received.get() != signal.SIGHUP and waited > _ONE_REQUEST:
                    raise KeyboardInterrupt
            time.sleep(_POLL)
    finally:
        for pid in flow_runs & living_processes().keys():
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)


def _children_of(pid: int) -> set[int]:
    return {child for child, parent in living_processes().items() if parent == pid}


if __name__ == "__main__":
    work_until_stopped(sys.argv[1])
