"""Whether a log without an end is still being written."""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from rl_research.sync.local_runs import LocalRun
from rl_research.sync.logs import LogFacts
from rl_research.system import living_processes, lock_holder

_LEASE = ".lease"
_INIT = 1  # parent of orphans
_QUIET = 600.0  # seconds after its last change that a log of another machine counts as being written
_SERVICE_OUTLIVES = 15.0  # seconds that W&B's service may outlive its program


def is_live(run: LocalRun, logs: list[LogFacts]) -> bool:
    """Return whether a process is writing *run*, whose *logs* have been read.

    A log of another machine, which cannot be asked, counts as written for ten minutes after its last
    change. Just after a kill this waits some seconds: W&B's service outlives its program for a moment.
    """
    if is_held(run.home):
        return True
    abandoned = (run.home / _LEASE).exists()
    unfinished = [facts for facts in logs if not facts.exited]
    return any(_is_being_written(facts, abandoned=abandoned) for facts in unfinished)


def is_held(home: Path) -> bool:
    """Return whether a process holds the lock of the run folder *home*."""
    try:
        return lock_holder(home / _LEASE) is not None
    except OSError:
        return False


def _is_being_written(facts: LogFacts, *, abandoned: bool) -> bool:
    if facts.host != platform.node() and time.time() - facts.log.stat().st_mtime < _QUIET:
        return True
    deadline = time.monotonic() + _SERVICE_OUTLIVES
    while holders := _holders(facts.log):
        parents = living_processes()
        orphaned = abandoned or all(parents.get(pid, _INIT) == _INIT for pid in holders)
        if not orphaned or time.monotonic() > deadline:
            return True
        time.sleep(0.2)
    return False


def _holders(log: Path) -> list[int]:
    """Return the processes that have *log* open, as far as we may look at them."""
    wanted, found = log.stat(), []
    for process in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(_is_same(entry, wanted) for entry in os.scandir(process)):
                found.append(int(process.parent.name))
    return found


def _is_same(entry: os.DirEntry[str], wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(entry.stat(), wanted)
    except OSError:
        return False
