"""Temporary folders that do not outlive a killed sync for long: the next one removes what it has left."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rl_research.system import try_lock

_PREFIX = "rl-research-sync-"
_IN_USE = ".in-use"  # locked as long as its process lives


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder, which is removed at the end of the block."""
    _sweep()
    folder, lock = _made()
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made() -> tuple[Path, IO[str]]:
    """Make a folder and lock a file in it; once more if another sync removes it before the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (folder / _IN_USE).open("w")
        with suppress(FileNotFoundError):
            try:
                try_lock(lock, wait=True)
            except OSError:  # a disk without locks: nobody may sweep it, so it stays if we are killed
                (folder / _IN_USE).unlink()
                return folder, lock
            if os.path.samestat((folder / _IN_USE).stat(), os.fstat(lock.fileno())):
                return folder, lock
        lock.close()


def _sweep() -> None:
    """Remove the folders of processes that have ended."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_IN_USE}"):
        with suppress(OSError), lock.open("r+") as file:
            if try_lock(file):
                shutil.rmtree(lock.parent, ignore_errors=True)
