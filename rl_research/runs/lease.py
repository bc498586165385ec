"""One process per run: a lock on its folder, and a lease in its store."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rl_research import checkpoints
from rl_research.config import Config
from rl_research.errors import ConfigError
from rl_research.storage import Store, StoreLease, lease_in
from rl_research.system import StopRequest

LEASE = ".lease"
DELIVERY = "the upload by "  # begins the word of a holder that only delivers a checkpoint
_GLANCE_TAKES = 0.25  # seconds for `holder_of`, which locks what it looks at
_DELIVERY_TAKES = 120.0  # seconds that a run waits for it


@contextmanager
def leased_folder(folder: Path, purpose: str = "") -> Iterator[IO[str]]:
    """Hold the run; the system gives up the lock of a process that dies.

    Raises `ConfigError` naming the holder, but waits for one that has it for a `DELIVERY` only.
    """
    with (folder / LEASE).open("a+") as lease:
        since = time.monotonic()
        while (holder := _locked_by(lease)) is not None:
            patience = _DELIVERY_TAKES if holder.startswith(DELIVERY) else _GLANCE_TAKES
            if time.monotonic() - since > patience:
                raise ConfigError(
                    f"run_id={folder.name}: {holder} has this run open. "
                    "Wait for it to end, or start another run with run_id=NAME."
                )
            time.sleep(0.05)
        lease.truncate(0)
        lease.write(f"{purpose}process {os.getpid()} on {platform.node()}")
        lease.flush()
        yield lease


def _locked_by(lease: IO[str]) -> str | None:
    """Take the lock, or say who has it."""
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lease.seek(0)
        return lease.read().strip() or "another process"
    return None


def holder_of(folder: Path) -> str | None:
    """Who has the run in *folder* open, None if nobody has. Changes nothing."""
    try:
        with (folder / LEASE).open() as lease:
            try:
                fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lease.read().strip() or "another process"
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None


@contextmanager
def leased_store(config: Config, stop: StopRequest) -> Iterator[StoreLease | None]:
    """Hold the run in ``storage.url``, too, where there is one."""
    if checkpoints.store_of(config) is None:
        yield None
        return
    lease = StoreLease(lambda: _store(config), str(config.run_id), config.storage.lease)
    lease.acquire(on_wait=stop.raise_if_requested)
    try:
        yield lease
    finally:
        lease.release()


def stored_lease(config: Config) -> dict[str, Any] | None:
    """What is to be seen in ``storage.url`` of who has the run open; if it changes, somebody lives."""
    return None if config.storage.url is None else lease_in(_store(config))


def _store(config: Config) -> Store:
    store = checkpoints.store_of(config)
    assert store is not None
    return store
