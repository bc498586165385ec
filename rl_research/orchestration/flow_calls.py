"""A flow called from the command line: it comes to its end, whatever becomes of Prefect's API.

An API that does not come up, or goes away in the middle, costs a line in the log and the flow run's page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from functools import wraps
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


_HANDED: ContextVar[tuple[object, ...]] = ContextVar("objects handed to a flow", default=())


def call_flow(
    flow: Flow[..., Any],
    parameters: tuple[object, ...],
    api: EmbeddedAPI | None,
    without_prefect: Callable[[str], object],
    *handed: object,
) -> Any:
    """Call *flow* with *parameters*, and return what it returned; raise what it raised or has ended with.

    *api* is the embedded API of this command, None where there is a server. If Prefect fails before the
    body has ended, *without_prefect* does the work: it gets the id of the flow run that had begun, or a new
    one. *handed* are objects that the command has built from *parameters*, so that the flow need not build
    them again: an `Experiment` with these overrides, what `preflight` has `Prepared`, a planned `Study`.
    """
    prefect_private.send_events_briefly()
    flow_run_id, outcomes = str(uuid4()), []

    @wraps(flow.fn)
    def noted(*arguments: object, **options: object) -> object:
        nonlocal flow_run_id
        flow_run_id = str(runtime.flow_run.id)
        outcomes.append(flow.fn(*arguments, **options))
        return outcomes[-1]

    noting = copy(flow)
    noting.fn = noted
    token = _HANDED.set(handed)
    try:
        if api is not None and not api.answers(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()):
            raise ConnectionError(api.last_error())
        state = noting(*parameters, return_state=True)
    except Exception as error:  # noqa: BLE001  # what the body raises would stand in the state
        reason = str(error) or type(error).__name__
    else:
        return _result_of(state)
    finally:
        _HANDED.reset(token)
    if outcomes:
        _log.warning("Prefect could not be told how this ended: %s", reason)
        return _result_of(outcomes[-1])
    _log.warning("Prefect's API is not to be had, so this goes on without it: %s", reason)
    if api is not None:
        api.close()
    return without_prefect(flow_run_id)


def handed_over(kind: type[T]) -> T | None:
    """Return the object of type *kind* that the caller of this flow has built; None if there is none."""
    return next((found for found in _HANDED.get() if isinstance(found, kind)), None)


def _result_of(outcome: object) -> object:
    if not isinstance(outcome, State):
        return outcome
    if isinstance(outcome.data, RLResearchError):
        raise outcome.data
    return outcome.result()
