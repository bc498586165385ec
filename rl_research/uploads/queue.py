"""Checkpoints on their way to storage, beside training, which never waits for them."""

from __future__ import annotations

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
from rl_research.uploads.delivery import deliver
from rl_research.uploads.run_storage import Home, mean_of
from rl_research.uploads.worker import UploadWorker

_log = logging.getLogger(__name__)
_WAITING = 2  # checkpoints that may wait while one is on its way
_TO_CLOSE = 2.0  # seconds of the deadline that are left to W&B and the orchestrator
_GLANCE = 0.2  # seconds between two looks at whether a signal has come

#: Brings one checkpoint; None if retention has removed it meanwhile. Raises what kept it from arriving.
Upload = Callable[[Checkpoint], Checkpoint | None]
#: Calls an `Upload`, as often as it sees fit: what gives an orchestrator a task for it.
Deliver = Callable[[Upload, Checkpoint], object]


class TooLate(RLResearchError):
    """Raised by an upload that is tried again after its run has stopped waiting for it."""


class Uploads:
    """A thread that brings a run's checkpoints to ``storage.url``, one after the other.

    What fails or falls behind stays in the run folder and is tried again when the run ends, and by
    whoever opens the run next. *through* is called in the thread, and has its own way with retries.
    """

    def __init__(self, run: Run, through: Deliver):
        self.run = run
        self.home = Home(run.dir, run.config)
        self._worker = UploadWorker(self.home, run.store_lease)
        self._through = through
        self._waiting: list[Checkpoint] = []
        self._on_its_way: Checkpoint | None = None
        self._best: tuple[float, int] = (-math.inf, -1)
        self._ending = self._too_late = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")

    def start(self) -> None:
        """Begin, with what an earlier segment has left."""
        self._worker.start()
        self._thread.start()

    def add(self, checkpoint: Checkpoint) -> None:
        """Take *checkpoint*, at once; where too many wait, the oldest that is not the best is skipped."""
        if self.run.config.storage.url is None:
            return
        with self._changed:
            self._best = max(self._best, _rank(checkpoint))
            waiting = [c for c in self._waiting if c.name != checkpoint.name]
            if len(waiting) >= _WAITING:
                waiting.remove(skipped := self._least(waiting))
                _log.warning("uploads fall behind: step %d is skipped for now", skipped.global_step)
            self._waiting = [*waiting, checkpoint]
            self._changed.notify_all()

    def in_use(self) -> set[str]:
        """The names of the checkpoints that retention has to leave alone."""
        with self._changed:
            under_way = [] if self._on_its_way is None else [self._on_its_way]
            return {checkpoint.name for checkpoint in [*self._waiting, *under_way]}

    def finish(self, seconds: float) -> None:
        """Give everything kept *seconds* to arrive.

        A signal leaves what is left of ``checkpoint.deadline``. What has not arrived by then is given up,
        also where it waits for its next try.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        until = self._bound(time.monotonic() + seconds)
        while self._thread.is_alive() and (left := until - time.monotonic()) > 0:
            self._thread.join(min(left, _GLANCE))
            until = self._bound(until)
        with self._changed:
            self._too_late = True
        self._worker.end()

    def _bound(self, until: float) -> float:
        stop = self.run.stop
        if not stop:
            return until
        stop.disarm()  # from here on this class keeps the deadline
        return min(until, time.monotonic() + stop.seconds_left() - _TO_CLOSE)

    def _least(self, waiting: list[Checkpoint]) -> Checkpoint:
        return next((c for c in waiting if _rank(c) != self._best), waiting[0])

    def _work(self) -> None:
        for checkpoint in self.home.to_do():
            self.add(checkpoint)
        while (waiting := self._next()) is not None:
            self._bring(waiting)
        for checkpoint in self._last_order():
            if not self._too_late:
                self._bring(checkpoint)

    def _next(self) -> Checkpoint | None:
        """The next one to bring, None when the run has ended."""
        with self._changed:
            self._on_its_way = None
            while not (self._ending or self._waiting):
                self._changed.wait()
            self._on_its_way = None if self._ending else self._waiting.pop(0)
            return self._on_its_way

    def _last_order(self) -> list[Checkpoint]:
        """All that is left: what is newest last, as W&B's `latest` wants it, but first if time is short."""
        left = self.home.to_do()
        return left[::-1] if self.run.stop else left

    def _bring(self, checkpoint: Checkpoint) -> None:
        try:
            self._through(self._upload, checkpoint)
        except Exception as error:  # noqa: BLE001  # training goes on; the checkpoint stays where it is
            if not self._too_late:
                _log.warning(
                    "step %d is not uploaded: %s. The run goes on; the checkpoint stays in %s and is "
                    "tried again.",
                    checkpoint.global_step,
                    in_a_line(error).rstrip("."), self.run.dir,
                )  # fmt: skip

    def _upload(self, checkpoint: Checkpoint) -> Checkpoint | None:
        if self._too_late:
            raise TooLate(f"step {checkpoint.global_step}: the run ended before it was uploaded")
        try:
            return deliver(self.run, checkpoint, self._worker.bring)
        except Exception as error:
            if not checkpoint.still_there():
                return None
            if is_transient(error) and not self._too_late:
                _log.info(
                    "storage.url: %s; step %d is tried again for up to %g s", in_a_line(error),
                    checkpoint.global_step, self.run.config.storage.retry_for,
                )  # fmt: skip
            raise


@contextmanager
def uploads_of(
    run: Run, through: Deliver = lambda upload, checkpoint: upload(checkpoint)
) -> Iterator[Uploads]:
    """What takes each new checkpoint to ``storage.url`` beside the block; nothing where there is none.

    At the end all that is kept gets ``storage.flush_timeout`` to arrive; a run that is stopped or fails
    gives it what is left of ``checkpoint.deadline``. What has not arrived stays in the run folder, is
    named in the record (``not_uploaded``), and is no failure; only a run that was asked to stop while
    it waited for that is `Interrupted`, so that it is started again.
    """
    uploads = Uploads(run, through)
    if run.config.storage.url is None:
        yield uploads
        return
    uploads.start()
    patience = 0.0  # for a second signal, or a deadline that has passed
    try:
        yield uploads
        patience = run.config.storage.flush_timeout
    except Exception:
        patience = run.config.checkpoint.deadline
        raise
    finally:
        uploads.finish(patience)
        left = _record(uploads)
    if left and run.stop:
        assert run.stop.by is not None
        raise Interrupted(
            f"{run.stop.by.name}: stopped before all was uploaded; the same command with "
            f"run_id={run.config.run_id} goes on from there."
        )


def _record(uploads: Uploads) -> list[int]:
    """Note where the newest checkpoint is, and what has stayed behind: the steps."""
    run, outcome = uploads.run, uploads.home.outcome()
    run.save(**outcome)
    left: list[int] = outcome["not_uploaded"]
    if left:
        _log.warning(
            "not uploaded to %s: step %s. The checkpoints stay in %s; the same command, or the flow "
            "`upload`, delivers them.",
            without_password(str(run.config.storage.url)), ", ".join(map(str, left)), run.dir,
        )  # fmt: skip
    return left


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    return mean_of(checkpoint), checkpoint.global_step
