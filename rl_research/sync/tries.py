"""Runs opened wherever they are, and synced in as many tries as it takes."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from rl_research.sync import server
from rl_research.sync.eligibility import Policy, reason_to_skip
from rl_research.sync.local_runs import LocalRun, find
from rl_research.sync.outcome import Outcome

_WAIT = 3.0  # seconds before a run's second try, doubled with each


@contextmanager
def open_runs(
    places: Sequence[str],
    options: Mapping[str, Any] | None = None,
    *,
    include_online: bool = False,
    to_send: bool = True,
) -> Iterator[list[LocalRun]]:
    """Yield the runs in *places*, which are folders of this machine and URLs to which others push runs.

    Runs at a URL are fetched; their ledgers are written back at the end. Where they are *to_send*, other
    gateways are kept away meanwhile. Raises `ConfigError` for a place that is not there.
    """
    runs = find([place for place in places if "://" not in place], include_online=include_online)
    with ExitStack() as stack:
        for url in dict.fromkeys(place for place in places if "://" in place):
            from rl_research.sync import gateway

            at_url = gateway.fetched_runs(url, options, include_online=include_online, to_send=to_send)
            runs += stack.enter_context(at_url)
        yield runs


def sync_runs(
    runs: Sequence[LocalRun],
    policy: Policy,
    *,
    tries: int = 1,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Sync *runs*, up to *tries* times where waiting may help; *report* is called with each final outcome.

    wandb is imported only if there is something to send.
    """
    account = server.configured()
    outcomes: dict[int, Outcome] = {}
    todo = []
    for number, run in enumerate(runs):
        if (outcome := reason_to_skip(run, account, policy)) is None:
            todo.append(number)
        else:
            report(outcomes.setdefault(number, outcome))
    for left in reversed(range(tries if todo else 0)):
        chosen = [(number, runs[number]) for number in todo]
        todo = _one_round(chosen, replace(policy, patient=False), outcomes, report, left)
        if not todo:
            break
        time.sleep(_WAIT * 2 ** (tries - 1 - left) * random.uniform(0.5, 1.5))
    return [outcomes[number] for number in range(len(runs))]


def _one_round(
    todo: Sequence[tuple[int, LocalRun]],
    policy: Policy,
    outcomes: dict[int, Outcome],
    report: Callable[[Outcome], None],
    left: int,
) -> list[int]:
    """Sync each once; return the numbers of those that get another of the *left* rounds."""
    from rl_research.sync.delivery import deliver_runs

    again = []
    for (number, _), outcome in zip(todo, deliver_runs([run for _, run in todo], policy), strict=True):
        outcomes[number] = outcome
        if outcome.is_later and left:
            again.append(number)
        else:
            report(outcome)
    return again
