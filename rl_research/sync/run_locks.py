"""One sync at a time has a run: by a lock where the disk has locks, else by a lease beside the run."""

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from rl_research.sync import ledger
from rl_research.sync.local_runs import LocalRun
from rl_research.system import Locked

_NO_LOCKS = frozenset([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
_LEASE = ".sync-{}.lease.json"

Key = tuple[Path, str]


class Busy(Exception):
    """Raised for a run that another process is syncing; its text names the process."""


def run_key(run: LocalRun) -> Key:
    """Return the identity of *run* on this machine."""
    return run.folder, run.run_id


def lock_runs(runs: Sequence[LocalRun], stack: ExitStack) -> Mapping[Key, IO[str] | Exception | None]:
    """Lock *runs* until the end of *stack*.

    Return the locked file of each, None where a lease takes its place, or the error: `Busy`, or the disk's.
    """
    found: dict[Key, IO[str] | Exception | None] = {}
    without_locks = []
    for run in runs:
        try:
            found[run_key(run)] = stack.enter_context(ledger.lock(run.folder, run.run_id))
        except Locked as locked:
            found[run_key(run)] = Busy(f"{locked} has it")
        except OSError as error:
            found[run_key(run)] = error
            if error.errno in _NO_LOCKS:
                without_locks.append(run)
    return {**found, **(_lease_runs(without_locks, stack) if without_locks else {})}


def _lease_runs(runs: Sequence[LocalRun], stack: ExitStack) -> dict[Key, Exception | None]:
    from rl_research.sync.threaded_store import ThreadedStore  # with the store, which locks need not

    root = os.path.commonpath([run.folder for run in runs])
    names = {run_key(run): (run.folder.relative_to(root) / _LEASE.format(run.run_id)).as_posix() for run in runs}
    lease = stack.enter_context(stack.enter_context(ThreadedStore(root)).leased(list(names.values())))
    lease.confirm()
    reasons = {**lease.unsure, **{name: f"{who} has it" for name, who in lease.others.items()}}
    return {key: Busy(reasons[name]) if name in reasons else None for key, name in names.items()}
