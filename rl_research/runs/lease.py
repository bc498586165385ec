"""One process per run: a lock on its folder, and a lease in its store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rl_research import checkpoints
from rl_research.config import Config
from rl_research.errors import ConfigError
from rl_research.storage import RunLease, Store, lease_in
from rl_research.system import Locked, StopRequest, lock_holder, locked

LEASE = ".lease"
FOR_UPLOAD = "the upload by "  # before the name of a holder that only uploads what the run has left
_LOOK_TAKES = 0.25  # seconds for `holder_of`, which locks what it looks at
_UPLOAD_TAKES = 120.0  # seconds that a run waits for it


@contextmanager
def leased_folder(folder: Path, purpose: str = "") -> Iterator[IO[str]]:
    """Hold the lock of the run in *folder* in the block.

    A holder whose *purpose* is `FOR_UPLOAD` is waited for. Raises `ConfigError` naming any other one.
    """
    try:
        with locked(folder / LEASE, purpose, _seconds_to_wait) as lease:
            yield lease
    except Locked as held:
        raise ConfigError(
            f"run_id={folder.name}: {held} has this run open. "
            "Wait for it to end, or start another run with run_id=NAME."
        ) from None


def _seconds_to_wait(holder: str) -> float:
    return _UPLOAD_TAKES if holder.startswith(FOR_UPLOAD) else _LOOK_TAKES


def holder_of(folder: Path) -> str | None:
    """Return who has the run in *folder* open, None if nobody has. Changes nothing."""
    return lock_holder(folder / LEASE)


@contextmanager
def leased_store(config: Config, stop: StopRequest) -> Iterator[RunLease | None]:
    """Hold the run in ``storage.url``, too, where there is one."""
    if config.storage.url is None:
        yield None
        return
    lease = RunLease(lambda: _store(config), str(config.run_id), config.storage.lease)
    with lease.held(on_wait=stop.raise_if_requested):
        yield lease


def stored_lease(config: Config) -> dict[str, Any] | None:
    """Return the lease in ``storage.url`` of whoever has the run open; a lease that changes is alive."""
    return None if config.storage.url is None else lease_in(_store(config))


def _store(config: Config) -> Store:
    store = checkpoints.store_of(config)
    assert store is not None
    return store
