"""All that this package uses of Prefect beyond what Prefect documents, each name once.

Read in prefect 3.8.8. `tests/test_prefect_private.py` fails with a sentence when a release changes one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

# What Prefect writes into the message of a `Crashed` state, which holds neither signal nor exit code: here
# SIGTERM and SIGKILL, with 128 more where a shell was between. Without that a flow run that was killed would
# not be scheduled again.
_KILLED = re.compile(r"aborted by a termination signal|status code:? (-15|143|-9|137)\b")


def was_killed(message: str | None) -> bool:
    """Return whether *message* of a state says that SIGTERM or SIGKILL has ended the process."""
    return bool(_KILLED.search(message or ""))


def api_application() -> FastAPI:
    """Return Prefect's API as an ASGI application, for a server with a socket of our own.

    `prefect server start` takes a port, which somebody else may have by then, and no socket.
    """
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def send_events_briefly() -> None:
    """Let Prefect try each of its events three times, not eleven times with pauses.

    Those that fail stay in line for when the server is back. At the end of a command Prefect has already
    waited for the server with the state of the flow run; where that was in vain, 15 events would keep the
    command for two minutes. Prefect has no setting for that.
    """
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker, emit_events_to_cloud, should_emit_events_to_running_server

    if should_emit_events_to_running_server() and not emit_events_to_cloud():
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=2)
