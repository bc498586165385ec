"""Each run is one sync's at a time: by a lock where the disk has locks, else by a lease beside the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from rl_research.sync import ledger
from rl_research.sync.finding import LocalRun
from rl_research.system import Locked

_NO_LOCKS = frozenset([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
_LEASE = ".sync-{}.lease.json"

Key = tuple[Path, str]


class Taken(Exception):
    """Raised for a run that another process has; its text says which."""


def key_of(run: LocalRun) -> Key:
    """What tells *run* from the others of this machine."""
    return run.folder, run.run_id


def locks_of(runs: Sequence[LocalRun], stack: ExitStack) -> Mapping[Key, IO[str] | Exception | None]:
    """Hold *runs* until the end of *stack*: each one's locked file, None where a lease takes its place.

    Or what speaks against it: `Taken`, or what the disk has said.
    """
    found: dict[Key, IO[str] | Exception | None] = {}
    without_locks = []
    for run in runs:
        try:
            found[key_of(run)] = stack.enter_context(ledger.lock(run.folder, run.run_id))
        except Locked as locked:
            found[key_of(run)] = Taken(f"{locked} has it")
        except OSError as error:
            found[key_of(run)] = error
            if error.errno in _NO_LOCKS:
                without_locks.append(run)
    return {**found, **(_leases_of(without_locks, stack) if without_locks else {})}


def _leases_of(runs: Sequence[LocalRun], stack: ExitStack) -> dict[Key, Exception | None]:
    from rl_research.sync import gateways  # with the store, which locks need not
    from rl_research.sync.stores import Stores

    root = os.path.commonpath([run.folder for run in runs])
    names = {
        key_of(run): (run.folder.relative_to(root) / _LEASE.format(run.run_id)).as_posix() for run in runs
    }
    stores = stack.enter_context(Stores(root))
    hold = stack.enter_context(gateways.holding(stores, list(names.values())))
    hold.confirm()
    why = {**hold.unsure, **{name: f"{who} has it" for name, who in hold.others.items()}}
    return {key: Taken(why[name]) if name in why else None for key, name in names.items()}
