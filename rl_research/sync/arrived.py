"""Whether what a run has recorded for W&B has arrived there, as its ledger tells."""

from __future__ import annotations

from pathlib import Path

from rl_research.sync import ledger
from rl_research.sync.finding import find


def is_verified(run_dir: Path) -> bool:
    """Whether everything that the run in *run_dir* has recorded for W&B has arrived there.

    False for a run without W&B segments: then nobody has what it recorded.
    """
    runs = find([run_dir], include_online=True)
    return bool(runs) and all(run.is_done for run in runs)


def synced_at(run_dir: Path) -> float | None:
    """When the last of *run_dir* was delivered, in seconds since 1970; None if not everything was."""
    if not is_verified(run_dir):
        return None
    return max(run.ledger.synced_at or 0.0 for run in find([run_dir], include_online=True))


def was_sent(log: Path, run_id: str) -> bool:
    """Whether any of *log*, a segment's of *run_id*, may have reached a server."""
    beside = [log.with_name(f"{log.name}.{mark}") for mark in ("synced", "syncstate")]
    return any(p.exists() for p in (*beside, ledger.path_in(log.parent.parent, run_id)))
