"""Rows that earlier segments of a run have sent to W&B, and those of them that no longer hold."""

import logging
from typing import Any

from rl_research.checkpoints import Checkpoint
from rl_research.runs import Run
from rl_research.sync import was_sent
from rl_research.system import replacing
from rl_research.tracking import STEP, Logged, LogWriter, ProgressFile, logs_of, read_logged, read_records, row_in

_log = logging.getLogger(__name__)


def logged_before(run: Run, newest: Checkpoint | None, progress: ProgressFile) -> Logged:
    """Return what the segments before this one have logged to W&B.

    Online the server knows it, and the rows of offline segments have yet to come. Offline the segments'
    files hold it. Where there are none, the run comes from another machine, or they have been synced and
    removed: then all that *newest* had committed has been logged, if it logged at all.
    """
    logger = run.logger
    if (here := logger.wandb_dir) is None:
        return Logged()
    if (served := logger.served()) is not None:
        offline = read_logged(here.parent, logger.run_id, but=here, kinds="offline-run")
        return served | (offline or Logged())
    found = read_logged(here.parent, logger.run_id, but=here)
    if found is None and newest is not None and newest.manifest.wandb_path:
        return Logged(steps=frozenset(int(row[STEP]) for row in progress.rows))
    return found or Logged()


def forget_relived(run: Run, rows_from: int, media_after: int) -> None:
    """Take rows at the step *rows_from* and later, and media after *media_after*, out of *run*'s W&B logs.

    For a boundary resume, which lives those steps a second time; an exact one repeats them to the bit, and
    what is logged stands. Rows that are online or have been sent stand as well, and are left out the second
    time: each step has one row either way.
    """
    if (here := run.logger.wandb_dir) is None:
        return
    for log in logs_of(here.parent, run.logger.run_id, but=here):
        if not log.parent.name.startswith("offline-") or was_sent(log, run.logger.run_id):
            _log.warning("%s: W&B keeps the first rows of the steps from %d on", run.logger.run_id, rows_from)
            continue
        whole = list(read_records(log))
        kept = [record for record in whole if not _is_relived(record, rows_from, media_after)]
        if len(kept) < len(whole):
            with replacing(log) as temporary, temporary.open("wb") as file:
                writer = LogWriter(file)
                for record in kept:
                    writer.write(record.SerializeToString())


def _is_relived(record: Any, rows_from: int, media_after: int) -> bool:
    step, has_numbers, media = row_in(record)
    return bool((has_numbers and step >= rows_from) or (media and step > media_after))
