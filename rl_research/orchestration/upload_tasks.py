"""Uploads as tasks of a flow run that goes on meanwhile: seen in its page, retried by Prefect."""

# No `from __future__ import annotations`: see flows/train.py.

import contextvars
import logging
import threading
from typing import Any
from uuid import UUID

from prefect import runtime, task
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed

from rl_research.checkpoints import Checkpoint
from rl_research.orchestration import pipeline
from rl_research.orchestration.artifacts import publish_checkpoint
from rl_research.uploads import TooLate, Upload

_log = logging.getLogger(__name__)


@task(task_run_name="upload step {checkpoint.global_step}", **pipeline.RETRIED)
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
    said = "it had not arrived when its run ended; the run's next start tries again"
    return Crashed(name="GivenUp", message=said)


class ByTask:
    """A `rl_research.uploads.queue.UploadRunner` that gives each upload a task run of the current flow run.

    It is called in the thread of the uploads, with a copy of the flow's context. Where Prefect's API
    does not answer, the upload is made without it. As a context manager it says at its end which task
    run has been given up.
    """

    def __init__(self, retry_for: float) -> None:
        self._task = upload_checkpoint.with_options(**pipeline.retried_within(retry_for))
        self._context = contextvars.copy_context()
        self._running: UUID | None = None
        self.ended = False

    def __call__(self, upload: Upload, checkpoint: Checkpoint) -> None:
        """Call *upload* with *checkpoint* until it succeeds; raises what its last try raised."""
        self._context.run(self._run, upload, checkpoint)

    def __enter__(self) -> "ByTask":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        if self._running is not None:
            pipeline.end_task_run(self._running, _given_up())

    def _run(self, upload: Upload, checkpoint: Checkpoint) -> None:
        if not pipeline.api_answers():
            _log.warning("Prefect's API does not answer: step %d has no task", checkpoint.global_step)
            upload(checkpoint)
            return
        tried = _Tried(upload, self)
        try:
            self._task(tried, checkpoint)
        except Exception as error:
            if error is tried.failure:
                raise
            _log.warning("Prefect lost the upload of step %d: %s", checkpoint.global_step, error)
            if not tried.done:
                upload(checkpoint)
        finally:
            self._running = None

    def begin(self, task_run_id: str) -> None:
        """Note which task run is under way."""
        self._running = UUID(task_run_id)


class _Tried:
    """An upload that remembers how its last try ended, whatever Prefect makes of it."""

    def __init__(self, upload: Upload, by: ByTask) -> None:
        self._upload, self._by = upload, by
        self.done = False
        self.failure: Exception | None = None

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint | None:
        self._by.begin(str(runtime.task_run.id))
        try:
            uploaded = self._upload(checkpoint)
        except Exception as error:
            if self._by.ended and not isinstance(error, TooLate):
                # The process is ending, which is what failed it; told now, Prefect would start an API.
                threading.Event().wait()
            self.failure = error
            raise
        self.done = True
        return uploaded
