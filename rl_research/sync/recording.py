"""Record of a sync on disk: the ledger, wandb's marker, the run's own record."""

import random
import time
from dataclasses import replace

from rl_research.errors import StorageError
from rl_research.runs import RunRecord, read_record
from rl_research.sync import ledger as ledgers
from rl_research.sync.job import Job
from rl_research.sync.ledger import Ledger, Segment
from rl_research.sync.liveness import is_held
from rl_research.sync.local_runs import LocalRun, wandb_version
from rl_research.sync.outcome import Outcome, Verdict
from rl_research.sync.sending import Sent
from rl_research.tracking import RunThere, WandbApi

_FIRST_WAIT, _LONGEST_WAIT = 60.0, 6 * 3600.0  # seconds until the next try; doubled each time
_LONGEST_BLOCKED = 24 * 3600.0  # the same where the server refuses the run
_MOST_DOUBLINGS = 16


def record_delivery(job: Job, verdict: Verdict, sent: Sent, there: RunThere | None) -> None:
    """Set in the ledger of *job*'s run what has arrived."""
    run, ledger, before = job.run, job.run.ledger, job.rows_before
    arrived = sum(part.rows for part in job.evidence)
    if there is not None and job.there is not None:
        grown = there.rows - job.there.rows
        arrived, ledger.repeated = min(grown, job.rows_to_send), max(0, grown - job.rows_to_send)
    rows = {facts.log: facts.rows for facts in job.logs}
    for name, log in run.logs.items():
        size, known = run.sizes[name], ledger.segments.get(name)
        if log in rows:
            ledger.segments[name] = Segment(size, rows[log], verdict.state == "synced")
        elif known is None or known.size != size:
            ledger.segments[name] = Segment(size)
    ledger.rows_recorded = sum(part.rows for part in ledger.segments.values())
    ledger.rows = before + arrived
    ledger.files = sum(part.files for part in job.evidence)
    others = 0 if len(job.logs) == len(run.logs) else ledger.artifacts
    ledger.artifacts = others + sum(facts.artifacts for facts in job.logs)
    ledger.path = "/".join(filter(None, job.path))
    project_and_id = "/".join(job.path[1:])
    ledger.url = next((url for path, url in sent.urls.items() if path.endswith(project_and_id)), ledger.url)


def record_verdict(run: LocalRun, verdict: Verdict, account: WandbApi) -> Outcome:
    """Write *verdict* into the ledger of *run*, wandb's marker and the run's record; return the outcome."""
    _set_state(run.ledger, verdict, account)
    for name, size in run.sizes.items():
        run.ledger.segments.setdefault(name, Segment(size))
    try:
        _set_marker(run)
        ledgers.write(run.folder, run.ledger)
        record = _update_record(run) if run.ledger.is_synced else None
    except (OSError, StorageError) as error:
        reason = f"{verdict.reason} Its ledger cannot be written: {error}".strip()
        return run.outcome(Verdict("blocked", reason, verdict.remedy))
    return run.outcome(flow_run_id=None if record is None else record.flow_run_id)


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
    ledger.by_server = verdict.by_server
    ledger.key, ledger.wandb, ledger.last_attempt = account.fingerprint, wandb_version(), now
    if verdict.state == "synced":
        ledger.attempts, ledger.next_try, ledger.synced_at, ledger.begun = 0, 0.0, now, False
        return
    ledger.attempts += 1
    longest = _LONGEST_BLOCKED if verdict.by_server else _LONGEST_WAIT
    wait = min(_FIRST_WAIT * 2 ** min(ledger.attempts - 1, _MOST_DOUBLINGS), longest)
    ledger.next_try = now + wait * random.uniform(0.75, 1.0)


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
