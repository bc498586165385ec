"""What this package uses of Prefect beyond its documentation is still as `prefect_private` says."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import signal
import subprocess
import sys
from typing import Any

import pytest

from rl_research.orchestration import prefect_private

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


_CRASHES = {
    "prefect.runner._flow_run_executor": "Process exited with status code: {exit_code}.",
    "prefect.runner.runner": "Flow run process exited with non-zero status code {exit_code}.",
    "prefect.workers.base": "Flow run infrastructure exited with non-zero status code {exit_code}.",
}


@pytest.mark.parametrize("module", _CRASHES)
@pytest.mark.parametrize(
    ("number", "terminated", "killed"),
    [(signal.SIGTERM, True, False), (signal.SIGKILL, False, True), (signal.SIGSEGV, False, False)],
)
def test_a_crash_says_how_its_process_ended(
    module: str, number: signal.Signals, terminated: bool, killed: bool
) -> None:
    """The message of a crash names the status of the process, also through a shell."""
    message = _CRASHES[module]
    written = inspect.getsource(importlib.import_module(module))
    assert message.partition("{")[0].strip() in written, (
        f"{module} words a crash anew: adapt `prefect_private`, or a flow run that was killed as it started "
        "is not scheduled again."
    )
    for code in (-number, 128 + number):
        said = message.format(exit_code=code)
        assert prefect_private.was_terminated(said) is terminated
        assert prefect_private.was_killed(said) is killed


def test_a_terminated_flow_run_says_so() -> None:
    """The engine's message for SIGTERM is the one that `was_terminated` knows."""
    from prefect.exceptions import TerminationSignal
    from prefect.states import exception_to_crashed_state

    state = asyncio.run(exception_to_crashed_state(TerminationSignal(signal=signal.SIGTERM)))
    assert prefect_private.was_terminated(state.message), (
        f"Prefect says {state.message!r} of a flow run that SIGTERM has ended: adapt `prefect_private`."
    )


def test_a_stopped_runner_cancels_by_cancel_all() -> None:
    """`Runner.astop` asks `cancel_all`, which is overridden, and listens to signals in a main thread only."""
    from prefect.runner import Runner

    runner: Any = prefect_private.committing_runner(2)
    assert isinstance(runner, Runner)
    assert runner.started is False
    assert inspect.iscoroutinefunction(Runner.cancel_all)
    assert "await self.cancel_all()" in inspect.getsource(Runner.astop), (
        "`Runner.astop` does not ask `cancel_all` any more: `rl-research serve` would cancel its flow runs."
    )
    assert "is threading.main_thread()" in inspect.getsource(Runner.start), (
        "`Runner.start` takes signals in any thread: `serving` has to take them from it."
    )


def test_events_are_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """`EventsWorker` makes its clients with what it was told, and its log record has the event second."""
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(EventsWorker, "_client_override", None)
    log = logging.getLogger("prefect._internal.concurrency")
    monkeypatch.setattr(log, "filters", [])
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        prefect_private.send_events_briefly()
    client, options = EventsWorker._client_override or (None, ())
    assert client is PrefectEventsClient, "`EventsWorker.set_client_override` has another effect now"
    assert dict(options) == {"reconnection_attempts": 2}
    assert len(log.filters) == 1


def test_one_lost_event_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of the events that a service of Prefect's could not send one is a line in the log."""
    from prefect._internal.concurrency import services
    from prefect.events import Event, Resource

    source = inspect.getsource(services)
    assert "failed to process item %r" in source, (
        "Prefect logs an event that it could not send in another way: adapt `_OneLostEvent`, or each fills the screen."
    )
    assert services.logger.name == "prefect._internal.concurrency"
    monkeypatch.setattr(services.logger, "filters", [prefect_private._OneLostEvent()])
    event = Event(event="prefect.task-run.Running", resource=Resource({"prefect.resource.id": "x"}))
    with caplog.at_level(logging.ERROR, services.logger.name):
        for _ in range(3):
            services.logger.error("Service %r failed to process item %r", "it", event)
    assert [r.getMessage() for r in caplog.records] == [
        "Prefect did not take prefect.task-run.Running; its pages may lack more"
    ]


@pytest.mark.slow
def test_the_api_is_an_application() -> None:
    """`create_app` makes an ASGI application that serves the API below /api."""
    code = (
        "from rl_research.orchestration.prefect_private import api_application;"
        "print([route.path for route in api_application().routes])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "'/api'" in done.stdout, f"`create_app` makes another application: {done.stdout} {done.stderr}"
