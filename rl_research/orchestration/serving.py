"""`rl-research serve`: what deployment.yaml declares, run by this very process until it is stopped.

Prefect's own runner, told to stop, leaves its event loop at once, and with it goes every process that the
loop has started. Here the first signal lets the flow runs commit; a second one ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from rl_research.orchestration import prefect_private
from rl_research.orchestration.deployment_file import FILE, Deployment, flow_of, is_module_path, read
from rl_research.orchestration.local_server import COMMITTING, children_of

_log = logging.getLogger(__name__)
_INTERVAL = 0.5  # seconds between two looks for flow runs that have only now been started
_ONE_WISH = 1.0  # seconds; a terminal that is closed sends SIGHUP twice within milliseconds
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(path: Path = FILE, limit: int = 2) -> None:
    """Run everything in *path* from this process, *limit* flow runs at a time, until it is stopped.

    SIGTERM, Ctrl-C or a closed terminal has the flow runs commit first, then it ends; what was stopped
    waits, scheduled, for the next `serve` or worker. A second signal ends all at once. A deployment of the
    same name that was meant for workers is replaced. Raises `ConfigError` for a mistake in the file.
    """
    deployments = read(path).deployments
    for entry in deployments:  # as a worker would for each flow run
        os.environ.update(
            {n: str(value) for n, value in entry.work_pool.job_variables.get("env", {}).items()}
        )
    runner = prefect_private.committing_runner(limit)
    with get_client(sync_client=True) as client:
        for entry in deployments:
            _make_place(client, f"{flow_of(entry.entrypoint, path.parent).name}/{entry.name}")
    for entry in deployments:
        runner.add_deployment(_served(entry, path.parent))
    run_until_stopped(runner)


def _make_place(client: SyncPrefectClient, name: str) -> None:
    """Delete a deployment that waits for a worker: served under its name, it would lose where its flow is."""
    with suppress(ObjectNotFound):
        known = client.read_deployment_by_name(name)
        if known.work_pool_name is not None or known.path is None:
            client.delete_deployment(known.id)


def _served(entry: Deployment, folder: Path) -> RunnerDeployment:
    by_module = is_module_path(entry.entrypoint)
    made = flow_of(entry.entrypoint, folder).to_deployment(
        name=entry.name,
        description=entry.description,
        tags=entry.tags,
        parameters=entry.parameters,
        schedules=[Schedule(**one.model_dump(exclude_unset=True)) for one in entry.schedules],
        triggers=[*entry.triggers],
        concurrency_limit=entry.concurrency_limit,
        entrypoint_type=EntrypointType.MODULE_PATH if by_module else EntrypointType.FILE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made


class _NewSessions(asyncio.SelectorEventLoop):
    """Starts each process in a session of its own, which a terminal's Ctrl-C does not reach."""

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        return await super().subprocess_exec(*args, **{**options, "start_new_session": True})


def run_until_stopped(runner: Runner, to_commit: float = COMMITTING) -> None:
    """Run what is scheduled until a signal comes and the flow runs have ended, *to_commit* seconds at most.

    The runner has a thread of its own, and the main thread takes the signals.
    """
    signals = _received_signals()
    terminals = [number for number in (1, 2) if os.isatty(number)]
    with ThreadPoolExecutor(1) as thread:
        serving: Future[None] = thread.submit(_NewSessions().run_until_complete, runner.start())
        stopping: float | None = None
        asked: set[int] = set()
        while not serving.done():
            number = _next(signals)
            if number == signal.SIGHUP:
                _leave(terminals)
            if stopping is None and number is not None:
                stopping = time.monotonic()
                _stop_polling(runner, number)
            elif stopping is not None:
                waited = time.monotonic() - stopping
                _end_if_due(number if waited >= _ONE_WISH else None, overdue=waited > to_commit)
            if stopping is not None:
                running = children_of(os.getpid())
                _send(running - asked, signal.SIGTERM)  # also to those that have only now been started
                asked |= running
        serving.result()


def _received_signals() -> SimpleQueue[int]:
    """Return a queue of the signals to stop that this process receives from now on."""
    received: SimpleQueue[int] = SimpleQueue()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or by a shell's `&`
            signal.signal(number, lambda number, _frame: received.put(number))
    return received


def _next(signals: SimpleQueue[int]) -> int | None:
    try:
        return signals.get(timeout=_INTERVAL)
    except Empty:
        return None


def _leave(terminals: Sequence[int]) -> None:
    """Say nothing more to a closed terminal: Prefect takes the error for a crash of the flow run."""
    with Path(os.devnull).open("wb") as nowhere:
        for number in terminals:
            os.dup2(nowhere.fileno(), number)


def _stop_polling(runner: Runner, number: int) -> None:
    if not runner.started:
        _end_at_once(number)
    _log.warning("%s: flow runs commit first; once more to end at once", signal.Signals(number).name)
    runner.execute_in_background(runner.astop)


def _end_if_due(number: int | None, overdue: bool) -> None:
    """End at a second signal, of which SIGHUP is none, or when the flow runs do not end."""
    if number not in (None, signal.SIGHUP):
        _end_at_once(number)
    if overdue:
        _log.warning("a flow run does not end; its last checkpoint stands")
        _end_at_once(signal.SIGTERM)


def _end_at_once(number: int) -> NoReturn:
    for pid in children_of(os.getpid()):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # the signal is on its way


def _send(processes: Iterable[int], number: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
