"""Bring offline runs to Weights & Biases, each row once.

rl-research sync runs
prefect deployment run sync/every-15-minutes -p 'places=["runs", "s3://bucket/runs"]'
"""

# No `from __future__ import annotations`: see flows/train.py.

from collections.abc import Sequence
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from rl_research.config import load_storage, refuse_secrets
from rl_research.orchestration import NO_RETRIES, RETRY_TRANSIENT, publish_sync, publish_synced_link
from rl_research.sync import LocalRun, Outcome, Policy, places, reason_not_to_try
from rl_research.tracking import WandbApi

_AT_A_TIME = 4  # runs that are tried again; the first try is one call of wandb for many
_RUNNER: Any = ThreadPoolTaskRunner(max_workers=_AT_A_TIME)


class NotYet(ConnectionError):
    """Raised for a run that trying again may help, so that Prefect does."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.line())
        self.outcome = outcome


@flow(name="sync", task_runner=_RUNNER)
def sync(
    where: Sequence[str] = ("runs",),
    overrides: Sequence[str] = (),
    include_online: bool = False,
    force: bool = False,
) -> State[Any]:
    """Sync every run in *where*, folders and URLs, that has something to deliver and is due.

    *overrides* are ``storage.options.KEY=VALUE`` for the URLs' file systems, no secrets among them.
    What fails for now is tried again by its task, then by the next flow run that finds it due. Ends as
    `Failed` if a run is blocked that was not before; the table says what came of each.
    """
    refuse_secrets(overrides, *where)
    options = dict(load_storage(overrides).options)
    policy = Policy(force=force, patient=True)
    with places.opened(where, options, include_online=include_online) as runs:
        account = WandbApi()
        known = [reason_not_to_try(run, account, policy) for run in runs]
        todo = [run for run, reason in zip(runs, known, strict=True) if reason is None]
        out_of_reach = [run.absent is not None for run in runs]
        new = _try_all(todo, force) if todo else []
    new += [told for told, away in zip(known, out_of_reach, strict=True) if told and away]
    before = [told for told, away in zip(known, out_of_reach, strict=True) if told and not away]
    if new:
        publish_sync([*before, *new])
    return _summed_up([*before, *new], new)


def _try_all(runs: Sequence[LocalRun], force: bool) -> list[Outcome]:
    first = send_together(runs, force)
    tries = [deliver_run.submit(run, outcome, force) for run, outcome in zip(runs, first, strict=True)]
    for one in tries:
        one.wait()
    return [_outcome_of(one.state) for one in tries]


@task(task_run_name="send together", **NO_RETRIES)
def send_together(runs: Sequence[LocalRun], force: bool) -> list[Outcome]:
    """Try all *runs* in as few calls of wandb as possible."""
    from rl_research.sync import deliver  # with wandb, which a look needs not

    return deliver(runs, Policy(force=force))


@task(task_run_name="sync {run.run_id}", **RETRY_TRANSIENT)
def deliver_run(run: LocalRun, first: Outcome, force: bool) -> Outcome | State[Any]:
    """See to one run: what came of the first try, else tries of its own."""
    from rl_research.sync import deliver

    outcome = first if runtime.task_run.run_count == 1 else deliver([run], Policy(force=force))[0]
    if outcome.state in ("partial", "retryable"):
        raise NotYet(outcome)
    if outcome.state == "synced":
        publish_synced_link(outcome)
    if outcome.state in ("blocked", "unverified"):
        return Failed(message=outcome.line(), data=outcome)
    return outcome


def _outcome_of(state: State[Any]) -> Outcome:
    found: Outcome | BaseException = state.result(raise_on_failure=False)
    if isinstance(found, NotYet):
        return found.outcome
    if isinstance(found, BaseException):
        raise found
    return found


def _summed_up(outcomes: Sequence[Outcome], new: Sequence[Outcome]) -> State[Any]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.state] = counts.get(outcome.state, 0) + 1
    message = ", ".join(f"{number:,} {state}" for state, number in counts.items()) or "no runs"
    stuck = [outcome for outcome in new if outcome.state in ("blocked", "unverified")]
    if stuck:
        return Failed(message="; ".join(outcome.line() for outcome in stuck)[:1000], data=counts)
    return Completed(message=message, data=counts)
