"""Locks on files: one process at a time, and the system gives up the lock of a process that dies."""

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_POLL = 0.05  # seconds between two tries


class Locked(Exception):
    """Raised where another process holds the lock; its text names the holder."""


def try_lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock the open *file* and return True, or return False where another process holds the lock.

    The lock is the open file's: a child that inherits the descriptor holds it, too, also when this process
    has been killed. Raises `OSError` on a disk without locks.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, purpose: str = "", wait: Callable[[str], float] = lambda holder: 0.0) -> Iterator[IO[str]]:
    """Hold the lock *path* in the block; the file names this process after *purpose* for whoever is refused.

    *wait* gets the holder's name and returns how many seconds the holder is waited for in all. Raises
    `Locked` after that.
    """
    with path.open("a+") as file:
        since = time.monotonic()
        while not try_lock(file):
            holder = _name_in(file)
            if time.monotonic() - since > wait(holder):
                raise Locked(holder)
            time.sleep(_POLL)
        file.truncate(0)
        file.write(f"{purpose}process {os.getpid()} on {platform.node()}")
        file.flush()
        yield file


def lock_holder(path: Path) -> str | None:
    """Return who holds the lock *path*, None where nobody does. Changes nothing."""
    try:
        with path.open() as file:
            return None if try_lock(file, shared=True) else _name_in(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _name_in(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
