"""Uploads as tasks: seen in their flow run's page, retried by Prefect.

`UploadByTask` makes them beside training; `upload_pending` makes up for those of runs that have ended.
"""

import contextvars
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from prefect import runtime, task
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed

from rl_research import uploads
from rl_research.checkpoints import Checkpoint
from rl_research.errors import ConfigError, RLResearchError, in_a_line
from rl_research.orchestration.api_client import best_effort, short_client
from rl_research.orchestration.artifacts import Row, publish_checkpoint, publish_table
from rl_research.orchestration.retry_policies import RETRY_TRANSIENT, retry_within
from rl_research.storage import is_transient
from rl_research.uploads import RunStorage, TooLate, Upload

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """Attempt to bring a checkpoint that was left behind to its storage: a row of the upload flow's table."""

    run_id: str
    step: int | None
    storage_url: str
    outcome: str
    is_done: bool
    store_is_silent: bool


@task(task_run_name="upload step {checkpoint.global_step}", **RETRY_TRANSIENT)
def upload_checkpoint(upload: Upload, checkpoint: Checkpoint) -> Checkpoint | State[object]:
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


def _given_up() -> State[object]:
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
        self._task_run: str | None = None
        self._ended = False

    def __call__(self, upload: Upload, checkpoint: Checkpoint) -> None:
        """Call *upload* with *checkpoint* until it succeeds; raise what its last try raised."""
        self._context.run(self._run, upload, checkpoint)

    def __enter__(self) -> "UploadByTask":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._task_run is not None:
            with best_effort("did not answer how a task ended"), short_client() as client:
                client.set_task_run_state(UUID(self._task_run), _given_up(), force=True)

    def _run(self, upload: Upload, checkpoint: Checkpoint) -> None:
        if not _api_answers():
            _log.warning("Prefect's API does not answer: step %d has no task", checkpoint.global_step)
            upload(checkpoint)
            return
        tries: list[Exception | None] = []  # how each has ended, whatever Prefect makes of it

        def attempt(checkpoint: Checkpoint) -> Checkpoint | None:
            self._task_run = runtime.task_run.id
            try:
                uploaded = upload(checkpoint)
            except Exception as error:
                if self._ended and not isinstance(error, TooLate):
                    # The process is ending, which is what failed it; Prefect, told now, would start an API.
                    threading.Event().wait()
                tries.append(error)
                raise
            tries.append(None)
            return uploaded

        try:
            self._task(attempt, checkpoint)
        except Exception as error:
            if tries and error is tries[-1]:
                raise
            _log.warning("Prefect lost the upload of step %d: %s", checkpoint.global_step, error)
            if not tries or tries[-1] is not None:
                upload(checkpoint)
        finally:
            self._task_run = None


def _api_answers() -> bool:
    with best_effort("did not answer whether it is there"), short_client() as client:
        return client.api_healthcheck() is None
    return False


def upload_pending(storage: RunStorage) -> list[Delivery]:
    """Bring what *storage* lacks, and tell W&B; return what became of it.

    A run that is open is left to itself. One run's trouble is a line in the table, not the end of the round.
    """
    try:
        if not uploads.pending_checkpoints(storage) and not uploads.unannounced(storage):
            return []
        with uploads.leased_for_upload(storage) as confirm:
            return _deliver(storage, confirm)
    except ConfigError as busy:
        _log.info("%s", busy)
        return []
    except Exception as error:  # noqa: BLE001  # see above
        _log.warning("%s: %s", storage.folder, in_a_line(error), exc_info=not isinstance(error, OSError))
        return [_delivery(storage, None, error)]


def _deliver(storage: RunStorage, confirm: Callable[[], None]) -> list[Delivery]:
    """Bring the newest first, for that is what another machine goes on from, until the store is silent."""
    task = upload_checkpoint.with_options(**retry_within(storage.config.storage.retry_for))
    found: list[Delivery] = []
    for checkpoint in reversed(uploads.pending_checkpoints(storage)):
        state = task(lambda c: storage.upload(c, confirm), checkpoint, return_state=True)
        found.append(_delivery(storage, checkpoint, None if state.is_completed() else state.data))
        if found[-1].store_is_silent:
            uploads.record_uploads(storage)
            return found
    uploads.record_uploads(storage)
    arrived = uploads.unannounced(storage)
    try:
        if arrived:
            uploads.announce_late(storage, arrived)
    except Exception as error:  # noqa: BLE001  # a line in the table, as above
        _log.warning(
            "%s: W&B is not told: %s", storage.folder, in_a_line(error),
            exc_info=not isinstance(error, OSError | RLResearchError),
        )  # fmt: skip
        found += [_delivery(storage, checkpoint, f"W&B is not told: {in_a_line(error)}") for checkpoint in arrived]
    return found


def _delivery(storage: RunStorage, checkpoint: Checkpoint | None, failure: object) -> Delivery:
    return Delivery(
        run_id=str(storage.config.run_id),
        step=None if checkpoint is None else checkpoint.global_step,
        storage_url=storage.ledger().place,
        outcome="delivered" if failure is None else in_a_line(failure),
        is_done=failure is None,
        store_is_silent=isinstance(failure, BaseException) and is_transient(failure),
    )


def publish_deliveries(deliveries: Sequence[Delivery]) -> None:
    """Show what a round of deliveries came to."""
    names = ("run_id", "step", "storage_url", "outcome")
    rows: list[Row] = [{name: getattr(one, name) for name in names} for one in deliveries]
    publish_table("deliveries", rows, f"{len(rows)} checkpoints that were missing in their storage")
