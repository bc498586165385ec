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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

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
_ONE_SIGNAL = 1.0  # seconds
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
        runner.add_deployment(deployment_to_serve(entry, path.parent))
    run_until_stopped(runner)


def _make_place(client: SyncPrefectClient, name: str) -> None:
    """Delete a deployment that waits for a worker: served under its name, it would lose where its flow is."""
    with suppress(ObjectNotFound):
        known = client.read_deployment_by_name(name)
        if known.work_pool_name is not None or known.pull_steps:
            client.delete_deployment(known.id)


def deployment_to_serve(entry: Deployment, folder: Path) -> RunnerDeployment:
    """Return *entry*, whose flow may lie below *folder*, as Prefect's runner takes it."""
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
