"""Uploads as tasks: seen in their flow run's page, retried by Prefect.

`UploadByTask` makes them beside training; `upload_pending` makes up for those of runs that have ended.
"""

# No `from __future__ import annotations`: see flows/train.py.

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect import runtime, task
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed

from rl_research.checkpoints import Checkpoint
from rl_research.errors import ConfigError, RLResearchError, in_a_line
from rl_research.orchestration.api_client import best_effort, short_client
from rl_research.orchestration.artifacts import publish_checkpoint
from rl_research.orchestration.retry_policies import RETRY_TRANSIENT, retry_within
from rl_research.storage import is_transient
from rl_research.uploads import (
    RunStorage,
    TooLate,
    Upload,
    announce_late,
    leased_for_upload,
    pending_checkpoints,
    record_uploads,
    unannounced,
)

_log = logging.getLogger(__name__)

DELIVERED = "delivered"
#: A row of the upload flow's table: ``run_id``, ``step``, ``storage_url`` and ``outcome``.
Delivery = dict[str, Any]


@task(task_run_name="upload step {checkpoint.global_step}", **RETRY_TRANSIENT)
def upload_checkpoint(upload: Upload, checkpoint: Checkpoint) -> Checkpoint | State[Any]:
    """Bring the checkpoint to its storage; retried alone, without training again.

    After scoring it is the manifest alone that is sent again, with the score.
    """
    try:
        uploaded = upload(checkpoint)
    except TooLate:
        return _given_up()
    if uploaded is None:
        return Completed(name="Skipped", message="retention has removed this checkpoint meanwhile")
    publish_checkpoint(uploaded)
    return uploaded


def _given_up() -> State[Any]:
    message = "it had not arrived when its run ended; the run's next start tries again"
    return Crashed(name="GivenUp", message=message)


class UploadByTask:
    """A `rl_research.uploads.queue.UploadRunner` that gives each upload a task run of the current flow run.

    It is called in the thread of the uploads, with a copy of the flow's context. Where Prefect's API does
    not answer, the upload is made without it. As a context manager it ends the task run that is given up.
    """

    def __init__(self, retry_for: float) -> None:
        self._task = upload_checkpoint.with_options(**retry_within(retry_for))
        self._context = contextvars.copy_context()
        self._task_run: UUID | None = None
        self._ended = False
        self._done = False
        self._failure: Exception | None = None

    def __call__(self, upload: Upload, checkpoint: Checkpoint) -> None:
        """Call *upload* with *checkpoint* until it succeeds; raise what its last try raised."""
        self._context.run(self._run, upload, checkpoint)

    def __enter__(self) -> "UploadByTask":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._task_run is not None:
            with best_effort("did not answer how a task ended"), short_client() as client:
                client.set_task_run_state(self._task_run, _given_up(), force=True)

    def _run(self, upload: Upload, checkpoint: Checkpoint) -> None:
        if not _api_answers():
            _log.warning("Prefect's API does not answer: step %d has no task", checkpoint.global_step)
            upload(checkpoint)
            return
        self._done, self._failure = False, None
        try:
            self._task(lambda c: self._try(upload, c), checkpoint)
        except Exception as error:
            if error is self._failure:
                raise
            _log.warning("Prefect lost the upload of step %d: %s", checkpoint.global_step, error)
            if not self._done:
                upload(checkpoint)
        finally:
            self._task_run = None

    def _try(self, upload: Upload, checkpoint: Checkpoint) -> Checkpoint | None:
        """Call *upload*, and remember how that ended, whatever Prefect makes of it."""
        self._begin(str(runtime.task_run.id))
        try:
            uploaded = upload(checkpoint)
        except Exception as error:
            if self._ended and not isinstance(error, TooLate):
                # The process is ending, which is what failed it; Prefect, told now, would start an API.
                threading.Event().wait()
            self._failure = error
            raise
        self._done = True
        return uploaded

    def _begin(self, task_run_id: str) -> None:
        self._task_run = UUID(task_run_id)


def _api_answers() -> bool:
    with best_effort("did not answer whether it is there"), short_client() as client:
        return client.api_healthcheck() is None
    return False


def upload_pending(storage: RunStorage) -> tuple[list[Delivery], bool]:
    """Bring what *storage* lacks, and tell W&B; return what became of it, and whether the store answers.

    A run that is open is left to itself. One run's trouble is a line in the table, not the end of the round.
    """
    try:
        if not pending_checkpoints(storage) and not unannounced(storage):
            return [], True
        with leased_for_upload(storage) as confirm:
            return _deliver(storage, confirm)
    except ConfigError as busy:
        _log.info("%s", busy)
        return [], True
    except Exception as error:  # noqa: BLE001  # see above
        _log.warning("%s: %s", storage.folder, in_a_line(error), exc_info=not isinstance(error, OSError))
        return [_delivery(storage, None, in_a_line(error))], not is_transient(error)


def _deliver(storage: RunStorage, confirm: Callable[[], None]) -> tuple[list[Delivery], bool]:
    """Bring the newest first, for that is what another machine goes on from, until the store is silent."""
    task = upload_checkpoint.with_options(**retry_within(storage.config.storage.retry_for))
    found: list[Delivery] = []
    answers = True
    for checkpoint in reversed(pending_checkpoints(storage)):
        state: State[Any] = task(lambda c: storage.upload(c, confirm), checkpoint, return_state=True)
        outcome = DELIVERED if state.is_completed() else in_a_line(state.data)
        found.append(_delivery(storage, checkpoint, outcome))
        answers = not (isinstance(state.data, BaseException) and is_transient(state.data))
        if not answers:
            break
    record_uploads(storage)
    if answers and (arrived := unannounced(storage)):
        try:
            announce_late(storage, arrived)
        except Exception as error:  # noqa: BLE001  # a line in the table, as above
            reason = f"W&B is not told: {in_a_line(error)}"
            _log.warning("%s: %s", storage.folder, reason, exc_info=not isinstance(error, OSError | RLResearchError))
            found += [_delivery(storage, checkpoint, reason) for checkpoint in arrived]
    return found, answers


def _delivery(storage: RunStorage, checkpoint: Checkpoint | None, outcome: str) -> Delivery:
    return {
        "run_id": storage.config.run_id,
        "step": None if checkpoint is None else checkpoint.global_step,
        "storage_url": storage.ledger().place,
        "outcome": outcome,
    }
