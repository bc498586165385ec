"""A flow called from the command line: it comes to its end, whatever becomes of Prefect's API.

An API that does not come up, or goes away in the middle, costs a line in the log and the flow run's page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from prefect import Flow, runtime
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from rl_research.errors import RLResearchError
from rl_research.orchestration import prefect_private

if TYPE_CHECKING:
    from rl_research.orchestration.embedded_api import EmbeddedAPI

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class _Call:
    """Objects that pass between the caller of a flow and its body, beside Prefect."""

    handed: tuple[object, ...]
    flow_run_id: str | None = None
    outcome: Any = None
    ended: bool = False


_CALL: ContextVar[_Call | None] = ContextVar("flow call", default=None)


def call_flow(
    flow: Flow[..., Any],
    parameters: tuple[Any, ...],
    api: EmbeddedAPI | None,
    without_prefect: Callable[[str], Any],
    *handed: object,
) -> Any:
    """Call *flow* with *parameters*, and return what it returned; raise what it raised or has ended with.

    *api* is the embedded API of this command, None where there is a server. If Prefect fails before the
    body has ended, *without_prefect* does the work: it gets the id of the flow run that had begun, or a new
    one. *handed* are objects that the command has built from *parameters*, so that the flow need not build
    them again: an `Experiment` with these overrides, what `preflight` has `Prepared`, a planned `Study`.
    """
    prefect_private.send_events_briefly()
    token = _CALL.set(call := _Call(handed))
    try:
        if api is not None and not api.answers(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()):
            raise ConnectionError(api.last_error())
        state = flow(*parameters, return_state=True)
    except Exception as error:  # noqa: BLE001  # what the body raises would stand in the state
        reason = str(error) or type(error).__name__
    else:
        return _result_of(state)
    finally:
        _CALL.reset(token)
    if call.ended:
        _log.warning("Prefect could not be told how this ended: %s", reason)
        return _result_of(call.outcome)
    _log.warning("Prefect's API is not to be had, so this goes on without it: %s", reason)
    if api is not None:
        api.close()
    return without_prefect(call.flow_run_id or str(uuid4()))


def handed_over(kind: type[T]) -> T | None:
    """Return the object of type *kind* that the caller of this flow has built; None if there is none."""
    call = _CALL.get()
    return next((found for found in call.handed if isinstance(found, kind)), None) if call else None


def this_flow_run() -> str:
    """Return the id of the flow run whose body this is, having noted for `call_flow` that it has begun."""
    flow_run_id = str(runtime.flow_run.id)
    if (call := _CALL.get()) is not None:
        call.flow_run_id = flow_run_id
    return flow_run_id


def hand_back(outcome: T) -> T:
    """Return *outcome*, which a flow returns, having noted it for `call_flow`: Prefect may not take it."""
    if (call := _CALL.get()) is not None:
        call.outcome, call.ended = outcome, True
    return outcome


def _result_of(outcome: Any) -> Any:
    if not isinstance(outcome, State):
        return outcome
    if isinstance(outcome.data, RLResearchError):
        raise outcome.data
    if outcome.is_failed() and isinstance(outcome.data, dict):
        raise RLResearchError(outcome.message)
    return outcome.result()
