"""Uploads beside training, which never waits for them."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rl_research.checkpoints import Checkpoint
from rl_research.errors import Interrupted, RLResearchError, in_a_line
from rl_research.runs import Run
from rl_research.storage import is_transient
from rl_research.system import without_password
from rl_research.uploads.announcement import upload_and_announce
from rl_research.uploads.run_storage import RunStorage, mean_of
from rl_research.uploads.worker import UploadWorker

_log = logging.getLogger(__name__)
_MAX_WAITING = 2  # checkpoints that may wait while one is being uploaded
_RESERVE = 2.0  # seconds of the deadline that are left to W&B and the orchestrator
_POLL = 0.2  # seconds between two looks at whether a signal has come

#: Uploads one checkpoint; None if retention has removed it meanwhile. Raises what kept it from arriving.
Upload = Callable[[Checkpoint], Checkpoint | None]
#: Calls an `Upload`, with retries as it sees fit: an orchestrator makes a task of it.
UploadRunner = Callable[[Upload, Checkpoint], object]


class TooLate(RLResearchError):
    """Raised by an upload that is tried again after its run has stopped waiting for it."""


class UploadQueue:
    """A thread that uploads a run's checkpoints to ``storage.url``, one after the other.

    A checkpoint that fails or falls behind stays in the run folder. It is tried again when the run ends, and
    by whoever opens the run next. *runner* is called in the thread.
    """

    def __init__(self, run: Run, runner: UploadRunner):
        self.run = run
        self.storage = RunStorage(run.dir, run.config)
        self._worker = UploadWorker(self.storage, run.store_lease)
        self._runner = runner
        self._waiting: list[Checkpoint] = []
        self._uploading: Checkpoint | None = None
        self._best: tuple[float, int] = (-math.inf, -1)
        self._ending = self._too_late = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")

    def start(self) -> None:
        """Begin with what an earlier segment has left."""
        self._worker.start()
        self._thread.start()

    def add(self, checkpoint: Checkpoint) -> None:
        """Take *checkpoint* and return at once; where too many wait, the oldest but the best is skipped."""
        if self.run.config.storage.url is None:
            return
        with self._changed:
            self._best = max(self._best, _rank(checkpoint))
            waiting = [c for c in self._waiting if c.name != checkpoint.name]
            if len(waiting) >= _MAX_WAITING:
                skipped = next((c for c in waiting if _rank(c) != self._best), waiting[0])
                waiting.remove(skipped)
                _log.warning("uploads fall behind: step %d is skipped for now", skipped.global_step)
            self._waiting = [*waiting, checkpoint]
            self._changed.notify_all()

    def in_use(self) -> set[str]:
        """Return the names of the checkpoints that retention has to leave alone."""
        with self._changed:
            uploading = [] if self._uploading is None else [self._uploading]
            return {checkpoint.name for checkpoint in [*self._waiting, *uploading]}

    def finish(self, seconds: float) -> None:
        """Give everything that is kept *seconds* to arrive, then give the rest up.

        A signal leaves what is left of ``checkpoint.deadline``.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        until = self._bounded(time.monotonic() + seconds)
        while self._thread.is_alive() and (left := until - time.monotonic()) > 0:
            self._thread.join(min(left, _POLL))
            until = self._bounded(until)
        with self._changed:
            self._too_late = True
        self._worker.end()

    def _bounded(self, until: float) -> float:
        stop = self.run.stop
        if not stop:
            return until
        stop.disarm()  # from here on this class keeps the deadline
        return min(until, time.monotonic() + stop.seconds_left() - _RESERVE)

    def _work(self) -> None:
        for checkpoint in self.storage.unfinished():
            self.add(checkpoint)
        while (waiting := self._next()) is not None:
            self._run(waiting)
        # The newest last, as W&B's `latest` wants it; first where time is short.
        left = self.storage.unfinished()
        for checkpoint in left[::-1] if self.run.stop else left:
            if not self._too_late:
                self._run(checkpoint)

    def _next(self) -> Checkpoint | None:
        """Wait for the next one and return it, None when the run has ended."""
        with self._changed:
            self._uploading = None
            while not (self._ending or self._waiting):
                self._changed.wait()
            self._uploading = None if self._ending else self._waiting.pop(0)
            return self._uploading

    def _run(self, checkpoint: Checkpoint) -> None:
        try:
            self._runner(self._upload, checkpoint)
        except Exception as error:  # noqa: BLE001  # training goes on; the checkpoint stays where it is
            if not self._too_late:
                _log.warning(
                    "step %d is not uploaded: %s. The run goes on; the checkpoint stays in %s and is "
                    "tried again.",
                    checkpoint.global_step, in_a_line(error).rstrip("."), self.run.dir,
                )  # fmt: skip

    def _upload(self, checkpoint: Checkpoint) -> Checkpoint | None:
        if self._too_late:
            raise TooLate(f"step {checkpoint.global_step}: the run ended before it was uploaded")
        try:
            return upload_and_announce(self.run, checkpoint, self._worker.upload)
        except Exception as error:
            if not checkpoint.exists():
                return None
            if is_transient(error) and not self._too_late:
                _log.info(
                    "storage.url: %s; step %d is tried again for up to %g s", in_a_line(error),
                    checkpoint.global_step, self.run.config.storage.retry_for,
                )  # fmt: skip
            raise


@contextmanager
def background_uploads(
    run: Run, runner: UploadRunner = lambda upload, checkpoint: upload(checkpoint)
) -> Iterator[UploadQueue]:
    """Yield the queue that uploads new checkpoints beside the block; without ``storage.url`` it does nothing.

    At the end all that is kept gets ``storage.flush_timeout`` to arrive. A run that is stopped or fails
    gives it what is left of ``checkpoint.deadline``. What has not arrived stays in the run folder, is
    named in the record (``not_uploaded``), and is no failure. Raises `Interrupted` only for a run that was
    asked to stop while it waited, so that it is started again.
    """
    uploads = UploadQueue(run, runner)
    if run.config.storage.url is None:
        yield uploads
        return
    uploads.start()
    seconds = 0.0  # for a second signal, or a deadline that has passed
    try:
        yield uploads
        seconds = run.config.storage.flush_timeout
    except Exception:
        seconds = run.config.checkpoint.deadline
        raise
    finally:
        uploads.finish(seconds)
        left = _record(uploads)
    if left and run.stop:
        assert run.stop.by is not None
        raise Interrupted(
            f"{run.stop.by.name}: stopped before all was uploaded; the same command with "
            f"run_id={run.config.run_id} goes on from there."
        )


def _record(uploads: UploadQueue) -> list[int]:
    """Record where the newest checkpoint is, and return the steps that are not uploaded."""
    run = uploads.run
    run.save(**uploads.storage.summary())
    if left := run.record.not_uploaded:
        _log.warning(
            "not uploaded to %s: step %s. The checkpoints stay in %s; the same command, or the flow "
            "`upload`, delivers them.",
            without_password(str(run.config.storage.url)), ", ".join(map(str, left)), run.dir,
        )  # fmt: skip
    return left


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    return mean_of(checkpoint), checkpoint.global_step
