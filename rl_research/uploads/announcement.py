"""Checkpoints announced to Weights & Biases, as artifacts that say where they lie, once each.

Beside training an upload is followed by its announcement. What arrives after its run has ended is announced
later: no row and no configuration is logged again. For an offline run that is a segment beside its others,
which `rl-research sync` delivers; an online run is resumed for the moment it takes.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.errors import LoggingError, StorageError
from rl_research.runs import Run, RunRecord, read_record
from rl_research.system import unused
from rl_research.tracking import ExperimentLogger, logged_artifacts, logs_of, settings_to_reopen
from rl_research.uploads.run_storage import RunStorage

_log = logging.getLogger(__name__)

_TIMEOUT = 30.0  # seconds that W&B's server may take for the record of one checkpoint
_TRIES = 3  # after which its record is left to the log on disk
_EXIT_CODES = {"finished": 0, "failed": 1}  # of runs that nobody resumes without being told


def upload_and_announce(
    run: Run, checkpoint: Checkpoint, upload: Callable[[Checkpoint], Checkpoint] | None = None
) -> Checkpoint:
    """Copy *checkpoint* to ``storage.url``, if there is one, and announce it; return it as it lies there.

    *upload* does the first; without it this thread does. Raises `CheckpointMissing` if retention has
    removed it, and connection failures as they come. After some tries a W&B server that is away holds up
    no other checkpoint: the artifact is then left to the log on disk, which W&B sends when it can.
    """
    checkpoint = checkpoints.find(checkpoint.address)
    if run.config.storage.url is None:
        return checkpoint
    storage = RunStorage(run.dir, run.config)
    there = upload(checkpoint) if upload else storage.upload(checkpoint, run.confirm_lease)
    may_wait = not run.stop and storage.ledger().entry(there).failures < _TRIES
    try:
        announce(run, there, _TIMEOUT if may_wait else 0.0)
    except ConnectionError:
        storage.ledger().note(there, failures=1)
        raise
    except LoggingError as error:
        _log.warning("step %d has arrived, but %s", there.global_step, error)
    return there


def announce(run: Run, checkpoint: Checkpoint, wait: float = 0.0) -> None:
    """Log where *checkpoint* lies in the open W&B run, once for its content.

    The last one of a run is announced when it has its final score. *wait*, and what is raised where the
    server does not take the artifact, are those of `ExperimentLogger.log_checkpoint`.
    """
    storage = RunStorage(run.dir, run.config)
    ledger = storage.ledger()
    if not (storage.awaits_score(checkpoint) or ledger.announced(checkpoint)):
        _log_artifact(run.logger, storage, checkpoint, wait)
        ledger.note(checkpoint, announced=True)


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what is shown of *checkpoint* elsewhere: its manifest's facts, its files' sizes and hashes."""
    left_out = ("files", "shared", "config")
    facts = {k: v for k, v in checkpoint.manifest.facts().items() if k not in left_out}
    return {
        **facts,
        "bytes": checkpoint.size,
        "sizes": {name: size for name, (size, _) in checkpoint.files.items()},
        "sha256": {name: sha256 for name, (_, sha256) in checkpoint.files.items()},
    }


def unannounced(storage: RunStorage) -> list[Checkpoint]:
    """Return the checkpoints of an ended run that have arrived and are not announced; oldest first.

    None of a run that is to be resumed: its next segment announces them.
    """
    record = read_record(storage.folder) or RunRecord()
    ended = record.status in _EXIT_CODES and bool(record.wandb.path)
    return storage.not_announced() if ended else []


def announce_late(storage: RunStorage, arrived: list[Checkpoint]) -> None:
    """Log where the checkpoints *arrived* lie in the W&B run of *storage*, which has ended; once each.

    The caller holds the run's lease. Raises `ConnectionError` where the W&B server does not answer.
    """
    record, store, ledger = read_record(storage.folder) or RunRecord(), storage.store(), storage.ledger()
    there = [Checkpoint(store, c.name, c.manifest) for c in arrived]
    if to_log := _not_logged(storage, record, there):
        newest = checkpoints.local_checkpoints(storage.folder)[-1]
        if ledger.announced(newest):  # once more: W&B's `latest` is the artifact that was logged last
            to_log.append(Checkpoint(store, newest.name, newest.manifest))
        with _reopened(storage, record) as logger:
            for checkpoint in to_log:
                _log_artifact(logger, storage, checkpoint, _TIMEOUT, late=True)
    for checkpoint in there:
        ledger.note(checkpoint, announced=True)
    _log.info("%s: W&B is told of %d checkpoints", storage.config.run_id, len(there))


def _log_artifact(
    logger: ExperimentLogger, storage: RunStorage, checkpoint: Checkpoint, wait: float, late: bool = False
) -> None:
    ledger = storage.ledger()
    aliases = ["latest", f"step-{checkpoint.global_step}"]
    if ledger.is_best(checkpoint, ask_store=late):
        aliases.append("best")
    facts = {**checkpoint_facts(checkpoint), "storage_url": ledger.place or None}
    uri = checkpoint.store.address(checkpoint.name)
    name = f"{storage.config.run_id}-checkpoint"
    logger.log_checkpoint(name, uri, checkpoint.files, facts, aliases=aliases, wait=wait)


def _not_logged(storage: RunStorage, record: RunRecord, there: list[Checkpoint]) -> list[Checkpoint]:
    """Return those of *there* that are in no log on disk: a kill may come between log and ledger."""
    facts = logged_artifacts(_wandb_folder(storage, record), str(storage.config.run_id))
    logged = [(one.get("uri"), one.get("sha256")) for one in facts]
    ours = [(c.store.address(c.name), checkpoint_facts(c)["sha256"]) for c in there]
    return [c for c, one in zip(there, ours, strict=True) if one not in logged]


@contextmanager
def _reopened(storage: RunStorage, record: RunRecord) -> Iterator[ExperimentLogger]:
    """Open the W&B run of *record* once more; it ends with the exit code it had.

    Its files are written aside. An offline segment is renamed into place when it is whole, so that a kill
    leaves nothing that looks like a crashed run. The log of an online one is not needed any more.
    """
    run_id, folder = str(storage.config.run_id), _wandb_folder(storage, record)
    aside = folder / f".reopened-{run_id}"
    shutil.rmtree(aside, ignore_errors=True)  # a killed process's
    offline = record.wandb.mode == "offline" or any(logs_of(folder, run_id, kinds="offline-run"))
    settings = settings_to_reopen(run_id, record.wandb.path or "", "offline" if offline else "online", aside)
    try:
        logger = ExperimentLogger(settings)
        try:
            yield logger
        finally:
            logger.finish(_EXIT_CODES[record.status])
        if offline:
            segment = logger.wandb_dir
            if segment is None or not logger.finished:
                raise StorageError(f"{aside}: its W&B log is not whole on disk")
            segment.rename(unused(folder / segment.name))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _wandb_folder(storage: RunStorage, record: RunRecord) -> Path:
    """Return where the run's W&B segments are, also if its folder was moved or they were pruned."""
    last, run_dir = Path(record.wandb.dir or ""), Path(record.run_dir or "")
    if last.is_relative_to(run_dir):
        return storage.folder / last.relative_to(run_dir).parent
    return last.parent if last.parent.is_dir() else storage.folder / "wandb"
