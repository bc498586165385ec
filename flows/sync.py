"""Bring offline runs to Weights & Biases, each row once.

rl-research sync runs
prefect deployment run sync/every-15-minutes -p 'places=["runs", "s3://bucket/runs"]'
"""

# No `from __future__ import annotations`: see flows/train.py.

from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from rl_research.config import load_storage, refuse_secrets
from rl_research.orchestration import NO_RETRIES, RETRY_TRANSIENT, publish_sync, publish_synced_link
from rl_research.sync import LocalRun, Outcome, Policy, open_runs, reason_to_skip
from rl_research.tracking import WandbApi

_AT_A_TIME = 4  # runs that are tried again; the first try is one call of wandb for many
_RUNNER: Any = ThreadPoolTaskRunner(max_workers=_AT_A_TIME)


class NotYet(ConnectionError):
    """Raised for a run that another try may help, so that Prefect makes one."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.line())
        self.outcome = outcome


@flow(name="sync", task_runner=_RUNNER)
def sync(
    where: Sequence[str] = ("runs",), overrides: Sequence[str] = (), include_online: bool = False, force: bool = False
) -> State[Any]:
    """Sync every run in *where*, folders and URLs, that has something to deliver and is due.

    *overrides* are ``storage.options.KEY=VALUE`` for the URLs' file systems, no secrets among them.
    What fails for now is tried again by its task, then by the next flow run that finds it due. Ends as
    `Failed` if a run is blocked that was not before; the table says what came of each.
    """
    refuse_secrets(overrides, *where)
    options, policy = dict(load_storage(overrides).options), Policy(force=force, only_due=True)
    with open_runs(where, options, include_online=include_online) as runs:
        account = WandbApi()
        looks = [(run, reason_to_skip(run, account, policy)) for run in runs]
        tried = _try_all([run for run, reason in looks if reason is None], force)
    away = [reason for run, reason in looks if reason is not None and run.absent is not None]
    before = [reason for run, reason in looks if reason is not None and run.absent is None]
    if new := [*tried, *away]:
        publish_sync([*before, *new])
    return _final_state([*before, *new], new)


def _try_all(runs: Sequence[LocalRun], force: bool) -> list[Outcome]:
    first = send_together(runs, force) if runs else []
    tries = [deliver_run.submit(run, outcome, force) for run, outcome in zip(runs, first, strict=True)]
    wait(tries)
    return [_outcome_of(one.state) for one in tries]


@task(task_run_name="send together", **NO_RETRIES)
def send_together(runs: Sequence[LocalRun], force: bool) -> list[Outcome]:
    """Try all *runs* in as few calls of wandb as possible."""
    from rl_research.sync import deliver_runs  # with wandb, which a look needs not

    return deliver_runs(runs, Policy(force=force))


@task(task_run_name="sync {run.run_id}", **RETRY_TRANSIENT)
def deliver_run(run: LocalRun, first: Outcome, force: bool) -> Outcome | State[Any]:
    """Return what came of *run*'s *first* try, made with the others; else try it alone."""
    from rl_research.sync import deliver_runs

    outcome = first if runtime.task_run.run_count == 1 else deliver_runs([run], Policy(force=force))[0]
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


def _final_state(outcomes: Sequence[Outcome], new: Sequence[Outcome]) -> State[Any]:
    counts = dict(Counter(outcome.state for outcome in outcomes))
    stuck = [outcome.line() for outcome in new if outcome.state in ("blocked", "unverified")]
    if stuck:
        return Failed(message="; ".join(stuck)[:1000], data=counts)
    message = ", ".join(f"{number:,} {state}" for state, number in counts.items()) or "no runs"
    return Completed(message=message, data=counts)
