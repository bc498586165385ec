"""A checkpoint brought to ``storage.url`` and told to Weights & Biases, once each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.errors import LoggingError
from rl_research.runs import Run
from rl_research.tracking import ExperimentLogger
from rl_research.uploads.run_storage import Arrival, Home

_log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds that W&B's server may take for the record of one checkpoint
_TRIES = 3  # after which its record is left to the log on disk

#: Brings one checkpoint to the store, here or in a process of its own.
Bring = Callable[[Checkpoint], Arrival]


def deliver(run: Run, checkpoint: Checkpoint, bring: Bring | None = None) -> Checkpoint:
    """Bring *checkpoint* to ``storage.url`` and tell W&B; where there is none, the run folder is its home.

    *bring* does the first, without it this thread. What has been done is not done again. Raises
    `CheckpointMissing` if retention has removed it; connection failures leave as they came. A W&B server
    that is away holds up no other checkpoint for long: after some tries the artifact is left to the log
    on disk, which W&B sends when it can.
    """
    checkpoint = checkpoints.find(checkpoint.address)
    if run.config.storage.url is None:
        return checkpoint
    home = Home(run.dir, run.config)
    arrival = bring(checkpoint) if bring else home.bring(checkpoint, run.confirm_lease)
    uploaded = arrival.checkpoint
    patient = not run.stop and home.deliveries().failures(uploaded) < _TRIES
    try:
        announce(run, uploaded, PATIENCE if patient else 0.0, arrival.best_kept)
    except ConnectionError:
        home.deliveries().note(uploaded, arrived=True, failed=True)
        raise
    except LoggingError as error:
        _log.warning("step %d has arrived, but %s", uploaded.global_step, error)
    return uploaded


def announce(run: Run, checkpoint: Checkpoint, wait: float = 0.0, best_kept: float | None = None) -> None:
    """Tell the W&B run where *checkpoint* lies, with everything its manifest says; once for its content.

    The last one of a run is told of when it has its final score. *wait* and what is raised where the
    server does not take it are `ExperimentLogger.log_checkpoint`'s.
    """
    home = Home(run.dir, run.config)
    deliveries = home.deliveries()
    if home.awaits_score(checkpoint) or deliveries.told(checkpoint):
        return
    tell(run.logger, home, checkpoint, wait, best_kept)
    deliveries.note(checkpoint, arrived=True, told=True)


def tell(
    logger: ExperimentLogger,
    home: Home,
    checkpoint: Checkpoint,
    wait: float = 0.0,
    best_kept: float | None = None,
) -> None:
    """Log where *checkpoint* of the run in *home* lies, whether or not it has been logged before."""
    deliveries = home.deliveries()
    aliases = ["latest", f"step-{checkpoint.global_step}"]
    if deliveries.is_best(checkpoint, best_kept):
        aliases.append("best")
    name = f"{home.config.run_id}-checkpoint"
    facts = {**facts_of(checkpoint), "storage_url": deliveries.place or None}
    uri = checkpoint.store.address(checkpoint.name)
    logger.log_checkpoint(name, uri, checkpoint.files, facts, aliases=aliases, wait=wait)


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is shown of *checkpoint* elsewhere: its manifest's facts, and its files' sizes and hashes."""
    left_out = ("files", "shared", "config")
    facts = {k: v for k, v in checkpoint.manifest.facts().items() if k not in left_out}
    return {
        **facts,
        "bytes": checkpoint.size,
        "sizes": {name: size for name, (size, _) in checkpoint.files.items()},
        "sha256": {name: sha256 for name, (_, sha256) in checkpoint.files.items()},
    }
