"""A flow as the command line calls it: it comes to its end, whatever becomes of Prefect's API.

An API that does not come up, or goes away in the middle, costs a line in the log and the flow run's page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.events import Event
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker, emit_events_to_cloud, should_emit_events_to_running_server
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from rl_research.errors import RLResearchError
from rl_research.orchestration import pipeline
from rl_research.orchestration.embedded_api import EmbeddedAPI

_log = logging.getLogger(__name__)


def call_flow(
    flow: Flow[..., Any], words: tuple[Any, ...], api: EmbeddedAPI | None, alone: Callable[[str], Any]
) -> Any:
    """What *flow* returned, or has ended with; where Prefect fails before, what *alone* does.

    *alone* gets the id of the flow run that had begun, or a new one.
    """
    _be_brief_about_events()
    with pipeline.witnessed() as seen:
        if api is None or api.answers(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()):
            try:
                state = flow(*words, return_state=True)
            except Exception as error:  # noqa: BLE001  # what the body raises would stand in the state
                reason = str(error) or type(error).__name__
            else:
                return _result_of(state)
        else:
            reason = api.last_words()
    if seen.ended:
        _log.warning("Prefect could not be told how this ended: %s", reason)
        return _result_of(seen.outcome)
    _log.warning("Prefect's API is not to be had, so this goes on without it: %s", reason)
    if api is not None:
        api.close()
    return alone(seen.flow_run_id or str(uuid4()))


def _be_brief_about_events() -> None:
    """Let Prefect try each of its events three times, not eleven times with pauses, and tell of one alone.

    Those that fail stay in line for when the server is back. At the end it has been told of the flow run's
    before, with patience; where that was in vain 15 events would keep the command for two minutes, and fill
    the screen.
    """
    if emit_events_to_cloud() or not should_emit_events_to_running_server():
        return
    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=2)
    log = logging.getLogger("prefect._internal.concurrency")
    if not any(isinstance(known, _OneLostEvent) for known in log.filters):
        log.addFilter(_OneLostEvent())


class _OneLostEvent(logging.Filter):
    """Of the events that Prefect could not send the first, in a line; it shows each in 3,000 characters."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        item = record.args[1] if isinstance(record.args, tuple) and record.args[1:] else None
        if not isinstance(item, Event):
            return True
        record.msg, record.args = "Prefect did not take %s; its pages may lack more", (item.event,)
        first, self._seen = not self._seen, True
        return first


def _result_of(outcome: Any) -> Any:
    """What a flow returned; raises what it raised or has ended with."""
    if not isinstance(outcome, State):
        return outcome
    if isinstance(outcome.data, RLResearchError):
        raise outcome.data
    if outcome.is_failed() and isinstance(outcome.data, dict):
        raise RLResearchError(outcome.message)
    return outcome.result()
