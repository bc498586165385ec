"""Prefect's API for what must neither wait for it nor fail because of it."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.logging.loggers import LoggingAdapter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_log = logging.getLogger(__name__)
_TIMEOUT = 5.0  # seconds for one answer of an API that may be away


@contextmanager
def best_effort(failure: str, log: logging.Logger | LoggingAdapter = _log, retries: int = 1) -> Iterator[None]:
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
