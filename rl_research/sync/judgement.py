"""Verdict on a run that has been sent: by the evidence that wandb left, and by what the server has then.

Where there is no evidence the verdict is "unverified".
"""

from rl_research.sync.job import Job
from rl_research.sync.local_runs import wandb_version
from rl_research.sync.outcome import Verdict
from rl_research.sync.sending import Sent
from rl_research.tracking import RunThere

_MAX_REFUSALS = 5  # refusals, other than for missing rights, after which a run is blocked
_NO_RIGHTS = frozenset({401, 403})
_REFUSALS = frozenset({400, 404, 409, 413, 422})
_REMEDIES = {
    401: "Set WANDB_API_KEY to a key of this server, or run `wandb login`.",
    403: "Ask for the right to write to this project, or name another entity.",
    404: "Check the entity and the project; does the project exist?",
    413: "A row or a file is larger than the server takes.",
}


def judge(job: Job, sent: Sent) -> Verdict:
    """Return the verdict of the evidence, before the server is asked again."""
    if not (reason := _shortfall(job, sent)):
        return _verdict_on_losses(job)
    if not job.evidence and sent.code is not None:
        return _without_evidence(sent)
    statuses = set().union(*(part.statuses for part in job.evidence))
    if refused := sorted(statuses & _NO_RIGHTS):
        return Verdict("blocked", f"{reason} (HTTP {refused[0]}).", _REMEDIES[refused[0]], by_server=True)
    state = "partial" if any(part.rows for part in job.evidence) else "retryable"
    if refused := sorted(statuses & _REFUSALS):
        stuck = job.run.ledger.attempts + 1 >= _MAX_REFUSALS
        remedy = _REMEDIES.get(refused[0], "")
        return Verdict("blocked" if stuck else state, f"{reason} (HTTP {refused[0]}).", remedy, by_server=stuck)
    status = f" (HTTP {max(statuses)})" if statuses else ""
    return Verdict(state, f"{reason}{status}.")


def _shortfall(job: Job, sent: Sent) -> str:
    """Return what is missing for a success, in a few words; empty if nothing is."""
    complete = all(part.complete for part in job.evidence)
    rows = sum(part.rows for part in job.evidence)
    if errors := [error for part in job.evidence for error in part.errors]:
        return errors[0].rstrip(".")
    if sent.code is None and not complete:
        return f"no end after {sent.seconds:.0f} s"
    if len(job.evidence) < len(job.copies):
        return "wandb did not get to all of its segments"
    if rows < job.rows_to_send:
        return f"{rows:,} of {job.rows_to_send:,} rows were acknowledged"
    if not complete:
        return "its end was not acknowledged"
    if not all(copy.with_name(f"{copy.name}.synced").exists() for copy in job.copies):
        return "wandb does not say that it is done"
    return ""


def _verdict_on_losses(job: Job) -> Verdict:
    """Return the verdict where everything that could be sent was sent."""
    problems = job.problems or [f"lost: {path}." for part in job.evidence for path in part.lost]
    if not problems:
        return Verdict("synced")
    remedy = "Put it back, then: rl-research sync --force"
    return Verdict("blocked", f"{' '.join(problems)} Everything else has arrived.", remedy)


def _without_evidence(sent: Sent) -> Verdict:
    said = [line.removeprefix("wandb: ") for line in sent.output.splitlines() if line.strip()]
    last = said[-1][:200] if said else f"exit code {sent.code}"
    if sent.code:
        if "API key" in sent.output or "No API" in sent.output:
            return Verdict("blocked", f"wandb: {last}", _REMEDIES[401], by_server=True)
        return Verdict("retryable", f"wandb: {last}")
    return Verdict(
        "unverified",
        f"wandb {wandb_version()} left no evidence of what arrived.",
        "Install wandb>=0.31,<0.32, then: rl-research sync --force",
    )


def confirm(job: Job, verdict: Verdict, there: RunThere | None) -> Verdict:
    """Return *verdict*; a success stands only if the server, where it answers, has all rows."""
    if verdict.state != "synced" or there is None or job.there is None:
        return verdict
    expected = job.there.rows + job.rows_to_send
    if there.rows < expected:
        return Verdict("partial", f"the server has {there.rows:,} rows of {expected:,} that it acknowledged.")
    return verdict
