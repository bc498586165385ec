"""Uploads that ended runs have left undone: which they are, and how they are done afterwards."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.errors import ConfigError
from rl_research.runs import DESCRIPTION, FOR_UPLOAD, leased_folder, read_description, read_record
from rl_research.storage import RunLease
from rl_research.system import expanded
from rl_research.uploads.run_storage import RunStorage

_log = logging.getLogger(__name__)


def runs_with_storage(runs_dir: Path) -> Iterator[RunStorage]:
    """Yield every run below *runs_dir* whose own ``config.yaml`` names a ``storage.url``.

    Masked options are left out, so credentials come from where the store's client finds them. A run that
    was set aside (``resume=never``) is skipped, and with a warning one whose description cannot be read.
    """
    for description in sorted(expanded(runs_dir).glob(f"*/{DESCRIPTION}")):
        folder = description.parent
        try:
            config = read_description(folder)
        except ConfigError as error:
            _log.warning("%s is left out: %s", folder, str(error).splitlines()[0])
            continue
        if config.run_id == folder.name and config.storage.url is not None:
            yield RunStorage(folder, config)


def pending_checkpoints(storage: RunStorage) -> list[Checkpoint]:
    """Return the local checkpoints that the store lacks and its retention would keep; oldest first.

    Those of which the ledger does not say that they have arrived are among them.
    """
    local, store = checkpoints.local_checkpoints(storage.folder), storage.store()
    everywhere = {c.name: c for c in [*checkpoints.list_checkpoints(store), *local]}
    by_step = sorted(everywhere.values(), key=lambda checkpoint: checkpoint.global_step)
    keep = checkpoints.Retention.of(storage.config).kept(by_step)
    unknown = {checkpoint.name for checkpoint in storage.not_uploaded()}
    wanted = [checkpoint for checkpoint in local if checkpoint.name in keep]
    return [c for c in wanted if c.name in unknown or not checkpoints.is_in(c, store)]


@contextmanager
def leased_for_upload(storage: RunStorage) -> Iterator[Callable[[], None]]:
    """Hold the run in the block, and yield what confirms that the store is still ours.

    A run that is started meanwhile waits. Raises `ConfigError` if a process has the run open: that one
    uploads by itself.
    """
    lease = RunLease(storage.store, str(storage.config.run_id), storage.config.storage.lease)
    with leased_folder(storage.folder, FOR_UPLOAD), lease.held():
        yield lease.confirm


def record_uploads(storage: RunStorage) -> None:
    """Write into the run's record which steps are not uploaded, and where its newest checkpoint is."""
    if (record := read_record(storage.folder)) is not None:
        for name, value in storage.summary().items():
            setattr(record, name, value)
        record.write(storage.folder)
