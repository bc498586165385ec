"""Delivery of several runs in few calls of wandb, from their logs to what the server has acknowledged."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from rl_research.errors import StorageError
from rl_research.sync import server
from rl_research.sync.eligibility import Policy, reason_to_skip
from rl_research.sync.evidence import confirm, judge, read_evidence
from rl_research.sync.job import Job, prepare_job
from rl_research.sync.local_runs import LocalRun, reread
from rl_research.sync.outcome import Outcome, Verdict, outcome_of
from rl_research.sync.recording import record_delivery, record_start, record_verdict
from rl_research.sync.run_locks import Busy, Key, lock_runs, run_key
from rl_research.sync.sending import seconds_allowed, send
from rl_research.sync.sent_copy import Skipped, Unclear, skipped_parts
from rl_research.sync.server import RunThere
from rl_research.sync.temporary import temporary_folder
from rl_research.tracking import Refused, Unreachable, WandbApi

_BATCH = 50  # runs in one call of wandb
_QUESTIONS = 8  # that the server is asked at a time
_WAITS = (0.0, 0.5, 2.0)  # seconds to wait before the server is asked again what it has


def deliver_runs(runs: Sequence[LocalRun], policy: Policy) -> list[Outcome]:
    """Sync *runs*, many in one call of wandb, and return their outcomes in the same order.

    Raises nothing for what goes wrong with a run or the server: that is in the outcomes.
    """
    account = server.configured()
    outcomes: dict[Key, Outcome] = {}
    for start in range(0, len(runs), _BATCH):
        for run, outcome in _deliver_batch(runs[start : start + _BATCH], account, policy):
            outcomes[run_key(run)] = outcome
    return [outcomes[run_key(run)] for run in runs]


def _deliver_batch(runs: Sequence[LocalRun], account: WandbApi, policy: Policy) -> Iterator[tuple[LocalRun, Outcome]]:
    with ExitStack() as stack:
        jobs: list[Job] = []
        locks = lock_runs(runs, stack)
        for run in runs:
            prepared = _prepare(run, account, policy, locks[run_key(run)])
            if isinstance(prepared, Job):
                jobs.append(prepared)
            elif isinstance(prepared, Verdict):
                yield run, record_verdict(run, prepared, account)
            else:
                yield run, prepared
        ready: list[Job] = []
        for job, verdict in _positions(jobs, account, policy):
            if verdict is None:
                ready.append(job)
            else:
                yield job.run, record_verdict(job.run, verdict, account)
        if ready:
            yield from _send(ready, account)


def _prepare(
    run: LocalRun, account: WandbApi, policy: Policy, lock: IO[str] | Exception | None
) -> Job | Verdict | Outcome:
    """Read the logs of *run*, which *lock* protects, as they are now."""
    try:
        if isinstance(lock, Exception):
            raise lock
        run = reread(run)
        return reason_to_skip(run, account, policy) or prepare_job(run, lock, policy)
    except Busy as taken:
        return outcome_of(run.ledger, run.place, "busy", reason=f"{taken}.", remedy="")
    except (OSError, StorageError) as error:
        reason = f"{run.folder}: {getattr(error, 'strerror', None) or error}."
        return outcome_of(run.ledger, run.place, "blocked", reason=reason, remedy="")


def _positions(jobs: Sequence[Job], account: WandbApi, policy: Policy) -> list[tuple[Job, Verdict | None]]:
    """Ask the server how far each run is; return a verdict where nothing can be sent.

    If it does not answer for the first, it is not asked for the others.
    """
    if not jobs:
        return []
    first = _position(jobs[0], account, policy)
    if first is not None and first.state == "retryable":
        return [(job, first) for job in jobs]
    with ThreadPoolExecutor(_QUESTIONS) as pool:
        others = pool.map(lambda job: _position(job, account, policy), jobs[1:])
        return [(jobs[0], first), *zip(jobs[1:], others, strict=True)]


def _position(job: Job, account: WandbApi, policy: Policy) -> Verdict | None:
    if account.key is None:
        return Verdict("blocked", "no API key is set.", "Set WANDB_API_KEY or run `wandb login`.")
    try:
        job.there = server.ask_for_run(account, *job.path)
        if job.there is None and job.run.ledger.begun and not policy.force:
            return Verdict(
                "retryable",
                "the server does not say what it has, and may have some of it.",
                "rl-research sync --force sends all rows that it has not acknowledged.",
            )
        there = job.there or RunThere(rows=job.run.ledger.rows)
        job.left_out = skipped_parts(job.logs, there)
    except Refused as error:
        return Verdict("blocked", f"{error}.", "Check WANDB_API_KEY and the rights to the project.")
    except Unreachable as error:
        return Verdict("retryable", f"{error}.")
    except Unclear as error:
        if policy.force:
            job.left_out = [Skipped() for _ in job.logs]
            return None
        return Verdict(
            "blocked",
            f"what the server has of it does not fit: {error}.",
            "Look at the run there. rl-research sync --force sends all rows, some perhaps again.",
        )
    return None


def _send(jobs: Sequence[Job], account: WandbApi) -> Iterator[tuple[LocalRun, Outcome]]:
    with temporary_folder() as attempt:
        copied: list[Job] = []
        for number, job in enumerate(jobs):
            if (problem := _copied(job, attempt / f"{number:03d}", account)) is None:
                copied.append(job)
            else:
                yield job.run, problem
        ready: list[Job] = []
        with ThreadPoolExecutor(_QUESTIONS) as pool:
            problems = list(pool.map(_start_recorded, copied))
        for job, problem in zip(copied, problems, strict=True):
            if problem is None:
                ready.append(job)
            else:
                yield job.run, problem
        yield from _send_copies(ready, attempt, account)


def _copied(job: Job, folder: Path, account: WandbApi) -> Outcome | None:
    """Write the copies of *job* into *folder*; return the outcome if that fails."""
    try:
        job.write_copies(folder)
    except OSError as error:  # no room for the copy, or no right to read
        reason = f"no copy in {folder.parent.parent}: {error.strerror}."
        verdict = Verdict("retryable", reason, "Free space there, or set TMPDIR.")
        return record_verdict(job.run, verdict, account)
    return None


def _start_recorded(job: Job) -> Outcome | None:
    """Write into the ledger that rows may arrive; return the outcome if nothing may be sent."""
    try:
        verdict = record_start(job.run)
    except (OSError, StorageError) as error:
        verdict = Verdict("blocked", f"its ledger cannot be written: {error}")
    if verdict is None:
        return None
    return outcome_of(job.run.ledger, job.run.place, verdict.state, reason=verdict.reason, remedy=verdict.remedy)


def _send_copies(jobs: Sequence[Job], attempt: Path, account: WandbApi) -> Iterator[tuple[LocalRun, Outcome]]:
    if jobs:
        sent = send(
            [copy for job in jobs for copy in job.copies],
            attempt / "wandb-dir",
            seconds=seconds_allowed(sum(job.size for job in jobs)),
            held=[job.lock.fileno() for job in jobs if job.lock is not None],
        )
        found = read_evidence(sent.folder)
        verdicts = [judge(job, found, sent) for job in jobs]
        with ThreadPoolExecutor(_QUESTIONS) as pool:
            answers = pool.map(lambda pair: _ask_again(pair[0], pair[1], account), zip(jobs, verdicts, strict=True))
        for job, verdict, there in zip(jobs, verdicts, answers, strict=True):
            verdict = confirm(job, verdict, there)  # noqa: PLW2901  # the same one, confirmed
            record_delivery(job, verdict, found, sent, there)
            yield job.run, record_verdict(job.run, verdict, account)


def _ask_again(job: Job, verdict: Verdict, account: WandbApi) -> RunThere | None:
    """Return what the server has now; it gets a moment to know what it has just acknowledged."""
    there = None
    for wait in _WAITS:
        time.sleep(wait)
        try:
            there = server.ask_for_run(account, *job.path)
        except (Refused, Unreachable):
            return None
        if confirm(job, verdict, there).state == verdict.state:
            break
    return there
