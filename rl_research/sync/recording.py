"""Record of a sync on disk: the ledger, wandb's marker, the run's own record."""

import random
import time
from collections.abc import Mapping
from dataclasses import replace

from rl_research.errors import StorageError
from rl_research.runs import RunRecord, read_record
from rl_research.sync import ledger as ledgers
from rl_research.sync.eligibility import wandb_version
from rl_research.sync.evidence import Evidence
from rl_research.sync.job import Job
from rl_research.sync.ledger import Ledger
from rl_research.sync.liveness import is_held
from rl_research.sync.local_runs import LocalRun
from rl_research.sync.outcome import Outcome, Verdict, outcome_of
from rl_research.sync.sending import Sent
from rl_research.sync.server import RunThere
from rl_research.tracking import WandbApi

_FIRST_WAIT, _LONGEST_WAIT = 60.0, 6 * 3600.0  # seconds until the next try; doubled each time


def record_delivery(
    job: Job, verdict: Verdict, found: Mapping[str, Evidence], sent: Sent, there: RunThere | None
) -> None:
    """Set in the ledger of *job*'s run what has arrived."""
    ledger = job.run.ledger
    parts = [found[str(copy)] for copy in job.copies if str(copy) in found]
    arrived = sum(part.rows for part in parts)
    if there is not None and job.there is not None:
        grown = there.rows - job.there.rows
        arrived, ledger.repeated = min(grown, job.rows_to_send), max(0, grown - job.rows_to_send)
    before, whole = job.rows_before, len(job.logs) == len(job.run.logs)
    artifacts = sum(facts.artifacts for facts in job.logs)
    _record_segments(job, delivered=verdict.state == "synced")
    ledger.rows = before + arrived
    ledger.files = sum(part.files for part in parts)
    ledger.artifacts = artifacts + (0 if whole else ledger.artifacts)
    ledger.path = "/".join(filter(None, job.path))
    project_and_id = "/".join(job.path[1:])
    ledger.url = next((url for path, url in sent.urls.items() if path.endswith(project_and_id)), ledger.url)


def _record_segments(job: Job, *, delivered: bool) -> None:
    run, ledger = job.run, job.run.ledger
    rows = {facts.log: facts.rows for facts in job.logs}
    for name, log in run.logs.items():
        known = ledger.segments.get(name)
        if log in rows:
            ledger.segments[name] = {
                "size": run.sizes[name], "rows": rows[log], "delivered": delivered,
            }  # fmt: skip
        elif known is None or known["size"] != run.sizes[name]:
            ledger.segments[name] = {"size": run.sizes[name], "rows": 0, "delivered": False}
    ledger.rows_recorded = sum(part["rows"] for part in ledger.segments.values())


def record_verdict(run: LocalRun, verdict: Verdict, account: WandbApi) -> Outcome:
    """Write *verdict* into the ledger of *run*, wandb's marker and the run's record; return the outcome."""
    _set_state(run.ledger, verdict, account)
    for name, size in run.sizes.items():
        run.ledger.segments.setdefault(name, {"size": size, "rows": 0, "delivered": False})
    try:
        _set_marker(run)
        ledgers.write(run.folder, run.ledger)
        record = _update_record(run) if run.ledger.is_synced else None
    except (OSError, StorageError) as error:
        reason = f"{verdict.reason} Its ledger cannot be written: {error}".strip()
        return outcome_of(run.ledger, run.place, "blocked", reason=reason)
    return outcome_of(run.ledger, run.place, flow_run_id=None if record is None else record.flow_run_id)


def record_start(run: LocalRun) -> Verdict | None:
    """Write into the ledger of *run* that rows may arrive from now on, also if this process is killed.

    The ledger at the URL of a run that was fetched is written, too. Return why nothing may be sent, if so.
    """
    begun = replace(run.ledger, begun=True)
    if run.claim is not None and (verdict := run.claim(begun)) is not None:
        return verdict
    ledgers.write(run.folder, begun)
    run.ledger.begun = True
    return None


def _set_state(ledger: Ledger, verdict: Verdict, account: WandbApi) -> None:
    """Set the state, the number of tries, and when the next one is due."""
    now = time.time()
    ledger.state, ledger.reason, ledger.remedy = verdict.state, verdict.reason, verdict.remedy
    ledger.key, ledger.wandb, ledger.last_attempt = account.fingerprint, wandb_version(), now
    if verdict.state == "synced":
        ledger.attempts, ledger.next_try, ledger.synced_at, ledger.begun = 0, 0.0, now, False
        return
    ledger.attempts += 1
    wait = min(_FIRST_WAIT * 2 ** (ledger.attempts - 1), _LONGEST_WAIT)
    ledger.next_try = now + wait * random.uniform(0.75, 1.25)


def _set_marker(run: LocalRun) -> None:
    """Set wandb's own marker, or remove it: wandb leaves it after nearly every failure."""
    for log in run.logs.values():
        marker = log.with_name(f"{log.name}.synced")
        if run.ledger.is_synced:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)


def _update_record(run: LocalRun) -> RunRecord | None:
    """Record in ``run.json``, if there is one and nobody has the run open, where the run is now."""
    record = read_record(run.home)
    if record is not None and record.has_wandb_run and not is_held(run.home):
        record.wandb.url = run.ledger.url or record.wandb.url
        record.wandb.synced_at = run.ledger.synced_at
        record.write(run.home)
    return record
