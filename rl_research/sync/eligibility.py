"""Which runs are tried: their ledgers alone tell, so ten thousand synced runs cost next to nothing."""

import time
from dataclasses import dataclass
from importlib import metadata

from rl_research.sync.ledger import STUCK
from rl_research.sync.local_runs import LocalRun
from rl_research.sync.outcome import Outcome, outcome_of
from rl_research.tracking import WandbApi

QUIET = 600.0  # seconds after its last change that a log of another machine counts as being written


@dataclass(frozen=True)
class Policy:
    """Which runs are tried, and when."""

    force: bool = False  # also those that are blocked, or delivered
    patient: bool = False  # not before their next try is due
    quiet: float = QUIET


def reason_to_skip(run: LocalRun, account: WandbApi, policy: Policy) -> Outcome | None:
    """Return why *run* is skipped, None if it is to be synced."""
    ledger = run.ledger
    if (why := run.absent) is not None:
        return outcome_of(ledger, run.place, why.state, reason=why.reason, remedy=why.remedy)
    if policy.force:
        return None
    if run.is_done:
        return outcome_of(ledger, run.place, "unchanged")
    if not run.is_unchanged:
        return None
    same = ledger.key == account.fingerprint and ledger.wandb == wandb_version()
    if ledger.state in STUCK and same:
        return outcome_of(ledger, run.place)
    if policy.patient and ledger.next_try > time.time():
        return outcome_of(ledger, run.place, "waiting")
    return None


def wandb_version() -> str:
    """Return the version of wandb without importing it."""
    return metadata.version("wandb")
