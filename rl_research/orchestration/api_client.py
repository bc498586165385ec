"""Prefect's API for what must neither wait for it nor fail because of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.logging.loggers import LoggingAdapter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_log = logging.getLogger(__name__)
_TIMEOUT = 5.0  # seconds for one answer of an API that may be away


@contextmanager
def best_effort(
    failure: str, log: logging.Logger | LoggingAdapter = _log, retries: int = 1
) -> Iterator[None]:
    """Let Prefect's client try what the block asks *retries* times again, and never fail because of it.

    An error in the block is a warning in *log*: ``Prefect FAILURE: REASON``.
    """
    with ExitStack() as settings:
        with suppress(Exception):  # it reads files that somebody may be editing
            settings.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}))
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever the API does, the run goes on
            log.warning("Prefect %s: %s", failure, str(error) or type(error).__name__)


@contextmanager
def short_client() -> Iterator[SyncPrefectClient]:
    """Yield a client that waits seconds for an answer; for a `best_effort` block."""
    with get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT}) as client:
        yield client


def api_answers() -> bool:
    """Return whether Prefect's API is there, within seconds."""
    with best_effort("did not answer whether it is there"), short_client() as client:
        return client.api_healthcheck() is None
    return False


def end_task_run(task_run_id: UUID, state: State[None]) -> None:
    """Set the final *state* of a task run that cannot do so itself."""
    with best_effort("did not answer how a task ended"), short_client() as client:
        client.set_task_run_state(task_run_id, state, force=True)
