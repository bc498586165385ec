"""What this package uses of Prefect beyond its documentation is still as `prefect_private` says."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import signal
import subprocess
import sys

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
    ("number", "killed"), [(signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGSEGV, False)]
)
def test_a_crash_says_how_its_process_ended(module: str, number: signal.Signals, killed: bool) -> None:
    """The message of a crash names the status of the process, also through a shell."""
    message = _CRASHES[module]
    written = inspect.getsource(importlib.import_module(module))
    assert message.partition("{")[0].strip() in written, (
        f"{module} words a crash anew: adapt `prefect_private`, or a flow run that was killed as it started "
        "is not scheduled again."
    )
    for code in (-number, 128 + number):
        said = message.format(exit_code=code)
        assert prefect_private.was_killed(said) is killed


def test_a_terminated_flow_run_says_so() -> None:
    """The engine's message for SIGTERM is the one that `was_killed` knows."""
    from prefect.exceptions import TerminationSignal
    from prefect.states import exception_to_crashed_state

    state = asyncio.run(exception_to_crashed_state(TerminationSignal(signal=signal.SIGTERM)))
    assert prefect_private.was_killed(state.message), (
        f"Prefect says {state.message!r} of a flow run that SIGTERM has ended: adapt `prefect_private`."
    )


def test_events_are_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """`EventsWorker` makes its clients with what it was told."""
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(EventsWorker, "_client_override", None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        prefect_private.send_events_briefly()
    client, options = EventsWorker._client_override or (None, ())
    assert client is PrefectEventsClient, "`EventsWorker.set_client_override` has another effect now"
    assert dict(options) == {"reconnection_attempts": 2}


@pytest.mark.slow
def test_the_api_is_an_application() -> None:
    """`create_app` makes an ASGI application that serves the API below /api."""
    code = (
        "from rl_research.orchestration.prefect_private import api_application;"
        "print([route.path for route in api_application().routes])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "'/api'" in done.stdout, f"`create_app` makes another application: {done.stdout} {done.stderr}"
