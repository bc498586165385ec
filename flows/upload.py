"""Bring to their storage the checkpoints that runs have left behind in their folders, and tell W&B.

prefect deployment run upload/hourly -p runs_dir=runs
"""

# No `from __future__ import annotations`: see flows/train.py.

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from rl_research.checkpoints import Checkpoint
from rl_research.errors import ConfigError, RLResearchError, StorageError, in_a_line
from rl_research.orchestration import pipeline, publish_deliveries, upload_checkpoint
from rl_research.storage import is_transient
from rl_research.uploads import (
    RunStorage,
    announce_late,
    leased_for_upload,
    pending_checkpoints,
    record_uploads,
    runs_with_storage,
    unannounced,
)

_log = logging.getLogger(__name__)
_DELIVERED = "delivered"

#: A row of the flow run's table: ``run_id``, ``step``, ``storage_url`` and ``outcome``.
Outcome = dict[str, Any]


@flow(name="upload", flow_run_name="{runs_dir}")
def upload(runs_dir: str = "runs") -> list[Outcome] | State[Any]:
    """Deliver what the runs below *runs_dir* have not brought to their ``storage.url``.

    Where that is, each run folder's own ``config.yaml`` says (a relative path is taken from the working
    folder); credentials come from the environment. The W&B run of a run that has ended is told of it.
    Runs that are open are left to themselves. What cannot be delivered or told ends the flow run as
    `Failed` when everything else has been; the next round tries again.
    """
    outcomes: list[Outcome] = []
    silent: set[str | None] = set()  # stores that did not answer are asked once per round
    for storage in runs_with_storage(Path(runs_dir)):
        if storage.config.storage.url not in silent:
            found, answers = upload_pending(storage)
            outcomes += found
            silent |= set() if answers else {storage.config.storage.url}
    if outcomes:
        publish_deliveries(outcomes)
    failed = [outcome for outcome in outcomes if outcome["outcome"] != _DELIVERED]
    if failed:
        said = "; ".join(f"{o['run_id']}: {o['outcome']}" for o in failed[:3])
        return pipeline.refused(StorageError(f"{len(failed)} of {len(outcomes)} are left: {said}"))
    return outcomes


def upload_pending(storage: RunStorage) -> tuple[list[Outcome], bool]:
    """What became of each checkpoint that *storage*'s store lacks, and whether the store answers."""
    try:
        if not pending_checkpoints(storage) and not unannounced(storage):
            return [], True
        with leased_for_upload(storage) as confirm:
            return _deliver(storage, confirm)
    except ConfigError as busy:
        _log.info("%s", busy)
        return [], True
    except Exception as error:  # noqa: BLE001  # one run's trouble is a line in the table, not the end of the round
        _log.warning("%s: %s", storage.folder, in_a_line(error), exc_info=not isinstance(error, OSError))
        return [_outcome(storage, None, in_a_line(error))], not is_transient(error)


def _deliver(storage: RunStorage, confirm: Callable[[], None]) -> tuple[list[Outcome], bool]:
    """Deliver newest first, for that is what another machine goes on from, until the store is silent."""
    task = upload_checkpoint.with_options(**pipeline.retried_within(storage.config.storage.retry_for))
    outcomes: list[Outcome] = []
    answers = True
    for checkpoint in reversed(pending_checkpoints(storage)):
        state: State[Any] = task(
            lambda c: storage.upload(c, confirm).checkpoint, checkpoint, return_state=True
        )
        outcome = _DELIVERED if state.is_completed() else in_a_line(state.data)
        outcomes.append(_outcome(storage, checkpoint, outcome))
        answers = not (isinstance(state.data, BaseException) and is_transient(state.data))
        if not answers:
            break
    record_uploads(storage)
    return outcomes + (_tell(storage) if answers else []), answers


def _tell(storage: RunStorage) -> list[Outcome]:
    """Tell W&B of what has arrived; what became of each checkpoint that it could not be told of."""
    if not (arrived := unannounced(storage)):
        return []
    try:
        announce_late(storage, arrived)
    except Exception as error:  # noqa: BLE001  # a line in the table, as above
        expected = isinstance(error, OSError | RLResearchError)
        _log.warning("%s: W&B is not told: %s", storage.folder, in_a_line(error), exc_info=not expected)
        return [_outcome(storage, c, f"W&B is not told: {in_a_line(error)}") for c in arrived]
    return []


def _outcome(storage: RunStorage, checkpoint: Checkpoint | None, outcome: str) -> Outcome:
    return {
        "run_id": storage.config.run_id,
        "step": None if checkpoint is None else checkpoint.global_step,
        "storage_url": storage.ledger().place,
        "outcome": outcome,
    }
