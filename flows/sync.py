"""Bring offline runs to Weights & Biases, each row once.

rl-research sync runs
prefect deployment run sync/every-15-minutes -p 'where=["runs", "s3://bucket/runs"]'
"""

from collections import Counter
from collections.abc import Sequence

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from rl_research.config import load_storage, refuse_secrets
from rl_research.orchestration import publish_sync, publish_synced_link
from rl_research.sync import Outcome, Policy, open_runs, reason_to_skip, sync_runs
from rl_research.tracking import WandbApi

_TRIES = 3  # of a run in one flow run; the next one makes more


@flow(name="sync")
def sync(
    where: Sequence[str] = ("runs",), overrides: Sequence[str] = (), include_online: bool = False, force: bool = False
) -> State[object]:
    """Sync every run in *where*, folders and URLs, that has something to deliver and is due.

    *overrides* are ``storage.options.KEY=VALUE`` for the URLs' file systems, no secrets among them.
    What fails for now is tried again by the next flow run that finds it due. Ends as `Failed` if a run is
    blocked that was not before; the table says what came of each.
    """
    refuse_secrets(overrides, *where)
    options = dict(load_storage(overrides).options)
    with open_runs(where, options, include_online=include_online) as runs:
        account, policy = WandbApi(), Policy(force=force, only_due=True)
        looks = [(run, reason_to_skip(run, account, policy)) for run in runs]
        due = [run for run, reason in looks if reason is None]
        tried = sync_runs(due, Policy(force=force), tries=_TRIES, report=_link)
    away = [reason for run, reason in looks if reason is not None and run.absent is not None]
    before = [reason for run, reason in looks if reason is not None and run.absent is None]
    if new := [*tried, *away]:
        publish_sync([*before, *new])
    changed = [outcome for run, outcome in zip(due, tried, strict=True) if outcome.state != run.ledger.state]
    return _final_state([*before, *new], [*changed, *away])


def _link(outcome: Outcome) -> None:
    if outcome.state == "synced":
        publish_synced_link(outcome)


def _final_state(outcomes: Sequence[Outcome], changed: Sequence[Outcome]) -> State[object]:
    counts = dict(Counter(outcome.state for outcome in outcomes))
    stuck = [outcome.line() for outcome in changed if outcome.state in ("blocked", "unverified")]
    if stuck:
        return Failed(message="; ".join(stuck)[:1000], data=counts)
    message = ", ".join(f"{number:,} {state}" for state, number in counts.items()) or "no runs"
    return Completed(message=message, data=counts)
