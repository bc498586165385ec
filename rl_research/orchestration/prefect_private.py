"""All that this package uses of Prefect beyond what Prefect documents, each name once.

Read in prefect 3.8.8. `tests/test_prefect_private.py` fails with a sentence when a release changes one.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prefect.runner import Runner

# What Prefect writes into the message of a `Crashed` state, which holds neither signal nor exit code: here
# SIGTERM and SIGKILL, with 128 more where a shell was between. Without that a flow run that was killed as it
# started would not be scheduled again.
_TERMINATED = re.compile(r"aborted by a termination signal|status code:? (-15|143)\b")
_KILLED = re.compile(r"status code:? (-9|137)\b")

#: Where Prefect's background services log what they could not send (`prefect._internal.concurrency`).
_SERVICES_LOG = "prefect._internal.concurrency"


def was_terminated(message: str | None) -> bool:
    """Return whether *message* of a state says that SIGTERM has ended the process."""
    return bool(_TERMINATED.search(message or ""))


def was_killed(message: str | None) -> bool:
    """Return whether *message* of a state says that SIGKILL has ended the process."""
    return bool(_KILLED.search(message or ""))


def api_application() -> FastAPI:
    """Return Prefect's API as an ASGI application, for a server with a socket of our own.

    `prefect server start` takes a port, which somebody else may have by then, and no socket.
    """
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def committing_runner(limit: int) -> Runner:
    """Return a runner of *limit* flow runs at a time whose `Runner.astop` leaves them their time to commit.

    Prefect's own `Runner.cancel_all`, which `astop` calls, marks them as cancelled, so that nobody would
    take them up again. `Runner.start` returns when they have ended. It listens to SIGTERM in a main thread
    only; see `serving`.
    """
    from prefect.runner import Runner

    class CommittingRunner(Runner):
        async def cancel_all(self) -> None:
            """Cancel nothing."""

    return CommittingRunner(limit=limit, pause_on_shutdown=False)


def send_events_briefly() -> None:
    """Let Prefect try each of its events three times, not eleven times with pauses, and report one alone.

    Those that fail stay in line for when the server is back. At the end of a command Prefect has already
    waited for the server with the state of the flow run; where that was in vain, 15 events would keep the
    command for two minutes, and fill the screen. Prefect has no setting for that.
    """
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker, emit_events_to_cloud, should_emit_events_to_running_server

    if emit_events_to_cloud() or not should_emit_events_to_running_server():
        return
    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=2)
    log = logging.getLogger(_SERVICES_LOG)
    if not any(isinstance(known, _OneLostEvent) for known in log.filters):
        log.addFilter(_OneLostEvent())


class _OneLostEvent(logging.Filter):
    """Of the events that Prefect could not send the first, in a line; it shows each in 3,000 characters."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        from prefect.events import Event

        item = record.args[1] if isinstance(record.args, tuple) and record.args[1:] else None
        if not isinstance(item, Event):
            return True
        record.msg, record.args = "Prefect did not take %s; its pages may lack more", (item.event,)
        first, self._seen = not self._seen, True
        return first
