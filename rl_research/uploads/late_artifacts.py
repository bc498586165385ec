"""W&B told of checkpoints that have arrived after their run had ended.

Nothing of the run is said again but that: no row, no configuration. What an offline run is told becomes a
segment beside its others, for `rl-research sync`; an online run is resumed for the moment it takes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.errors import StorageError
from rl_research.runs import RunRecord, read_record
from rl_research.system import unused
from rl_research.tracking import ExperimentLogger, for_afterword, wandb_log
from rl_research.uploads.delivery import PATIENCE, facts_of, tell
from rl_research.uploads.run_storage import Home

_log = logging.getLogger(__name__)

_EXIT_CODES = {"finished": 0, "failed": 1}  # of runs that nobody takes up again by himself


def untold(home: Home) -> list[Checkpoint]:
    """The local checkpoints that have arrived and that W&B still has to be told of; oldest first.

    None of a run that is to go on: its next segment tells.
    """
    record = read_record(home.folder) or RunRecord()
    if record.status not in _EXIT_CODES or not _path(record):
        return []
    deliveries = home.deliveries()
    return [
        checkpoint
        for checkpoint in checkpoints.local_checkpoints(home.folder)
        if deliveries.arrived(checkpoint)
        and not (deliveries.told(checkpoint) or home.awaits_score(checkpoint))
    ]


def tell_of(home: Home, arrived: list[Checkpoint]) -> None:
    """Tell the W&B run in *home* of the checkpoints that have *arrived*, once each.

    To be called by who holds the run. A W&B server that is away is a `ConnectionError`; it is to be
    called again then.
    """
    record, store, deliveries = read_record(home.folder) or RunRecord(), home.store(), home.deliveries()
    there = [Checkpoint(store, c.name, c.manifest) for c in arrived]
    if left := _not_logged(home, record, there):
        newest = checkpoints.local_checkpoints(home.folder)[-1]
        if deliveries.told(newest):  # once more, for W&B's `latest` is what was told last
            left.append(Checkpoint(store, newest.name, newest.manifest))
        with _afterword(home, record) as logger:
            for checkpoint in left:
                tell(logger, home, checkpoint, PATIENCE)
    for checkpoint in there:
        deliveries.note(checkpoint, arrived=True, told=True)
    _log.info("%s: W&B is told of %d checkpoints", home.config.run_id, len(there))


def _not_logged(home: Home, record: RunRecord, there: list[Checkpoint]) -> list[Checkpoint]:
    """Those of *there* that no log on disk speaks of: a kill may have come between log and note."""
    facts = wandb_log.artifacts(_folder(home, record), str(home.config.run_id))
    logged = [(one.get("uri"), one.get("sha256")) for one in facts]
    ours = [(c.store.address(c.name), facts_of(c)["sha256"]) for c in there]
    return [c for c, one in zip(there, ours, strict=True) if one not in logged]


@contextmanager
def _afterword(home: Home, record: RunRecord) -> Iterator[ExperimentLogger]:
    """The W&B run of *record* open once more; it ends as it had ended.

    It is written aside. An offline segment takes its place when it is whole, so that a kill leaves
    nothing that looks like a crashed run; the log of an online one is not needed afterwards.
    """
    run_id, folder = str(home.config.run_id), _folder(home, record)
    aside = folder / f".afterword-{run_id}"
    shutil.rmtree(aside, ignore_errors=True)  # a killed process's
    mode = "offline" if _is_offline(folder, run_id, record) else "online"
    try:
        logger = ExperimentLogger(for_afterword(run_id, _path(record), mode, aside))
        try:
            yield logger
        finally:
            logger.finish(_EXIT_CODES[record.status])
        if mode == "offline":
            segment = logger.wandb_dir
            if segment is None or not logger.finished:
                raise StorageError(f"{aside}: its W&B log is not whole on disk")
            segment.rename(unused(folder / segment.name))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _path(record: RunRecord) -> str:
    """``[entity/]project/run_id`` of the W&B run; empty where there is none."""
    return record.wandb.path or ""


def _is_offline(folder: Path, run_id: str, record: RunRecord) -> bool:
    """Whether what is said of the run goes to the disk, from where a sync delivers it."""
    return record.wandb.mode == "offline" or any(wandb_log.logs_of(folder, run_id, kinds="offline-run"))


def _folder(home: Home, record: RunRecord) -> Path:
    """Where the W&B segments of the run are, also after its folder was moved or they were pruned."""
    last, run_dir = Path(record.wandb.dir or ""), Path(record.run_dir or "")
    if last.is_relative_to(run_dir):
        return home.folder / last.relative_to(run_dir).parent
    return last.parent if last.parent.is_dir() else home.folder / "wandb"
