"""Ledger of a run's delivery: one small file per run, ``wandb/sync-RUN_ID.json``.

It stands beside the segments, so that it goes where they go.
"""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from rl_research.system import locked, write_atomically

_log = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "sync-", ".json"
_LOCK = ".sync-{}.lock"


@dataclass(frozen=True)
class Segment:
    """One segment: the size of its log, its rows, and whether all of it has arrived."""

    size: int
    rows: int = 0
    delivered: bool = False


@dataclass
class Ledger:
    """Delivery of one run. Times are seconds since 1970."""

    run_id: str
    state: str = "new"  # synced, partial, retryable, blocked, unverified
    path: str = ""  # entity/project/run_id
    segments: dict[str, Segment] = field(default_factory=dict)  # by the name of its folder
    rows: int = 0  # acknowledged by the server
    rows_recorded: int = 0
    repeated: int = 0  # rows on the server that this run did not record, or recorded once only
    files: int = 0
    artifacts: int = 0
    url: str = ""
    begun: bool = False  # rows have been sent, and it is not certain that all have arrived
    attempts: int = 0  # since the last success
    last_attempt: float = 0.0
    next_try: float = 0.0
    synced_at: float | None = None
    reason: str = ""
    remedy: str = ""
    by_server: bool | None = None  # see `Verdict`; None: an older version wrote this, which did not say
    key: str = ""  # fingerprint of the API key that was refused
    wandb: str = ""

    @property
    def is_synced(self) -> bool:
        """Whether everything had arrived when this was written."""
        return self.state == "synced"

    @property
    def is_stuck(self) -> bool:
        """Whether nothing but a change on this side or ``--force`` gets the run out of its state."""
        return self.state == "unverified" or (self.state == "blocked" and self.by_server is False)


_STORED = TypeAdapter(Ledger)


def path_in(folder: Path, run_id: str) -> Path:
    """Return the path of the ledger of *run_id*, whose segments are in *folder*."""
    return folder / f"{_PREFIX}{run_id}{_SUFFIX}"


def run_id_of(name: str) -> str | None:
    """Return the run whose ledger the file *name* is, None for another file."""
    is_one = name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    return name[len(_PREFIX) : -len(_SUFFIX)] if is_one else None


def read(folder: Path, run_id: str) -> Ledger:
    """Return the ledger of *run_id*, a new one if there is none that can be read."""
    path = path_in(folder, run_id)
    try:
        return _STORED.validate_json(path.read_bytes())
    except FileNotFoundError:
        pass
    except (ValidationError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        _log.warning("%s cannot be read (%s); the server is asked again", path, reason)
    return Ledger(run_id)


def write(folder: Path, ledger: Ledger) -> None:
    """Write *ledger*, whole or not at all."""
    write_atomically(path_in(folder, ledger.run_id), encoded(ledger))


def encoded(ledger: Ledger) -> bytes:
    """Return *ledger* as it is stored."""
    return _STORED.dump_json(ledger, indent=1) + b"\n"


def delivered_sizes(content: bytes) -> dict[str, int]:
    """Return the sizes of the delivered segments in a stored ledger, by name; none where it cannot be read."""
    try:
        known = _STORED.validate_json(content).segments
    except ValidationError:
        return {}
    return {name: part.size for name, part in known.items() if part.delivered}


def lock(folder: Path, run_id: str) -> AbstractContextManager[IO[str]]:
    """Lock the run in the block; raise `Locked` if another sync has it.

    A child that inherits the file holds the lock, too, even if this process is killed.
    """
    return locked(folder / _LOCK.format(run_id))
