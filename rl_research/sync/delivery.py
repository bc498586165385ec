"""Delivery of several runs in few calls of wandb, from their logs to what the server has acknowledged.

The runs of a batch go through steps together. A step returns None for a run that goes on, or how it ends: a
`Verdict` is written into the ledger, an `Outcome` leaves the ledger as it is.
"""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rl_research.errors import StorageError
from rl_research.sync import ledger
from rl_research.sync.job import Job
from rl_research.sync.judgement import confirm, judge
from rl_research.sync.local_runs import LocalRun, Policy, reason_to_skip, reread
from rl_research.sync.outcome import Outcome, Verdict
from rl_research.sync.recording import record_delivery, record_start, record_verdict
from rl_research.sync.sending import Sent, send
from rl_research.sync.sent_copy import Skipped, Unclear, skipped_parts
from rl_research.sync.temporary import temporary_folder
from rl_research.system import Locked, retry_call
from rl_research.tracking import NoAnswer, Refused, RunThere, Unreachable, WandbApi

_BATCH = 50  # runs in one call of wandb
_AT_A_TIME = 8  # runs whose logs are read, or of which the server is asked, at the same time
_TIMEOUT = 15.0  # seconds for a question to the server
_TRIES = 3  # of a question that the server does not answer
_FIRST_WAIT = 3.0  # seconds before a run's second try, doubled with each
_WAITS = (0.0, 0.5, 2.0)  # seconds to wait before the server is asked again what it has


def sync_runs(
    runs: Sequence[LocalRun],
    policy: Policy,
    *,
    tries: int = 1,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Sync *runs*, up to *tries* times where waiting may help; *report* is called with each final outcome.

    wandb is imported only if there is something to send. Raises nothing for what goes wrong with a run or the
    server: that is in the outcomes.
    """
    account = WandbApi()
    outcomes: dict[int, Outcome] = {}
    for number, run in enumerate(runs):
        if (skipped := reason_to_skip(run, account, policy)) is not None:
            report(outcomes.setdefault(number, skipped))
    todo = [number for number in range(len(runs)) if number not in outcomes]
    for left in reversed(range(tries if todo else 0)):
        tried = _deliver([runs[number] for number in todo], replace(policy, only_due=False))
        outcomes.update(zip(todo, tried, strict=True))
        again = [number for number in todo if left and outcomes[number].is_later]
        for number in todo:
            if number not in again:
                report(outcomes[number])
        if not (todo := again):
            break
        time.sleep(_FIRST_WAIT * 2 ** (tries - 1 - left) * random.uniform(0.5, 1.5))
    return [outcomes[number] for number in range(len(runs))]


def _deliver(runs: Sequence[LocalRun], policy: Policy) -> list[Outcome]:
    """Sync *runs* once, many in one call of wandb, and return their outcomes in the same order."""
    account = WandbApi(timeout=_TIMEOUT)
    is_worth_asking = account.key is not None and any(run.ledger.state == "blocked" for run in runs)
    refusal = _refusal(account) if is_worth_asking and not policy.force else None
    batches = [_Batch(runs[start : start + _BATCH], policy, account, refusal) for start in range(0, len(runs), _BATCH)]
    return [outcome for batch in batches for outcome in batch.deliver()]


def _refusal(account: WandbApi) -> Verdict | None:
    """Ask the server whether it knows the account, before anything of what it refused is read; return why not."""
    try:
        account.viewer()
    except Refused as error:
        return _refused(error)
    except NoAnswer:  # the questions about the runs tell more
        return None
    return None


def _refused(error: Refused) -> Verdict:
    return Verdict("blocked", f"{error}.", "Check WANDB_API_KEY and the rights to the project.", by_server=True)


class _Batch:
    """Runs that are sent in one call of wandb."""

    def __init__(self, runs: Sequence[LocalRun], policy: Policy, account: WandbApi, refusal: Verdict | None):
        self._account, self._policy, self._refusal = account, policy, refusal
        self._jobs = [Job(run) for run in runs]
        self._unreachable: Verdict | None = None

    def deliver(self) -> list[Outcome]:
        with ExitStack() as stack:
            for job in self._jobs:
                try:
                    job.lock = stack.enter_context(ledger.lock(job.run.folder, job.run.run_id))
                except (Locked, OSError) as error:
                    job.lock = error
            self._each(self._prepare)
            self._each(self._ask)
            if self._going():
                self._send(stack.enter_context(temporary_folder()))
        return [job.outcome for job in self._jobs if job.outcome is not None]

    def _going(self) -> list[Job]:
        return [job for job in self._jobs if job.outcome is None]

    def _each(self, step: Callable[[Job], Verdict | Outcome | None]) -> None:
        """Take the runs that go on through *step*."""
        going = self._going()
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            ends = list(pool.map(step, going))
        for job, end in zip(going, ends, strict=True):
            job.outcome = record_verdict(job.run, end, self._account) if isinstance(end, Verdict) else end

    def _prepare(self, job: Job) -> Verdict | Outcome | None:
        """Read the logs of the run, which its lock protects, as they are now."""
        run = job.run
        try:
            if isinstance(job.lock, Exception):
                raise job.lock
            job.run = run = reread(run)
            if (skipped := reason_to_skip(run, self._account, self._policy)) is not None:
                return skipped
            if self._refusal is not None and run.ledger.state == "blocked":
                return self._refusal
            return job.read_logs(self._policy)
        except Locked as holder:
            return run.outcome(Verdict("busy", f"{holder} has it."))
        except (OSError, StorageError) as error:
            return run.outcome(Verdict("blocked", f"{run.folder}: {getattr(error, 'strerror', None) or error}."))

    def _run_there(self, job: Job) -> RunThere | None:
        return retry_call(
            lambda: self._account.ask_for_run(*job.path), lambda e: isinstance(e, Unreachable), tries=_TRIES, pause=0.5
        )

    def _ask(self, job: Job) -> Verdict | None:
        """Ask the server how far the run is; where it has not answered for one, it is not asked for the others."""
        if self._account.key is None:
            return Verdict("blocked", "no API key is set.", "Set WANDB_API_KEY or run `wandb login`.")
        if self._unreachable is not None:
            return self._unreachable
        try:
            job.there = self._run_there(job)
            if job.there is None and job.run.ledger.begun and not self._policy.force:
                return Verdict(
                    "retryable",
                    "the server does not say what it has, and may have some of it.",
                    "rl-research sync --force sends all rows that it has not acknowledged.",
                )
            job.left_out = skipped_parts(job.logs, job.there or RunThere(rows=job.run.ledger.rows))
        except Refused as error:
            return _refused(error)
        except Unreachable as error:
            self._unreachable = Verdict("retryable", f"{error}.")
            return self._unreachable
        except Unclear as error:
            if not self._policy.force:
                return Verdict(
                    "blocked",
                    f"what the server has of it does not fit: {error}.",
                    "Look at the run there. rl-research sync --force sends all rows, some perhaps again.",
                    by_server=True,
                )
            job.left_out = [Skipped() for _ in job.logs]
        return None

    def _send(self, folder: Path) -> None:
        for number, job in enumerate(self._going()):
            job.folder = folder / f"{number:03d}"
        self._each(self._copy)
        self._each(self._start)
        if jobs := self._going():
            sent = send(
                [copy for job in jobs for copy in job.copies],
                folder / "wandb-dir",
                size=sum(job.size for job in jobs),
                held=[job.lock.fileno() for job in jobs if not isinstance(job.lock, Exception | None)],
            )
            for job in jobs:
                job.evidence = [sent.evidence[str(copy)] for copy in job.copies if str(copy) in sent.evidence]
            self._each(lambda job: self._judge(job, sent))

    def _copy(self, job: Job) -> Verdict | None:
        try:
            job.write_copies()
        except OSError as error:  # no room for the copy, or no right to read
            reason = f"no copy in {job.folder.parents[1]}: {error.strerror}."
            return Verdict("retryable", reason, "Free space there, or set TMPDIR.")
        return None

    def _start(self, job: Job) -> Outcome | None:
        """Write into the ledger that rows may arrive; return the outcome if nothing may be sent."""
        try:
            verdict = record_start(job.run)
        except (OSError, StorageError) as error:
            verdict = Verdict("blocked", f"its ledger cannot be written: {error}")
        return None if verdict is None else job.run.outcome(verdict)

    def _judge(self, job: Job, sent: Sent) -> Verdict:
        """Judge by the evidence, and by what the server has now; it gets a moment to know what it acknowledged."""
        verdict = confirmed = judge(job, sent)
        there = None
        for wait in _WAITS:
            time.sleep(wait)
            try:
                there = self._run_there(job)
            except (Refused, Unreachable):
                there = None
            if (confirmed := confirm(job, verdict, there)) == verdict:
                break
        record_delivery(job, confirmed, sent, there)
        return confirmed
